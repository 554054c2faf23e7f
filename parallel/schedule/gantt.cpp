// The picture of a simulated schedule: one row a rank, one box a computation, time to the right.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "parallel/schedule/schedule.h"
#include "runtime/core/error.h"
#include "runtime/core/text.h"

namespace r1::parallel {
namespace {

constexpr double kLeft = 64, kTop = 56, kRow = 30, kGap = 6, kRight = 24, kBottom = 60;
/// A box this wide holds its micro-batch's number in 11 px digits.
constexpr double kNarrowest = 20;
constexpr double kLeastWidth = 640, kMostWidth = 16000;

struct Look {
  ActionKind kind;
  std::string_view name;
  int hue, saturation, lightness;
};
constexpr Look kLooks[] = {
    {ActionKind::kForward, "forward", 212, 70, 72},
    {ActionKind::kBackward, "backward", 135, 42, 62},
    {ActionKind::kBackwardInput, "input gradient", 165, 48, 58},
    {ActionKind::kBackwardWeight, "weight gradient", 96, 45, 72},
};

const Look* look_of(ActionKind kind) {
  const auto* const at = std::ranges::find(kLooks, kind, &Look::kind);
  return at == std::end(kLooks) ? nullptr : at;
}

/// Later chunks of a rank are darker.
int lightness(const Look& look, int chunk, int chunks) {
  return look.lightness - (chunks > 1 ? 26 * chunk / (chunks - 1) : 0);
}
std::string color(const Look& look, int chunk, int chunks) {
  return fmt::format("hsl({},{}%,{}%)", look.hue, look.saturation, lightness(look, chunk, chunks));
}

/// A round step (1, 2 or 5 times a power of ten) for about ten ticks.
double tick_step(double span) {
  const double raw = span / 10;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double f : {1.0, 2.0, 5.0}) {
    if (f * power >= raw) return f * power;
  }
  return 10 * power;
}

/// How wide a unit of time is, and where things are.
struct Frame {
  double span, plot, scale, axis, width, height;
};

/// So wide that the shortest box holds its number.
Frame frame_of(const Schedule& s, const Simulation& sim) {
  double shortest = sim.makespan;
  for (const auto& list : sim.ranks) {
    for (const auto& x : list) {
      if (!is_transfer(x.action.kind) && x.end > x.start)
        shortest = std::min(shortest, x.end - x.start);
    }
  }
  const double span = sim.makespan > 0 ? sim.makespan : 1;
  const double plot =
      std::clamp(kNarrowest * span / std::max(shortest, span * 1e-9), kLeastWidth, kMostWidth);
  const double rows = static_cast<double>(s.pp) * (kRow + kGap);
  return {.span = span,
          .plot = plot,
          .scale = plot / span,
          .axis = kTop + rows + 2,
          .width = kLeft + plot + kRight,
          .height = kTop + rows + kBottom};
}

std::string heading(const Schedule& s, const Simulation& sim, const Frame& f) {
  return fmt::format(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
             "width=\"{0:.0f}\" "
             "height=\"{1:.0f}\" "
             "font-family=\"sans-serif\" font-size=\"11\">\n"
             "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
             f.width, f.height) +
         fmt::format(
             "<text x=\"8\" y=\"20\" font-size=\"15\" font-weight=\"bold\">{}</text>\n"
             "<text x=\"8\" y=\"38\">pp {}{}, {} micro-batches, time {:.4g}, bubble {:.1f} % of "
             "the "
             "ranks' time</text>\n",
             xml_escaped(s.name), s.pp,
             s.virtual_stages > 1 ? fmt::format(" x {} virtual stages", s.virtual_stages) : "",
             s.microbatches, sim.makespan, 100 * sim.bubble_fraction);
}

/// A computation: its box, and the micro-batch's number where it fits.
std::string box(const Schedule& s, const SimulatedAction& x, const Frame& f, double y) {
  const auto* const look = look_of(x.action.kind);
  if (look == nullptr) return {};  // transfers take no time of a rank
  const double left = kLeft + x.start * f.scale, width = (x.end - x.start) * f.scale;
  const int chunk = x.action.stage / s.pp;
  std::string out = fmt::format(
      "<rect x=\"{:.2f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{:.0f}\" fill=\"{}\" "
      "stroke=\"#444\" "
      "stroke-width=\"0.5\"><title>{} from {:.4g} to {:.4g}</title></rect>\n",
      left, y, width, kRow, color(*look, chunk, s.virtual_stages), x.action.str(), x.start, x.end);
  const auto number = fmt::format("{}", x.action.microbatch);
  if (width < 7.0 * static_cast<double>(number.size()) + 2) return out;  // it would not fit
  const bool dark = lightness(*look, chunk, s.virtual_stages) < 55;
  return out + fmt::format("<text x=\"{:.2f}\" y=\"{:.1f}\" text-anchor=\"middle\"{}>{}</text>\n",
                           left + width / 2, y + kRow / 2 + 4, dark ? " fill=\"#fff\"" : "",
                           number);
}

std::string row(const Schedule& s, size_t rank, const std::vector<SimulatedAction>& list,
                const Frame& f) {
  const double y = kTop + static_cast<double>(rank) * (kRow + kGap);
  std::string out =
      fmt::format("<text x=\"{:.0f}\" y=\"{:.1f}\" text-anchor=\"end\">rank {}</text>\n", kLeft - 8,
                  y + kRow / 2 + 4, rank);
  out += fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{:.0f}\" fill=\"#eee\"/>\n", kLeft,
      y, f.plot, kRow);
  for (const auto& x : list) out += box(s, x, f, y);
  return out;
}

