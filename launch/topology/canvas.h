// What the drawings of a host and of a cluster are made of: a canvas, colours for bandwidths,
// sizes.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

namespace r1::launch {

inline constexpr double kDrawingGap = 10, kDrawingPad = 14;

/// At most `chars` characters, the middle left out.
[[nodiscard]] std::string fitted(const std::string& text, size_t chars);
/// Colour of a link.
[[nodiscard]] const char* colour_of(std::optional<double> gbytes_per_s);

/// Shapes, put together to an SVG picture that is as large as what is on it.
class Canvas {
 public:
  double width = 0, height = 0;

  void box(double x, double y, double w, double h, const char* fill, const char* stroke,
           double radius = 6);
  void text(double x, double y, const std::string& words, const char* style);
  void line(double x1, double y1, double x2, double y2, std::optional<double> gbytes_per_s);
  /// A bow below a row of devices.
  void bow(double x1, double x2, double y, double depth, std::optional<double> gbytes_per_s);
  void grow(double x, double y);
  /// Lines go under the boxes that are drawn after this.
  void flush_lines();
  [[nodiscard]] std::string finish() const;

 private:
  std::string body_, under_;
};

/// What the colours mean.
void draw_legend(Canvas& canvas, double x, double y);

}  // namespace r1::launch
