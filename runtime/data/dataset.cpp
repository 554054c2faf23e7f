#include "runtime/data/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "runtime/core/error.h"
#include "runtime/data/cache.h"
#include "runtime/data/data_options.h"
#include "runtime/data/formats.h"
#include "runtime/data/open_source.h"
#include "runtime/data/packing.h"
#include "runtime/data/tokenize_file.h"

namespace r1::data {
namespace fs = std::filesystem;

struct Dataset::Impl {
  struct Source {
    std::shared_ptr<const CacheFile> cache;
    std::string name;
    double weight = 1.0;
    uint32_t first = 0, count = 0;  // global sample ids
  };
  std::vector<Source> sources;
  std::unique_ptr<const RowPlan> plan;
  DatasetStats stats;
  int64_t seq_len = 0, samples = 0;
  uint64_t fingerprint = 0;
  int32_t pad_id = 0;

  struct Place {
    size_t source;
    uint64_t sample;
  };
  [[nodiscard]] Place place(int64_t sample) const {
    R1_CHECK(sample >= 0 && sample < samples, "sample {} of {}", sample, samples);
    size_t s = 0;
    while (sample >= int64_t{sources[s].first} + sources[s].count) ++s;
    return {s, static_cast<uint64_t>(sample) - sources[s].first};
  }

