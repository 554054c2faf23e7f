// What `r1run tokenize --stats` says of a data set.
#include <algorithm>
#include <cstdint>
#include <ostream>
#include <utility>
#include <vector>

#include "runtime/core/human.h"
#include "runtime/data/packing.h"
#include "runtime/data/row_json.h"
#include "runtime/data/tokenize_command.h"

namespace r1::data {
namespace {

/// What a row length would give.
struct Fit {
  int64_t seq_len = 0, rows = 0;
  int64_t fitting = 0;  ///< samples that fit whole
  double fill = 0.0, tokens_kept = 0.0;
};

struct Summary {
  std::vector<int32_t> lengths;  ///< of all samples
  int64_t longest = 0, total = 0;
  std::vector<int64_t> class_ends;  ///< of the histogram of lengths
  std::vector<int64_t> histogram;
  std::vector<Fit> fits;
};

/// Upper ends of the histogram's classes: powers of two.
[[nodiscard]] std::vector<int64_t> length_classes(int64_t longest) {
  std::vector<int64_t> ends = {32};
  while (ends.back() < longest) ends.push_back(ends.back() * 2);
  return ends;
}

/// The usual row lengths up to the first that holds every sample, and the one that was asked for.
[[nodiscard]] std::vector<int64_t> row_lengths(int64_t longest, int64_t seq_len) {
  std::vector<int64_t> out = {512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072};
  while (out.size() > 1 && out[out.size() - 2] >= longest) out.pop_back();
  out.push_back(seq_len);
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

/// How full rows are with the longer samples cut or dropped.
[[nodiscard]] Fit fit_of(int64_t seq_len, std::vector<int32_t> lengths,
                         const std::vector<PlanSource>& sources, const DataOptions& options) {
  Fit fit;
  fit.seq_len = seq_len;
  double tokens = 0.0;
  for (const PlanSource& s : sources)
    for (uint32_t i = 0; i < s.samples; ++i) {
      int32_t& n = lengths[s.first_sample + i];
      if (n <= seq_len)
        ++fit.fitting;
      else
        n = options.too_long == "drop" ? 0 : static_cast<int32_t>(seq_len);
      tokens += s.weight * n;
      fit.tokens_kept += n;
    }
  const RowPlan plan(
      std::move(lengths), sources,
      {.seq_len = seq_len, .pack = options.pack, .shuffle = options.shuffle, .seed = options.seed});
  fit.rows = plan.rows();
  fit.fill =
      fit.rows == 0 ? 0.0 : tokens / (static_cast<double>(fit.rows) * static_cast<double>(seq_len));
  return fit;
}

[[nodiscard]] Summary summary_of(const Dataset& dataset, const DataOptions& options) {
  Summary out;
  for (int64_t i = 0; i < dataset.samples(); ++i) {
    out.lengths.push_back(static_cast<int32_t>(dataset.sample_length(i)));
    out.longest = std::max<int64_t>(out.longest, out.lengths.back());
    out.total += out.lengths.back();
  }
  const auto& ends = out.class_ends = length_classes(out.longest);
  out.histogram.resize(ends.size());
  for (const int32_t n : out.lengths) {
    const auto at = std::lower_bound(ends.begin(), ends.end(), n);
    ++out.histogram[static_cast<size_t>(at - ends.begin())];
  }
  std::vector<PlanSource> sources;
  uint32_t first = 0;
  for (const SourceStats& s : dataset.stats().sources) {
    sources.push_back({s.weight, first, static_cast<uint32_t>(s.samples)});
    first += static_cast<uint32_t>(s.samples);
  }
  for (const int64_t seq_len : row_lengths(out.longest, dataset.seq_len()))
    out.fits.push_back(fit_of(seq_len, out.lengths, sources, options));
  return out;
}

[[nodiscard]] Json json_of(const Dataset& dataset, const Summary& summary) {
  const DatasetStats& stats = dataset.stats();
  Json j = {{"rows", stats.rows},
            {"seq_len", dataset.seq_len()},
            {"samples", stats.samples},
            {"tokens", stats.tokens},
            {"trained_tokens", stats.trained_tokens},
            {"fill", stats.fill},
            {"bad_rows", stats.bad_rows},
            {"too_long", stats.too_long},
            {"unclosed_think", stats.unclosed_think},
            {"empty_answers", stats.empty_answers},
            {"longest", summary.longest}};
  for (const SourceStats& s : stats.sources)
    j["sources"].push_back({{"path", s.path.string()},
                            {"format", s.format},
                            {"weight", s.weight},
                            {"samples", s.samples},
                            {"tokens", s.tokens},
                            {"trained_tokens", s.trained_tokens},
                            {"longest", s.longest},
                            {"bad_rows", s.bad_rows},
                            {"too_long", s.too_long},
                            {"unclosed_think", s.unclosed_think},
                            {"empty_answers", s.empty_answers}});
  for (size_t i = 0; i < summary.class_ends.size(); ++i)
    j["histogram"].push_back({{"up_to", summary.class_ends[i]}, {"samples", summary.histogram[i]}});
  for (const Fit& f : summary.fits)
    j["seq_lens"].push_back({{"seq_len", f.seq_len},
                             {"samples_that_fit", f.fitting},
                             {"rows", f.rows},
                             {"fill", f.fill}});
  j["bad_row_examples"] = Json::array();
  for (const BadRow& b : stats.bad_row_examples)
    j["bad_row_examples"].push_back(
        {{"path", b.path.string()}, {"line", b.line}, {"reason", b.reason}});
  return j;
}

[[nodiscard]] double percent(double part, double whole) {
  return whole > 0.0 ? 100.0 * part / whole : 0.0;
}
[[nodiscard]] double percent(int64_t part, size_t whole) {
  return percent(static_cast<double>(part), static_cast<double>(whole));
}

void print_sources(const DatasetStats& stats, std::ostream& out) {
  for (const SourceStats& s : stats.sources) {
    out << fmt::format(
        "{} ({}{}): {} samples, {} tokens, {:.1f} % trained, longest {}", s.path.string(), s.format,
        s.weight == 1.0 ? std::string() : fmt::format(", weight {}", s.weight),
        human_count(s.samples), human_count(s.tokens),
        percent(static_cast<double>(s.trained_tokens), static_cast<double>(s.tokens)),
        human_count(s.longest));
    if (s.bad_rows > 0) out << fmt::format(", {} bad rows", human_count(s.bad_rows));
    if (s.unclosed_think > 0)
      out << fmt::format(", {} answers that never close <think>", human_count(s.unclosed_think));
    if (s.empty_answers > 0) out << fmt::format(", {} empty answers", human_count(s.empty_answers));
    out << '\n';
  }
  for (const BadRow& b : stats.bad_row_examples)
    out << fmt::format("  bad row {}:{}: {}\n", b.path.string(), b.line, b.reason);
}

void print_histogram(const Summary& summary, std::ostream& out) {
  out << "\nlength in tokens      samples   share  cumulative\n";
  const std::vector<int64_t>&ends = summary.class_ends, &counts = summary.histogram;
  int64_t seen = 0, begin = 1;
  const int64_t most = *std::max_element(counts.begin(), counts.end());
  for (size_t i = 0; i < ends.size(); ++i) {
    seen += counts[i];
    const auto bar = static_cast<size_t>(counts[i] * 40 / std::max<int64_t>(most, 1));
    if (seen > 0 || counts[i] > 0)
      out << fmt::format("{:>7} - {:<7} {:>12} {:>6.1f} % {:>8.1f} %  {}\n", begin, ends[i],
                         human_count(counts[i]), percent(counts[i], summary.lengths.size()),
                         percent(seen, summary.lengths.size()), std::string(bar, '#'));
    begin = ends[i] + 1;
  }
}

void print_fits(const Summary& summary, int64_t seq_len, const DataOptions& options,
                std::ostream& out) {
  out << fmt::format(
      "\n  seq-len  samples that fit  tokens kept        rows    full   ({}{}, longer samples: "
      "{})\n",
      options.pack ? "packed" : "not packed", options.shuffle ? "" : ", in the file's order",
      options.too_long == "drop" ? "dropped" : "truncated");
  for (const Fit& f : summary.fits)
    out << fmt::format("{}{:>8} {:>15.1f} % {:>10.1f} % {:>11} {:>6.1f} %\n",
                       f.seq_len == seq_len ? '*' : ' ', f.seq_len,
                       percent(f.fitting, summary.lengths.size()),
                       percent(f.tokens_kept, static_cast<double>(summary.total)),
                       human_count(f.rows), 100.0 * f.fill);
}

void print_epoch(const DatasetStats& stats, int64_t seq_len, std::ostream& out) {
  out << fmt::format(
      "\nan epoch at --seq-len {}: {} rows, {} samples, {} tokens ({} trained), rows {:.1f} % full",
      seq_len, human_count(stats.rows), human_count(stats.samples), human_count(stats.tokens),
      human_count(stats.trained_tokens), 100.0 * stats.fill);
  if (stats.too_long > 0)
    out << fmt::format(
        "; {} samples are too long (training needs --too-long truncate or drop, or a larger "
        "--seq-len)",
        human_count(stats.too_long));
  out << '\n';
}

}  // namespace

void print_dataset_stats(const Dataset& dataset, const DataOptions& options, bool json,
                         std::ostream& out) {
  const Summary summary = summary_of(dataset, options);
  if (json) {
    out << dump(json_of(dataset, summary)) << '\n';
    return;
  }
  print_sources(dataset.stats(), out);
  print_histogram(summary, out);
  print_fits(summary, dataset.seq_len(), options, out);
  print_epoch(dataset.stats(), dataset.seq_len(), out);
}

}  // namespace r1::data
