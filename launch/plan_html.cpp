// A plan as one self-contained web page: no script, no file beside it, pictures as inline SVG.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "launch/plan.h"
#include "runtime/core/human.h"
#include "runtime/core/text.h"

namespace r1::launch {
namespace {

using parallel::Candidate;
using parallel::StepTime;

std::string bytes(int64_t n) { return human_bytes(static_cast<double>(n)); }

constexpr const char* kStyle = R"(
:root { color-scheme: light; --ink: #1c2330; --soft: #5b6577; --line: #dde2ea; --card: #fff; --page: #f4f6f9; --good: #18794e; --bad: #c2272d; --warn: #9a6700; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 2px; } h2 { font-size: 17px; margin: 0 0 12px; }
.sub { color: var(--soft); margin: 0 0 18px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; margin: 0 0 16px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 0 0 16px; }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.figure b { display: block; font-size: 21px; line-height: 1.3; } .figure span { color: var(--soft); font-size: 13px; }
.good { color: var(--good); } .bad { color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); padding: 4px 10px 4px 0; white-space: nowrap; }
td { border-bottom: 1px solid var(--line); padding: 4px 10px 4px 0; vertical-align: top; } tr:last-child td { border-bottom: 0; }
td.n, th.n { text-align: right; } tr.chosen td { background: #eef6f1; } tr.no td { color: var(--soft); }
.scroll { overflow-x: auto; } svg { display: block; max-width: none; } svg.wide { width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 10px 0 0; font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; vertical-align: -1px; }
ul { margin: 0; padding-left: 20px; } .warn { border-left: 4px solid #e0a800; } .stop { border-left: 4px solid var(--bad); }
code, pre { font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; } pre { margin: 0; overflow-x: auto; }
code { background: #eef1f5; border-radius: 4px; padding: 1px 5px; } details summary { cursor: pointer; color: var(--soft); }
footer { color: var(--soft); font-size: 13px; }
@media print { body { background: #fff; } section, .figure { break-inside: avoid; } }
)";

struct Part {
  std::string name, color;
  double value = 0;
};

std::string legend(const std::vector<Part>& parts) {
  std::string out = "<div class=\"legend\">";
  for (const Part& p : parts)
    if (p.value > 0) out += fmt::format("<span><i style=\"background:{}\"></i>{}</span>", p.color, xml_escaped(p.name));
  return out + "</div>\n";
}

// -- memory

constexpr std::array kMemoryColors{"#3d6fd1", "#7aa2ea", "#9b7bd4", "#2c9d79", "#e08a3c", "#d35d8c", "#b5a32b", "#7c8796", "#53b3c8"};

std::vector<Part> memory_parts(const PlannedRank& k) {
  std::vector<Part> out;
  const std::vector<std::string>& names = parallel::memory_categories();
  for (size_t i = 0; i < names.size(); ++i)
    out.push_back({names[i], kMemoryColors[i % kMemoryColors.size()], static_cast<double>(parallel::category_bytes(k.memory, names[i]))});
  return out;
}

constexpr size_t kMostBars = 64;

std::string memory_picture(const PlanReport& r) {
  const size_t bars = std::min(r.ranks.size(), kMostBars);
  const double capacity = static_cast<double>(r.capacity_bytes) / r.ranks_per_device;
  double top = capacity;
  for (size_t i = 0; i < bars; ++i) top = std::max(top, static_cast<double>(r.ranks[i].plan.bytes().total()));
  top *= 1.06;
  const double left = 74, plot = 240, width = std::max(620.0, left + 26.0 * static_cast<double>(bars) + 30), step = std::min(90.0, (width - left - 20) / static_cast<double>(bars));
  const auto y = [&](double v) { return 14 + plot * (1 - v / top); };
  std::string out = fmt::format("<div class=\"scroll\"><svg width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" role=\"img\" aria-label=\"memory of each rank\" font-size=\"11\" font-family=\"inherit\">\n",
                                width, plot + 52);
  // About five lines at round numbers of GiB (or MiB).
  const double raw = top / 5, unit = std::pow(2.0, std::floor(std::log2(raw)));
  for (double v = 0; v < top; v += unit * (raw / unit > 1.4 ? 2 : 1)) {
    out += fmt::format("<line x1=\"{}\" x2=\"{:.0f}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#e4e8ee\"/><text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\" fill=\"#5b6577\">{}</text>\n",
                       left, width, y(v), y(v), left - 8, y(v) + 4, v == 0 ? "0" : human_bytes(v));
  }
  std::vector<Part> all;
  for (size_t i = 0; i < bars; ++i) {
    double below = 0;
    const double x = left + step * static_cast<double>(i) + step * 0.15;
    const std::vector<Part> parts = memory_parts(r.ranks[i]);
    if (all.empty()) all = parts;
    for (size_t p = 0; p < parts.size(); ++p) {
      all[p].value = std::max(all[p].value, parts[p].value);
      if (parts[p].value <= 0) continue;
      out += fmt::format("<rect x=\"{:.1f}\" y=\"{:.2f}\" width=\"{:.1f}\" height=\"{:.2f}\" fill=\"{}\"><title>pp {} tp {}: {} {}</title></rect>\n", x,
                         y(below + parts[p].value), step * 0.7, y(below) - y(below + parts[p].value), parts[p].color, r.ranks[i].coord.pp,
                         r.ranks[i].coord.tp, parts[p].name, human_bytes(parts[p].value));
      below += parts[p].value;
    }
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.0f}\" text-anchor=\"middle\" fill=\"#1c2330\">{}.{}</text>\n", x + step * 0.35, plot + 30, r.ranks[i].coord.pp, r.ranks[i].coord.tp);
  }
  out += fmt::format("<line x1=\"{}\" x2=\"{:.0f}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#c2272d\" stroke-width=\"1.5\" stroke-dasharray=\"6 4\"/><text x=\"{:.0f}\" y=\"{:.1f}\" text-anchor=\"end\" fill=\"#c2272d\">{} can be used{}</text>\n",
                     left, width, y(capacity), y(capacity), width - 2, y(capacity) - 5, human_bytes(capacity), r.ranks_per_device > 1 ? " by each rank" : "");
  out += fmt::format("<text x=\"{}\" y=\"{:.0f}\" fill=\"#5b6577\">rank (pp.tp); every dp replica the same{}</text>\n", left, plot + 48,
                     bars < r.ranks.size() ? fmt::format("; the first {} of {}", bars, r.ranks.size()) : "");
  return out + "</svg></div>\n" + legend(all);
}

// -- step time

/// Pinned on the host by the rank that pins most.
int64_t fullest_host(const PlanReport& r) {
  int64_t most = 0;
  for (const PlannedRank& k : r.ranks) most = std::max(most, k.plan.bytes().host);
  return most;
}

std::vector<Part> time_parts(const StepTime& t) {
  return {{"matrix products", "#3d6fd1", t.gemm + t.head}, {"attention", "#7aa2ea", t.attention},
          {"norms, RoPE, SwiGLU", "#53b3c8", t.elementwise}, {"recomputation", "#b5a32b", t.recompute},
          {"launches and gaps", "#9aa5b5", t.overhead}, {"tp communication, exposed", "#e08a3c", t.tp_comm},
          {"pp communication, exposed", "#f0b27a", t.pp_comm}, {"bubble (waiting for other stages)", "#d8dde5", t.bubble},
          {"dp gradient sums", "#d35d8c", t.dp_comm}, {"optimizer", "#9b7bd4", t.optimizer}, {"sums over rows", "#7a8ba8", t.row_sums},
          {"host memory, exposed", "#5f9e6e", t.offload}};
}

std::string time_picture(const StepTime& t) {
  const std::vector<Part> parts = time_parts(t);
  std::string out = "<svg class=\"wide\" viewBox=\"0 0 1100 46\" role=\"img\" aria-label=\"parts of a step\" font-size=\"12\">\n";
  double x = 0;
  for (const Part& p : parts) {
    if (p.value <= 0) continue;
    const double w = 1100 * p.value / t.total;
    out += fmt::format("<rect x=\"{:.2f}\" y=\"0\" width=\"{:.2f}\" height=\"46\" fill=\"{}\"><title>{}: {} ({:.1f} %)</title></rect>\n", x, w, p.color, xml_escaped(p.name),
                       human_duration(p.value), 100 * p.value / t.total);
    if (w > 42) out += fmt::format("<text x=\"{:.1f}\" y=\"28\" text-anchor=\"middle\" fill=\"{}\">{:.0f} %</text>\n", x + w / 2, p.color == "#d8dde5" ? "#1c2330" : "#fff", 100 * p.value / t.total);
    x += w;
  }
  out += "</svg>\n" + legend(parts) + "<table style=\"margin-top:12px;max-width:520px\">";
  for (const Part& p : parts)
    if (p.value > t.total * 5e-4)
      out += fmt::format("<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{:.1f} %</td></tr>", xml_escaped(p.name), human_duration(p.value), 100 * p.value / t.total);
  return out + fmt::format("<tr><td><b>step</b></td><td class=\"n\"><b>{}</b></td><td></td></tr></table>\n", human_duration(t.total));
}

// -- hosts and ranks

std::string stage_color(int pp, int of) { return fmt::format("hsl({:.0f},{}%,{}%)", 212.0 + 300.0 * pp / std::max(1, of), 55, 82); }

std::string placement_picture(const PlanReport& r) {
  const parallel::MeshShape& mesh = r.chosen.job.mesh;
  // Ranks of each host that has any, by device.
  std::map<int, std::vector<int>> ranks_of;
  for (size_t rank = 0; rank < r.placement.ranks.size(); ++rank) ranks_of[r.placement.ranks[rank].host].push_back(static_cast<int>(rank));
  size_t widest = 1;
  for (auto& [host, ranks] : ranks_of) {
    std::ranges::stable_sort(ranks, {}, [&](int k) { return r.placement.ranks[static_cast<size_t>(k)].gpu; });
    widest = std::max(widest, ranks.size());
  }
  const size_t hosts = ranks_of.size(), shown = std::min<size_t>(hosts, 16), across = std::min<size_t>(widest, 8), down = (std::min<size_t>(widest, 64) + across - 1) / across;
  const double cell_w = 80, cell_h = 58, host_w = cell_w * static_cast<double>(across) + 24, host_h = cell_h * static_cast<double>(down) + 42;
  const auto columns = std::max<size_t>(1, std::min(shown, static_cast<size_t>(1100 / (host_w + 14))));
  const double width = static_cast<double>(columns) * (host_w + 14), height = static_cast<double>((shown + columns - 1) / columns) * (host_h + 14);
  std::string out = fmt::format("<div class=\"scroll\"><svg width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" role=\"img\" aria-label=\"ranks on hosts\" font-size=\"11\">\n", width, height);
  size_t h = 0;
  for (const auto& [host, ranks] : ranks_of) {
    if (h >= shown) break;
    const double x = static_cast<double>(h % columns) * (host_w + 14) + 1, y = static_cast<double>(h / columns) * (host_h + 14) + 1;
    ++h;
    out += fmt::format("<rect x=\"{:.0f}\" y=\"{:.0f}\" width=\"{:.0f}\" height=\"{:.0f}\" rx=\"8\" fill=\"#fafbfd\" stroke=\"#c9d1dc\"/><text x=\"{:.0f}\" y=\"{:.0f}\" fill=\"#5b6577\">{}</text>\n", x, y, host_w, host_h, x + 12, y + 18,
                       xml_escaped(r.hosts.hosts[static_cast<size_t>(host)].name));
    for (size_t i = 0; i < std::min<size_t>(ranks.size(), 64); ++i) {
      const RankPlace& p = r.placement.ranks[static_cast<size_t>(ranks[i])];
      const parallel::MeshCoord c = parallel::coord_of(mesh, ranks[i]);
      const double cx = x + 12 + static_cast<double>(i % across) * cell_w, cy = y + 28 + static_cast<double>(i / across) * cell_h;
      const auto line = [&](double at, const char* style, const std::string& text) {
        return fmt::format("<text x=\"{:.0f}\" y=\"{:.0f}\" text-anchor=\"middle\" {}>{}</text>", cx + cell_w / 2 - 3, cy + at, style, xml_escaped(text));
      };
      out += fmt::format("<rect x=\"{:.0f}\" y=\"{:.0f}\" width=\"{:.0f}\" height=\"{:.0f}\" rx=\"5\" fill=\"{}\" stroke=\"#8a94a6\" stroke-width=\"0.6\"><title>rank {}: {}{}{}</title></rect>", cx, cy, cell_w - 6, cell_h - 6, stage_color(c.pp, mesh.pp), ranks[i],
                         c.str(), p.cpus.empty() ? "" : ", CPUs " + p.cpus.list(), p.nics.empty() ? "" : xml_escaped(", adapter " + p.nics.front()));
      out += line(16, "font-weight=\"600\"", fmt::format("rank {}", ranks[i])) + line(30, "fill=\"#3a4353\" font-size=\"10\"", fmt::format("{}.{}.{}", c.pp, c.dp, c.tp)) +
             line(43, "fill=\"#3a4353\" font-size=\"10\"", p.gpu >= 0 ? fmt::format("GPU {}", p.gpu) : p.cpus.empty() ? std::string("CPU") : fmt::format("{} cores", p.cpus.count())) + "\n";
    }
  }
  out += "</svg></div>\n";
  out += fmt::format("<div class=\"legend\"><span>below the world rank: pp.dp.tp; one colour a stage; {}{}</span></div>\n",
                     r.placement.default_order ? "ranks in the launcher's order" : fmt::format("placed by search: {} of communication a step, {} in the launcher's order", human_duration(r.placement.cost.seconds()), human_duration(r.placement.default_cost.seconds())),
                     shown < hosts ? fmt::format("; the first {} of {} hosts", shown, hosts) : "");
  return out;
}

// -- tables

std::string interval(const parallel::Interval& i) { return i.size() == 0 ? "–" : fmt::format("{}–{}", i.begin, i.end - 1); }

std::string shard_table(const PlanReport& r) {
  std::string out = "<div class=\"scroll\"><table><tr><th>rank (pp.tp)</th><th>layers</th><th>query heads</th><th>kv heads</th><th>ffn</th><th>vocabulary</th><th class=\"n\">parameters</th><th class=\"n\">memory</th></tr>";
  for (size_t i = 0; i < std::min<size_t>(r.ranks.size(), 128); ++i) {
    const PlannedRank& k = r.ranks[i];
    std::string layers;
    for (const auto& c : k.plan.chunks) {
      const parallel::StageSpec& s = r.stages[static_cast<size_t>(c.stage)];
      layers += fmt::format("{}{}{}{}", layers.empty() ? "" : ", ", s.embedding ? "embedding + " : "", interval({s.layer_begin, s.layer_end}), s.head ? " + head" : "");
    }
    out += fmt::format("<tr><td>{}.{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>", k.coord.pp, k.coord.tp, layers, interval(k.shard.q_heads),
                       interval(k.shard.kv_heads), interval(k.shard.ffn), interval(k.shard.vocab), human_count(k.parameters), bytes(k.plan.bytes().total()));
  }
  return out + "</table></div>\n";
}

std::string tensor_table(const PlanReport& r) {
  const auto fullest = std::ranges::max_element(r.ranks, {}, [](const PlannedRank& k) { return k.plan.bytes().total(); });
  std::vector<parallel::MemoryItem> items = fullest->memory;
  std::ranges::stable_sort(items, std::greater<>{}, &parallel::MemoryItem::bytes);
  std::string out = fmt::format("<details><summary>what the fullest rank (pp {} tp {}) holds, by name</summary><table style=\"max-width:640px;margin-top:8px\"><tr><th>category</th><th>tensor</th><th class=\"n\">in flight</th><th class=\"n\">bytes</th></tr>",
                                fullest->coord.pp, fullest->coord.tp);
  for (const auto& i : items)
    out += fmt::format("<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>", i.category, xml_escaped(i.name), i.copies > 1 ? fmt::format("x {}", i.copies) : "", bytes(i.bytes));
  return out + "</table></details>\n";
}

std::string ranking_table(const PlanReport& r) {
  std::string out = "<div class=\"scroll\"><table><tr><th></th><th>layout</th><th>schedule</th><th class=\"n\">micro-batch</th><th>recompute</th><th class=\"n\">memory of a device</th><th class=\"n\">tokens/s</th><th>what it loses</th></tr>";
  for (size_t i = 0; i < std::min<size_t>(r.ranking.size(), 24); ++i) {
    const Candidate& c = r.ranking[i];
    out += fmt::format("<tr class=\"{}\"><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>", i == 0 && c.fits ? "chosen" : c.fits ? "" : "no", i + 1, c.job.mesh.str(),
                       c.job.mesh.pp == 1 ? "–" : fmt::format("{}{}", c.job.schedule, c.job.virtual_stages > 1 ? fmt::format(" x {}", c.job.virtual_stages) : ""), c.job.micro_batch, c.job.recompute_text(), bytes(c.device_bytes),
                       c.fits ? human_count(static_cast<int64_t>(c.time.tokens_per_s)) : "does not fit", c.fits ? xml_escaped(c.reason) : "");
  }
  out += "</table></div>\n";
  if (r.ranking.size() > 24) out += fmt::format("<p class=\"sub\">and {} more</p>", r.ranking.size() - 24);
  return out;
}

std::string list(const std::vector<std::string>& lines) {
  std::string out = "<ul>";
  for (const std::string& l : lines) out += "<li>" + xml_escaped(l) + "</li>";
  return out + "</ul>\n";
}

std::string figure(const std::string& value, const std::string& what, const char* mood = "") {
  return fmt::format("<div class=\"figure\"><b class=\"{}\">{}</b><span>{}</span></div>\n", mood, xml_escaped(value), xml_escaped(what));
}

std::string page(const std::string& title, const std::string& body) {
  return fmt::format("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{}</title><style>{}</style></head>\n<body><main>\n{}"
                     "<footer>Planned by r1run {} without a GPU: expected figures, not measurements.</footer></main></body></html>\n", xml_escaped(title), kStyle, body, R1RUN_VERSION);
}

}  // namespace

std::string plan_html(const PlanReport& r) {
  const parallel::JobShape& job = r.chosen.job;
  const StepTime& t = r.chosen.time;
  const std::string title = fmt::format("{} on {}", r.model_name, r.cluster.title);
  std::string out = fmt::format("<h1>{}</h1>\n<p class=\"sub\">{}, {} parameters, {} layers, hidden {}, heads {}/{}, ffn {}, vocabulary {}. {} tokens a step in rows of {}.</p>\n", xml_escaped(title), r.model.architecture_name(),
                                human_count(r.model.parameters()), r.model.layers, r.model.hidden, r.model.heads, r.model.kv_heads, r.model.ffn, r.model.vocab, human_count(job.batch * job.seq_len), job.seq_len);
  out += "<div class=\"figures\">\n";
  out += figure(r.fits() ? "fits" : "does not fit", fmt::format("{} of {} a {}", bytes(r.chosen.device_bytes), bytes(r.capacity_bytes), r.cluster.gpu() ? "GPU" : "host"), r.fits() ? "good" : "bad");
  out += figure(human_si(t.tokens_per_s, "tok/s"), fmt::format("{} a step", human_duration(t.total)));
  out += figure(job.mesh.str(), fmt::format("{} rank{}{}", job.mesh.world(), job.mesh.world() == 1 ? "" : "s", r.searched ? ", found by search" : ""));
  out += figure(fmt::format("{:.1f} %", 100 * t.bubble_fraction), "of all ranks' pipeline time idle");
  if (r.usd_per_million_tokens) out += figure(fmt::format("${:.3f}", *r.usd_per_million_tokens), fmt::format("a million tokens, at ${:.2f} an hour", *r.usd_per_hour));
  out += "</div>\n";
  if (!r.fits()) {
    out += "<section class=\"stop\"><h2>Does not fit: what would</h2>\n";
    if (r.remedies.empty()) {
      out += "<p>No single change and no two of them would make it fit on this machine: more or larger devices, or shorter rows, are needed.</p>\n";
    } else {
      out += "<table><tr><th>change</th><th class=\"n\">memory of a rank</th><th class=\"n\">step time</th><th></th></tr>";
      for (const auto& m : r.remedies)
        out += fmt::format("<tr><td><code>{}</code></td><td class=\"n\">{}</td><td class=\"n\">{}{:.0f} %</td><td>{}</td></tr>", xml_escaped(m.change), bytes(m.largest_bytes), m.slowdown < 0 ? "−" : "+", std::abs(100 * m.slowdown), xml_escaped(m.explanation));
      out += "</table>\n";
    }
    out += "</section>\n";
  }
  if (!r.warnings.empty()) out += "<section class=\"warn\"><h2>Warnings</h2>" + list(r.warnings) + "</section>\n";
  out += "<section><h2>Layout</h2>\n" + placement_picture(r) +
         fmt::format("<p>{} micro-batch{} of {} row{} a replica{}; recompute <b>{}</b>; weights {}, gradients {}, moments {}{}.</p>\n", job.microbatches(), job.microbatches() == 1 ? "" : "es", job.micro_batch, job.micro_batch == 1 ? "" : "s",
                     job.mesh.pp > 1 ? fmt::format(", schedule {}", job.schedule) : "", job.recompute_text(), dtype_name(job.format.weights), dtype_name(job.format.gradients), dtype_name(job.format.moments),
                     job.format.master ? ", fp32 master weights" : "") +
         fmt::format("<pre>r1run train {}</pre></section>\n", xml_escaped(r.flags));
  out += "<section><h2>Memory of each rank</h2>\n" + memory_picture(r) + tensor_table(r) + "</section>\n";
  out += "<section><h2>Step time</h2>\n" + time_picture(t) + "</section>\n";
  if (job.mesh.pp > 1)
    out += "<section><h2>Schedule</h2>\n<div class=\"scroll\">" + parallel::gantt_svg(r.schedule, r.simulation) +
           "</div>\n<details><summary>as text: stage, action, micro-batch (S sends, R receives)</summary><pre>" + xml_escaped(parallel::print(r.schedule)) + "</pre></details></section>\n";
  out += "<section><h2>Shards</h2>\n" + shard_table(r) + "</section>\n";
  if (!r.ranking.empty()) out += "<section><h2>Layouts that were compared</h2>\n" + ranking_table(r) + "</section>\n";
  std::vector<std::string> carried;
  for (const PlannedGroup& g : r.groups) carried.push_back(fmt::format("{}: {}", g.kind, group_text(g)));
  if (!carried.empty()) out += "<section><h2>What carries each group</h2>" + list(carried) + "</section>\n";
  std::vector<std::string> beside;
  for (const parallel::MemoryItem& i : r.beside) beside.push_back(fmt::format("{}: {} ({})", i.category, bytes(i.bytes), i.name));
  if (job.offloads())
    beside.push_back(fmt::format("pinned on its host: {} by --offload {}; {} on a host, of {} that may be pinned", bytes(fullest_host(r)),
                                 job.offload_text(), bytes(r.chosen.host_bytes), bytes(r.host_capacity_bytes)));
  out += "<section><h2>Memory of a rank beside the plan</h2>" + list(beside) + "</section>\n";
  out += "<section><h2>Assumptions</h2>" + list(r.assumptions) + "</section>\n";
  return page(title, out);
}

std::string comparison_html(const std::vector<PlanReport>& reports) {
  if (reports.empty()) return page("r1run plan", "");
  const PlanReport& first = reports.front();
  const std::string title = fmt::format("{} on {} machines", first.model_name, reports.size());
  std::string out = fmt::format("<h1>{}</h1>\n<p class=\"sub\">{} parameters; {} tokens a step in rows of {}; the best layout of each machine.</p>\n", xml_escaped(title), human_count(first.model.parameters()),
                                human_count(first.chosen.job.batch * first.chosen.job.seq_len), first.chosen.job.seq_len);
  double fastest = 0;
  for (const PlanReport& r : reports)
    if (r.fits()) fastest = std::max(fastest, r.chosen.time.tokens_per_s);
  out += "<section><div class=\"scroll\"><table><tr><th>machine</th><th>layout</th><th>micro-batch, recompute</th><th class=\"n\">memory of a device</th><th class=\"n\">tokens/s</th><th></th><th class=\"n\">$/h</th><th class=\"n\">$/M tokens</th></tr>";
  for (const PlanReport& r : reports) {
    const parallel::JobShape& job = r.chosen.job;
    out += fmt::format("<tr class=\"{}\"><td><b>{}</b><br><span class=\"sub\">{}</span></td><td>{}</td><td>{}, {}</td><td class=\"n\">{} of {}</td><td class=\"n\">{}</td><td><svg width=\"120\" height=\"14\"><rect width=\"{:.1f}\" height=\"14\" rx=\"3\" fill=\"#3d6fd1\"/></svg></td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                       r.fits() ? "" : "no", xml_escaped(r.cluster.text), xml_escaped(r.cluster.title), job.mesh.str(), job.micro_batch, job.recompute_text(), bytes(r.chosen.device_bytes), bytes(r.capacity_bytes),
                       r.fits() ? human_count(static_cast<int64_t>(r.chosen.time.tokens_per_s)) : "does not fit", r.fits() && fastest > 0 ? 120 * r.chosen.time.tokens_per_s / fastest : 0.0,
                       r.usd_per_hour ? fmt::format("{:.2f}", *r.usd_per_hour) : "–", r.usd_per_million_tokens && r.fits() ? fmt::format("{:.3f}", *r.usd_per_million_tokens) : "–");
  }
  out += "</table></div></section>\n";
  for (const PlanReport& r : reports) {
    if (r.warnings.empty() && r.fits()) continue;
    out += fmt::format("<section class=\"{}\"><h2>{}</h2>", r.fits() ? "warn" : "stop", xml_escaped(r.cluster.text));
    std::vector<std::string> lines = r.warnings;
    if (!r.fits() && r.remedies.empty()) lines.insert(lines.begin(), "does not fit, and no one or two changes would make it");
    for (const auto& m : r.remedies) lines.push_back(fmt::format("would fit with {} ({:+.0f} % step time)", m.change, 100 * m.slowdown));
    out += list(lines) + "</section>\n";
  }
  return page(title, out);
}

}  // namespace r1::launch