std::string time_axis(const Frame& f) {
  std::string out = fmt::format(
      "<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{2:.1f}\" y2=\"{1:.1f}\" stroke=\"#444\"/>\n",
      kLeft, f.axis, kLeft + f.plot);
  // One tick for about 90 px, so that numbers stay apart on wide and narrow pictures.
  const double step = tick_step(f.span * 10 * 90 / std::max(f.plot, 900.0));
  for (int i = 0; step * i <= f.span * (1 + 1e-9); ++i) {
    const double x = kLeft + step * i * f.scale;
    out += fmt::format(
        "<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{0:.1f}\" y2=\"{2:.1f}\" stroke=\"#444\"/>"
        "<text x=\"{0:.1f}\" y=\"{3:.1f}\" text-anchor=\"middle\">{4:.4g}</text>\n",
        x, f.axis, f.axis + 4, f.axis + 16, step * i);
  }
  return out;
}

/// The kinds that the schedule uses, from left to right.
std::string legend(const Schedule& s, const Frame& f) {
  std::string out;
  double x = kLeft;
  const double y = f.axis + 30;
  const auto entry = [&](const std::string& fill, std::string_view text) {
    out += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"14\" height=\"12\" fill=\"{}\" stroke=\"#444\" "
        "stroke-width=\"0.5\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
        x, y, fill, x + 19, y + 10, text);
    x += 19 + 6.5 * static_cast<double>(text.size()) + 18;
  };
  for (const auto& look : kLooks) {
    const bool used = std::ranges::any_of(s.ranks, [&](const auto& list) {
      return std::ranges::find(list, look.kind, &Action::kind) != list.end();
    });
    if (used) entry(color(look, 0, s.virtual_stages), look.name);
  }
  entry("#eee", "idle");
  if (s.virtual_stages > 1)
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">darker: later virtual stage</text>\n", x,
                       y + 10);
  return out;
}

}  // namespace

std::string gantt_svg(const Schedule& s, const Simulation& sim) {
  R1_CHECK(sim.ranks.size() == s.ranks.size(), "the simulation of another schedule");
  const Frame f = frame_of(s, sim);
  std::string out = heading(s, sim, f);
  for (size_t r = 0; r < sim.ranks.size(); ++r) out += row(s, r, sim.ranks[r], f);
  return out + time_axis(f) + legend(s, f) + "</svg>\n";
}

}  // namespace r1::parallel
