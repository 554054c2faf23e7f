#include "launch/topology/canvas.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "runtime/core/text.h"

namespace r1::launch {
namespace {

struct Colour {
  double at_least;  // GB/s
  const char* colour;
  const char* text;
};
constexpr std::array<Colour, 5> kColours = {{{200, "#1a7f37", "200 GB/s and more"},
                                             {40, "#4ac26b", "40 to 200"},
                                             {20, "#0969da", "20 to 40"},
                                             {8, "#bf8700", "8 to 20"},
                                             {0, "#cf222e", "less than 8"}}};
constexpr const char* kUnknownColour = "#8c959f";

double width_of(std::optional<double> gbytes_per_s) {
  const double v = gbytes_per_s.value_or(0);
  return v >= 200 ? 5 : v >= 40 ? 3.5 : v >= 20 ? 2.5 : 1.8;
}

}  // namespace

/// At most `chars` characters, the middle left out.
std::string fitted(const std::string& text, size_t chars) {
  if (text.size() <= chars || chars < 4) return text.substr(0, chars);
  const size_t head = (chars - 1) / 2, tail = chars - 1 - head;
  return text.substr(0, head) + "…" + text.substr(text.size() - tail);
}

const char* colour_of(std::optional<double> gbytes_per_s) {
  if (!gbytes_per_s) return kUnknownColour;
  for (const Colour& c : kColours)
    if (*gbytes_per_s >= c.at_least) return c.colour;
  return kUnknownColour;
}

void Canvas::box(double x, double y, double w, double h, const char* fill, const char* stroke,
                 double radius) {
  grow(x + w, y + h);
  body_ += fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"{}\" fill=\"{}\" "
      "stroke=\"{}\"/>\n",
      x, y, w, h, radius, fill, stroke);
}

void Canvas::text(double x, double y, const std::string& words, const char* style) {
  body_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"{}\">{}</text>\n", x, y, style,
                       xml_escaped(words));
  grow(x, y);
}

void Canvas::line(double x1, double y1, double x2, double y2, std::optional<double> gbytes_per_s) {
  under_ += fmt::format(
      "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
      "stroke-width=\"{}\"/>\n",
      x1, y1, x2, y2, colour_of(gbytes_per_s), width_of(gbytes_per_s));
}

void Canvas::bow(double x1, double x2, double y, double depth, std::optional<double> gbytes_per_s) {
  body_ += fmt::format(
      "<path d=\"M{:.1f} {:.1f} C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}\" fill=\"none\" "
      "stroke=\"{}\" stroke-width=\"{}\"/>\n",
      x1, y, x1, y + depth, x2, y + depth, x2, y, colour_of(gbytes_per_s), width_of(gbytes_per_s));
  grow(std::max(x1, x2), y + depth * 0.8);
}

void Canvas::grow(double x, double y) {
  width = std::max(width, x);
  height = std::max(height, y);
}

std::string Canvas::finish() const {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
      "viewBox=\"0 0 {0:.0f} {1:.0f}\">\n"
      "<style>text{{font-family:DejaVu Sans,Helvetica,Arial,sans-serif;fill:#1f2328}}"
      ".title{{font-size:16px;font-weight:bold}}.head{{font-size:12px;font-weight:bold}}.small{{"
      "font-size:10px}}"
      ".mid{{font-size:11px;text-anchor:middle}}.midsmall{{font-size:9.5px;text-anchor:middle;"
      "fill:#57606a}}"
      ".note{{font-size:11px;fill:#57606a}}</style>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{2}{3}</svg>\n",
      width + kDrawingPad, height + kDrawingPad, under_, body_);
}

void Canvas::flush_lines() {
  body_ += under_;
  under_.clear();
}

void draw_legend(Canvas& canvas, double x, double y) {
  canvas.text(x, y, "link bandwidth in one direction:", "note");
  double at = x + 200;
  const auto entry = [&](const char* colour, const std::string& words) {
    canvas.box(at, y - 8, 22, 8, colour, "none", 2);
    canvas.text(at + 27, y, words, "note");
    at += 40 + 6.4 * static_cast<double>(words.size());
  };
  for (const Colour& c : kColours) entry(c.colour, c.text);
  entry(kUnknownColour, "unknown");
  canvas.grow(at, y);
}

}  // namespace r1::launch