  struct Kept {
    double tokens = 0.0, trained = 0.0;  // in one epoch
    std::string first_too_long;          // file:line: length
  };
  void build(const DataOptions& options, const std::vector<Hash128>& keys);
  [[nodiscard]] std::vector<int32_t> number_samples(int64_t vocab_size);
  [[nodiscard]] Kept fit_into_rows(bool drop, std::vector<int32_t>* lengths);
  void check_kept(const Kept& kept, const std::string& too_long, uint64_t longest) const;
  [[nodiscard]] uint64_t hash_of(const DataOptions& options,
                                 const std::vector<Hash128>& keys) const;
};

// Gives every sample its number; returns their lengths.
std::vector<int32_t> Dataset::Impl::number_samples(int64_t vocab_size) {
  std::vector<int32_t> lengths;
  for (Source& s : sources) {
    const CacheTotals& totals = s.cache->totals();
    if (lengths.size() + totals.samples >= std::numeric_limits<uint32_t>::max())
      throw UsageError("more than {} samples in all data files together",
                       std::numeric_limits<uint32_t>::max() - 1);
    s.first = static_cast<uint32_t>(lengths.size());
    s.count = static_cast<uint32_t>(totals.samples);
    s.cache->lengths(lengths);
    if (vocab_size > 0 && totals.max_id >= vocab_size)
      throw DataError(
          "{}:{}: token id {}, but the model's vocabulary has {} ids: the data's tokenizer and the "
          "model do not belong together",
          s.name, totals.max_id_line, totals.max_id, vocab_size);
  }
  samples = static_cast<int64_t>(lengths.size());
  if (samples == 0)
    throw DataError("no samples in {}",
                    sources.empty() ? "the data (no --data given)" : sources[0].name);
  return lengths;
}

// Shortens what is longer than a row, to seq_len or (drop) to nothing, and counts it.
Dataset::Impl::Kept Dataset::Impl::fit_into_rows(bool drop, std::vector<int32_t>* lengths) {
  Kept out;
  for (size_t i = 0; i < sources.size(); ++i) {
    const Source& s = sources[i];
    const CacheTotals& totals = s.cache->totals();
    SourceStats& stat = stats.sources[i];
    auto tokens = static_cast<int64_t>(totals.tokens),
         trained = static_cast<int64_t>(totals.trained_tokens);
    for (uint32_t j = 0; j < s.count; ++j) {
      int32_t& length = (*lengths)[s.first + j];
      if (length <= seq_len) continue;
      if (out.first_too_long.empty())
        out.first_too_long = fmt::format("{}:{}: {} tokens", s.name, s.cache->line(j), length);
      ++stat.too_long;
      const auto words = s.cache->sample(j).words;
      for (size_t k = drop ? 1 : static_cast<size_t>(seq_len); k < words.size(); ++k)
        trained -= (words[k] & kTrainedBit) != 0;
      tokens -= drop ? length : length - seq_len;
      length = drop ? 0 : static_cast<int32_t>(seq_len);
    }
    stats.too_long += stat.too_long;
    out.tokens += s.weight * static_cast<double>(tokens);
    out.trained += s.weight * static_cast<double>(trained);
  }
  return out;
}

void Dataset::Impl::check_kept(const Kept& kept, const std::string& too_long,
                               uint64_t longest) const {
  if (stats.too_long > 0 && too_long == "error")
    throw DataError(
        "{}, but a row holds --seq-len {}; {} of {} samples are too long, the longest has {} "
        "tokens. Raise --seq-len, or give "
        "--too-long truncate or --too-long drop",
        kept.first_too_long, seq_len, stats.too_long, samples, longest);
  if (stats.too_long == samples && too_long == "drop")
    throw DataError(
        "all {} samples are longer than --seq-len {} and were dropped (--too-long drop); the "
        "longest has {} tokens",
        samples, seq_len, longest);
  if (kept.trained < 0.5)
    throw DataError("{}: no token is trained: every target is masked{}", sources[0].name,
                    stats.too_long > 0 ? " or was cut off with --too-long truncate" : "");
}

uint64_t Dataset::Impl::hash_of(const DataOptions& options,
                                const std::vector<Hash128>& keys) const {
  Hasher hasher;
  for (size_t i = 0; i < sources.size(); ++i) {
    hasher.number(keys[i].lo);
    hasher.number(keys[i].hi);
    hasher.number(std::bit_cast<uint64_t>(sources[i].weight));
  }
  hasher.number(static_cast<uint64_t>(seq_len));
  hasher.number((options.pack ? 1u : 0u) | (options.shuffle ? 2u : 0u));
  hasher.number(options.shuffle ? options.seed : 0);
  hasher.field(stats.too_long > 0 ? options.too_long : "");
  return hasher.finish().lo;
}

// From opened sources to rows.
void Dataset::Impl::build(const DataOptions& options, const std::vector<Hash128>& keys) {
  std::vector<int32_t> lengths = number_samples(options.vocab_size);
  uint64_t longest = 0;
  for (const Source& s : sources) longest = std::max(longest, s.cache->totals().longest);
  seq_len =
      options.seq_len > 0 ? options.seq_len : std::min(static_cast<int64_t>(longest), kMaxSeqLen);
  const Kept kept = fit_into_rows(options.too_long == "drop", &lengths);
  check_kept(kept, options.too_long, longest);

  std::vector<PlanSource> plan_sources;
  for (const Source& s : sources) plan_sources.push_back({s.weight, s.first, s.count});
  plan = std::make_unique<const RowPlan>(std::move(lengths), plan_sources,
                                         PlanOptions{.seq_len = seq_len,
                                                     .pack = options.pack,
                                                     .shuffle = options.shuffle,
                                                     .seed = options.seed});
  stats.rows = plan->rows();
  stats.samples = plan->slots();
  stats.tokens = std::llround(kept.tokens);
  stats.trained_tokens = std::llround(kept.trained);
  stats.fill = kept.tokens / (static_cast<double>(stats.rows) * static_cast<double>(seq_len));
  fingerprint = hash_of(options, keys);
}

namespace {

[[nodiscard]] SourceStats stats_of(const CacheTotals& totals, fs::path path) {
  SourceStats stat;
  stat.path = std::move(path);
  stat.format = format_name(static_cast<Format>(totals.format));
  stat.samples = static_cast<int64_t>(totals.samples);
  stat.tokens = static_cast<int64_t>(totals.tokens);
  stat.trained_tokens = static_cast<int64_t>(totals.trained_tokens);
  stat.longest = static_cast<int64_t>(totals.longest);
  stat.bad_rows = static_cast<int64_t>(totals.bad_rows);
  stat.unclosed_think = static_cast<int64_t>(totals.unclosed_think);
  stat.empty_answers = static_cast<int64_t>(totals.empty_answers);
  return stat;
}

/// The first that the model has.
[[nodiscard]] int32_t choose_pad_id(const DataOptions& options, const TokenizerSettings& settings) {
  for (const std::optional<int32_t>& id : {options.pad_id, settings.pad_id, settings.end_id})
    if (id && *id >= 0 && (options.vocab_size <= 0 || *id < options.vocab_size)) return *id;
  return 0;
}

}  // namespace

Dataset Dataset::open(const DataOptions& options, const text::Tokenizer& tokenizer) {
  return open(options, &tokenizer);
}

Dataset Dataset::open(const DataOptions& options, const text::Tokenizer* tokenizer) {
  check_options(options);
  if (options.sources.empty()) throw UsageError("no data: name a file with --data FILE[:WEIGHT]");
  const TokenizerSettings settings = tokenizer_settings(options, tokenizer);
  auto impl = std::make_shared<Impl>();
  std::vector<Hash128> keys;
  for (const DataSource& source : options.sources) {
    OpenedSource opened = open_source(source, options, tokenizer, settings,
                                      options.max_bad_rows - impl->stats.bad_rows);
    SourceStats stat = stats_of(opened.cache->totals(), source.path);
    stat.weight = source.weight;
    stat.content = opened.content;
    stat.cached = opened.cached;
    impl->stats.bad_rows += stat.bad_rows;
    impl->stats.unclosed_think += stat.unclosed_think;
    impl->stats.empty_answers += stat.empty_answers;
    for (BadRow row : opened.cache->bad_rows()) {
      row.path = source.path;
      impl->stats.bad_row_examples.push_back(std::move(row));
    }
    impl->stats.sources.push_back(std::move(stat));
    impl->sources.push_back({std::move(opened.cache), source.path.string(), source.weight});
    keys.push_back(opened.key);
    if (impl->stats.bad_rows > options.max_bad_rows)
      throw DataError("{}", describe_bad_rows(impl->stats.bad_row_examples, impl->stats.bad_rows,
                                              true, options.max_bad_rows));
  }
  impl->build(options, keys);
  impl->pad_id = choose_pad_id(options, settings);
  return Dataset(std::move(impl));
}

Dataset Dataset::from_tokens(std::vector<TokenSample> samples, const DataOptions& options,
                             int32_t pad_id) {
  DataOptions plain = options;
  plain.sources.clear();
  plain.format = "input-ids";
  check_options(plain);
  Hasher hasher;
  for (const TokenSample& s : samples) {
    hasher.number(s.ids.size());
    hasher.update(s.ids.data(), s.ids.size() * sizeof(int32_t));
    hasher.number(s.labels.size());
    hasher.update(s.labels.data(), s.labels.size() * sizeof(int32_t));
  }
  const Hash128 key = hasher.finish();
  CacheWriter writer(CacheWriter::Place::kMemory, {}, key);
  int64_t index = 0;
  for (TokenSample& s : samples) {
    if (s.ids.empty() || (!s.labels.empty() && s.labels.size() != s.ids.size()))
      throw DataError("sample {}: {} ids and {} labels", index, s.ids.size(), s.labels.size());
    for (size_t i = 0; i < s.ids.size(); ++i)
      if (s.ids[i] < 0 || (!s.labels.empty() && s.labels[i] < 0 && s.labels[i] != -100))
        throw DataError("sample {}: position {} is no token id", index, i);
    ParsedRow row;
    row.kind = ParsedRow::Kind::kIds;
    row.ids = std::move(s.ids);
    row.labels = std::move(s.labels);
    writer.add(encode_row(row, {}), ++index);
  }
  auto impl = std::make_shared<Impl>();
  auto cache = writer.finish(Format::kInputIds);
  impl->stats.sources.push_back(stats_of(cache->totals(), "memory"));
  impl->sources.push_back({std::move(cache), "memory"});
  impl->build(plain, {key});
  impl->pad_id = pad_id;
  return Dataset(std::move(impl));
}

int64_t Dataset::rows_per_epoch() const { return impl_->plan->rows(); }
int64_t Dataset::seq_len() const { return impl_->seq_len; }
int64_t Dataset::samples() const { return impl_->samples; }
uint64_t Dataset::fingerprint() const { return impl_->fingerprint; }
const DatasetStats& Dataset::stats() const { return impl_->stats; }
int32_t Dataset::pad_id() const { return impl_->pad_id; }

Row Dataset::row(int64_t global_row) const {
  const auto length = static_cast<size_t>(impl_->seq_len);
  Row row;
  row.ids.reserve(length);
  row.targets.reserve(length);
  for (const uint32_t id : impl_->plan->samples(global_row)) {
    const auto [source, index] = impl_->place(id);
    const CacheFile::View view = impl_->sources[source].cache->sample(index);
    const size_t n = std::min(view.words.size(), length);
    R1_CHECK(row.ids.size() + n <= length, "row {} holds {} + {} tokens", global_row,
             row.ids.size(), n);
    for (size_t i = 0; i < n; ++i) {
      row.ids.push_back(static_cast<int32_t>(view.words[i] & ~kTrainedBit));
      const bool target = i + 1 < n && (view.words[i + 1] & kTrainedBit) != 0;
      const uint32_t next = !target               ? 0
                            : view.labels.empty() ? view.words[i + 1] & ~kTrainedBit
                                                  : view.labels[i + 1];
      row.targets.push_back(target ? static_cast<int32_t>(next) : -1);
      row.trained_tokens += target ? 1 : 0;
    }
    row.segments.push_back(static_cast<int32_t>(n));
    row.samples.push_back(id);
  }
  if (row.ids.size() < length)
    row.segments.push_back(static_cast<int32_t>(length - row.ids.size()));
  row.ids.resize(length, impl_->pad_id);
  row.targets.resize(length, -1);
  return row;
}

int64_t Dataset::sample_length(int64_t sample) const {
  const auto [source, index] = impl_->place(sample);
  return impl_->sources[source].cache->length(index);
}
int64_t Dataset::sample_line(int64_t sample) const {
  const auto [source, index] = impl_->place(sample);
  return impl_->sources[source].cache->line(index);
}
int Dataset::sample_source(int64_t sample) const {
  return static_cast<int>(impl_->place(sample).source);
}

TokenSample Dataset::sample(int64_t sample) const {
  const auto [source, index] = impl_->place(sample);
  const CacheFile::View view = impl_->sources[source].cache->sample(index);
  TokenSample out;
  for (size_t i = 0; i < view.words.size(); ++i) {
    const bool trained = (view.words[i] & kTrainedBit) != 0;
    const auto id = static_cast<int32_t>(view.words[i] & ~kTrainedBit);
    out.ids.push_back(id);
    out.labels.push_back(!trained              ? -100
                         : view.labels.empty() ? id
                                               : static_cast<int32_t>(view.labels[i]));
  }
  return out;
}

}  // namespace r1::data
