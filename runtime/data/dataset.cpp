#include "runtime/data/dataset.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>
#include <thread>

#include "runtime/core/error.h"
#include "runtime/core/log.h"
#include "runtime/data/cache.h"
#include "runtime/data/formats.h"
#include "runtime/data/input.h"
#include "runtime/data/packing.h"
#include "runtime/data/tokenize_file.h"
#include "runtime/tokenizer/chat.h"
#include "runtime/tokenizer/tokenizer.h"

namespace r1::data {
namespace fs = std::filesystem;

namespace {

// Part of every cache key: raise it when the same row would become other tokens.
constexpr uint64_t kEncodingVersion = 3;
constexpr int64_t kMaxSeqLen = int64_t{1} << 24;  // tables of the packing have an entry a token

constexpr std::array<std::string_view, 9> kFormatNames = {"auto",
                                                          "messages",
                                                          "sharegpt",
                                                          "alpaca",
                                                          "prompt-completion",
                                                          "question-answer",
                                                          "question-response",
                                                          "text",
                                                          "input-ids"};

/// What a model directory says about its tokenizer, beside tokenizer.json.
struct TokenizerSettings {
  std::optional<text::TemplateKind> chat_template;
  std::string no_template_reason;
  std::optional<int32_t> end_id, pad_id;
};

[[nodiscard]] std::optional<int32_t> special_token(const nlohmann::json& config, const char* key,
                                                   const text::Tokenizer& tokenizer) {
  const auto it = config.find(key);
  if (it == config.end()) return std::nullopt;
  if (it->is_string()) return tokenizer.token_id(it->get_ref<const std::string&>());
  if (it->is_object() && it->contains("content") && it->at("content").is_string())
    return tokenizer.token_id(it->at("content").get_ref<const std::string&>());
  return std::nullopt;
}

[[nodiscard]] TokenizerSettings tokenizer_settings(const DataOptions& options,
                                                   const text::Tokenizer* tokenizer) {
  TokenizerSettings out;
  if (tokenizer == nullptr) return out;
  fs::path dir = options.model_dir;
  std::error_code ignored;
  if (dir.empty()) {
    dir = tokenizer->source_name();
    if (!fs::is_directory(dir, ignored)) dir = dir.parent_path();
  }
  if (!options.template_name.empty()) {
    out.chat_template = text::template_by_name(options.template_name);
  } else if (dir.empty() || !fs::is_directory(dir, ignored)) {
    out.no_template_reason =
        "the tokenizer came without a directory; name a template with --template";
  } else {
    try {
      out.chat_template = text::load_template(dir);
    } catch (const DataError& e) {
      out.no_template_reason = e.what();
    }
  }
  if (!dir.empty()) {
    std::ifstream in(dir / "tokenizer_config.json");
    if (in) {
      const auto config = nlohmann::json::parse(in, nullptr, false);
      if (config.is_object()) {
        out.end_id = special_token(config, "eos_token", *tokenizer);
        out.pad_id = special_token(config, "pad_token", *tokenizer);
      }
    }
  }
  // A lone tokenizer.json does not say which token ends a text.
  for (const char* name :
       {"<｜end▁of▁sentence｜>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "</s>"})
    if (!out.end_id) out.end_id = tokenizer->token_id(name);
  return out;
}

void check_options(const DataOptions& options) {
  const auto check = [](bool ok, const char* option, const std::string& value,
                        const char* allowed) {
    if (!ok) throw UsageError("{} {}: allowed is {}", option, value, allowed);
  };
  check(options.too_long == "error" || options.too_long == "truncate" || options.too_long == "drop",
        "--too-long", options.too_long, "error, truncate or drop");
  check(options.think_history == "last" || options.think_history == "all", "--think-history",
        options.think_history, "last or all");
  check(options.max_bad_rows >= 0, "--max-bad-rows", std::to_string(options.max_bad_rows),
        "0 or more");
  check(options.seq_len >= 0 && options.seq_len <= kMaxSeqLen, "--seq-len",
        std::to_string(options.seq_len), "1 to 16777216 (0: as long as the longest sample)");
  if (std::find(kFormatNames.begin(), kFormatNames.end(), options.format) == kFormatNames.end()) {
    std::string names;
    for (const std::string_view name : kFormatNames)
      names += (names.empty() ? "" : ", ") + std::string(name);
    throw UsageError("--format {}: allowed are {}", options.format, names);
  }
  for (const DataSource& source : options.sources)
    if (!(source.weight > 0.0) || !std::isfinite(source.weight))
      throw UsageError("--data {}: weight {}, allowed is a number above 0", source.path.string(),
                       source.weight);
}

/// Removes what writers that were killed left behind. Only called with the lock held; a file that
/// still grows (written without locks) is young.
void remove_stale_temporaries(const fs::path& cache_file) {
  std::error_code ignored;
  const std::string prefix = cache_file.filename().string() + ".tmp.";
  for (const auto& entry : fs::directory_iterator(cache_file.parent_path(), ignored)) {
    if (!entry.path().filename().string().starts_with(prefix)) continue;
    const auto time = entry.last_write_time(ignored);
    if (!ignored && fs::file_time_type::clock::now() - time > std::chrono::minutes(10))
      fs::remove(entry.path(), ignored);
  }
}

struct OpenedSource {
  std::shared_ptr<const CacheFile> cache;
  Hash128 key;
  uint64_t content = 0;
  bool cached = false;
};

[[nodiscard]] OpenedSource open_source(const DataSource& source, const DataOptions& options,
                                       const text::Tokenizer* tokenizer,
                                       const TokenizerSettings& settings, int64_t max_bad_rows) {
  // Opened first: an error about the file itself comes before any about the cache.
  InputFile input(source.path);
  const Hash128 content = content_hash(source.path, options.cache_dir, options.progress);

  const bool text_format = options.format == "text";
  Hasher hasher;
  hasher.number(kEncodingVersion);
  hasher.number(content.lo);
  hasher.number(content.hi);
  hasher.number(tokenizer == nullptr ? 0 : tokenizer->fingerprint());
  hasher.field(settings.chat_template ? text::template_name(*settings.chat_template) : "");
  hasher.field(options.format);
  hasher.field(source.path.extension().string() +
               source.path.stem().extension().string());  // tells text from JSON
  hasher.field(options.think_history);
  hasher.number((options.train_on_prompt ? 1u : 0u) | (options.parse_special ? 2u : 0u));
  hasher.number(settings.end_id ? static_cast<uint64_t>(*settings.end_id) + 1 : 0);
  OpenedSource out;
  out.key = hasher.finish();
  out.content = content.lo;

  TokenizeFileOptions tokenize;
  tokenize.format = format_by_name(options.format);
  tokenize.encode.tokenizer = tokenizer;
  tokenize.encode.chat_template = settings.chat_template;
  tokenize.encode.think_history =
      options.think_history == "all" ? text::ThinkHistory::kAll : text::ThinkHistory::kLast;
  tokenize.encode.train_on_prompt = options.train_on_prompt;
  tokenize.encode.parse_special = options.parse_special;
  tokenize.encode.end_id = settings.end_id;
  tokenize.no_template_reason = settings.no_template_reason;
  tokenize.threads = options.threads;
  tokenize.max_bad_rows = max_bad_rows;
  tokenize.progress = options.progress;
  const auto make = [&](CacheWriter& writer) {
    RecordReader reader(std::move(input), text_format                ? RecordReader::Text::kYes
                                          : options.format == "auto" ? RecordReader::Text::kByName
                                                                     : RecordReader::Text::kNo);
    const Format format = tokenize_rows(reader, writer, tokenize);
    if (reader.input().stored_hash() != content)
      throw DataError("{}: the file changed while it was read; start again when it is complete",
                      source.path.string());
    return writer.finish(format);
  };

  if (options.cache_dir.empty()) {
    CacheWriter writer(CacheWriter::Place::kUnnamed, {}, out.key);
    out.cache = make(writer);
    return out;
  }
  const fs::path file = options.cache_dir / (out.key.hex() + ".r1data");
  const auto look = [&](bool warn) {
    std::string damage;
    out.cache = CacheFile::open(file, out.key, &damage);
    if (out.cache == nullptr && !damage.empty() && warn)
      log::warn("{}: damaged cache file ({}); the data is tokenised again", file.string(), damage);
    return out.cache != nullptr;
  };
  out.cached = true;
  if (look(false)) return out;
  DataProgress waiting{.path = source.path, .bytes_total = input.stored_bytes(), .waiting = true};
  auto last_report = std::chrono::steady_clock::now();
  std::optional<CacheLock> lock;
  while (!(lock = CacheLock::try_acquire(file))) {
    // Another process is at it. No time limit: it either finishes or dies, and then the lock is
    // ours.
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const auto now = std::chrono::steady_clock::now();
    if (options.progress && now - last_report > std::chrono::milliseconds(250)) {
      last_report = now;
      options.progress(waiting);
    }
  }
  if (look(true)) return out;
  out.cached = false;
  remove_stale_temporaries(file);
  CacheWriter writer(CacheWriter::Place::kNamed, file, out.key);
  out.cache = make(writer);
  return out;
}

}  // namespace

std::optional<int32_t> end_of_text_id(const fs::path& model_dir, const text::Tokenizer& tokenizer) {
  DataOptions options;
  options.model_dir = model_dir;
  return tokenizer_settings(options, &tokenizer).end_id;
}

std::span<const std::string_view> format_names() { return kFormatNames; }

DataSource parse_data_source(std::string_view text) {
  std::error_code ignored;
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || fs::exists(fs::path(text), ignored)) {
    if (text.empty()) throw UsageError("--data: the file's name is empty");
    return {fs::path(text), 1.0};
  }
  const std::string_view number = text.substr(colon + 1);
  double weight = 0.0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), weight);
  if (error != std::errc() || end != number.data() + number.size() || !(weight > 0.0) ||
      !std::isfinite(weight))
    throw UsageError(
        "--data {}: there is no such file, and '{}' behind the colon is no weight (FILE[:WEIGHT], "
        "WEIGHT a number above 0)",
        text, number);
  if (colon == 0) throw UsageError("--data {}: the file's name is empty", text);
  return {fs::path(text.substr(0, colon)), weight};
}

struct Dataset::Impl {
  struct Source {
    std::shared_ptr<const CacheFile> cache;
    uint32_t first = 0, count = 0;  // global sample ids
    std::string name;
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
  void build(const DataOptions& options, std::vector<Hash128> keys);
};

void Dataset::Impl::build(const DataOptions& options, std::vector<Hash128> keys) {
  std::vector<int32_t> lengths;
  std::vector<PlanSource> plan_sources;
  uint64_t longest = 0;
  for (size_t i = 0; i < sources.size(); ++i) {
    Source& s = sources[i];
    const CacheTotals& totals = s.cache->totals();
    if (lengths.size() + totals.samples >= std::numeric_limits<uint32_t>::max())
      throw UsageError("more than {} samples in all data files together",
                       std::numeric_limits<uint32_t>::max() - 1);
    s.first = static_cast<uint32_t>(lengths.size());
    s.count = static_cast<uint32_t>(totals.samples);
    s.cache->lengths(lengths);
    longest = std::max(longest, totals.longest);
    const double weight = options.sources.empty() ? 1.0 : options.sources[i].weight;
    plan_sources.push_back({weight, s.first, s.count});
    if (options.vocab_size > 0 && totals.max_id >= options.vocab_size)
      throw DataError(
          "{}:{}: token id {}, but the model's vocabulary has {} ids: the data's tokenizer and the "
          "model do not belong together",
          s.name, totals.max_id_line, totals.max_id, options.vocab_size);
  }
  samples = static_cast<int64_t>(lengths.size());
  if (samples == 0)
    throw DataError("no samples in {}",
                    sources.empty() ? "the data (no --data given)" : sources[0].name);
  seq_len =
      options.seq_len > 0 ? options.seq_len : std::min(static_cast<int64_t>(longest), kMaxSeqLen);

  const bool drop = options.too_long == "drop";
  double tokens = 0.0, trained = 0.0;
  std::string too_long_at;
  for (size_t i = 0; i < sources.size(); ++i) {
    const Source& s = sources[i];
    const CacheTotals& totals = s.cache->totals();
    SourceStats& stat = stats.sources[i];
    auto kept = static_cast<int64_t>(totals.tokens),
         kept_trained = static_cast<int64_t>(totals.trained_tokens);
    for (uint32_t j = 0; j < s.count; ++j) {
      int32_t& length = lengths[s.first + j];
      if (length <= seq_len) continue;
      if (too_long_at.empty())
        too_long_at = fmt::format("{}:{}: {} tokens", s.name, s.cache->line(j), length);
      ++stat.too_long;
      const auto words = s.cache->sample(j).words;
      for (size_t k = drop ? 1 : static_cast<size_t>(seq_len); k < words.size(); ++k)
        kept_trained -= (words[k] & kTrainedBit) != 0;
      kept -= drop ? length : length - seq_len;
      length = drop ? 0 : static_cast<int32_t>(seq_len);
    }
    stats.too_long += stat.too_long;
    tokens += plan_sources[i].weight * static_cast<double>(kept);
    trained += plan_sources[i].weight * static_cast<double>(kept_trained);
  }
  if (stats.too_long > 0 && options.too_long == "error")
    throw DataError(
        "{}, but a row holds --seq-len {}; {} of {} samples are too long, the longest has {} "
        "tokens. Raise --seq-len, or give "
        "--too-long truncate or --too-long drop",
        too_long_at, seq_len, stats.too_long, samples, longest);
  if (stats.too_long == samples && drop)
    throw DataError(
        "all {} samples are longer than --seq-len {} and were dropped (--too-long drop); the "
        "longest has {} tokens",
        samples, seq_len, longest);
  if (trained < 0.5)
    throw DataError("{}: no token is trained: every target is masked{}", sources[0].name,
                    stats.too_long > 0 ? " or was cut off with --too-long truncate" : "");

  plan = std::make_unique<const RowPlan>(std::move(lengths), plan_sources,
                                         PlanOptions{.seq_len = seq_len,
                                                     .pack = options.pack,
                                                     .shuffle = options.shuffle,
                                                     .seed = options.seed});
  stats.rows = plan->rows();
  stats.samples = plan->slots();
  stats.tokens = std::llround(tokens);
  stats.trained_tokens = std::llround(trained);
  stats.fill = tokens / (static_cast<double>(stats.rows) * static_cast<double>(seq_len));

  Hasher hasher;
  for (size_t i = 0; i < sources.size(); ++i) {
    hasher.number(keys[i].lo);
    hasher.number(keys[i].hi);
    hasher.number(std::bit_cast<uint64_t>(plan_sources[i].weight));
  }
  hasher.number(static_cast<uint64_t>(seq_len));
  hasher.number((options.pack ? 1u : 0u) | (options.shuffle ? 2u : 0u));
  hasher.number(options.shuffle ? options.seed : 0);
  hasher.field(stats.too_long > 0 ? options.too_long : "");
  fingerprint = hasher.finish().lo;
}

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
    const CacheTotals& totals = opened.cache->totals();
    SourceStats stat;
    stat.path = source.path;
    stat.format = format_name(static_cast<Format>(totals.format));
    stat.weight = source.weight;
    stat.content = opened.content;
    stat.samples = static_cast<int64_t>(totals.samples);
    stat.tokens = static_cast<int64_t>(totals.tokens);
    stat.trained_tokens = static_cast<int64_t>(totals.trained_tokens);
    stat.longest = static_cast<int64_t>(totals.longest);
    stat.bad_rows = static_cast<int64_t>(totals.bad_rows);
    stat.unclosed_think = static_cast<int64_t>(totals.unclosed_think);
    stat.empty_answers = static_cast<int64_t>(totals.empty_answers);
    stat.cached = opened.cached;
    impl->stats.bad_rows += stat.bad_rows;
    impl->stats.unclosed_think += stat.unclosed_think;
    impl->stats.empty_answers += stat.empty_answers;
    for (BadRow row : opened.cache->bad_rows()) {
      row.path = source.path;
      impl->stats.bad_row_examples.push_back(std::move(row));
    }
    impl->stats.sources.push_back(std::move(stat));
    impl->sources.push_back({std::move(opened.cache), 0, 0, source.path.string()});
    keys.push_back(opened.key);
    if (impl->stats.bad_rows > options.max_bad_rows)
      throw DataError("{}", describe_bad_rows(impl->stats.bad_row_examples, impl->stats.bad_rows,
                                              true, options.max_bad_rows));
  }
  impl->build(options, std::move(keys));
  const auto fits = [&](const std::optional<int32_t>& id) {
    return id && *id >= 0 && (options.vocab_size <= 0 || *id < options.vocab_size);
  };
  impl->pad_id = fits(options.pad_id)    ? *options.pad_id
                 : fits(settings.pad_id) ? *settings.pad_id
                 : fits(settings.end_id) ? *settings.end_id
                                         : 0;
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
  SourceStats stat;
  stat.path = "memory";
  stat.format = format_name(Format::kInputIds);
  stat.samples = static_cast<int64_t>(cache->totals().samples);
  stat.tokens = static_cast<int64_t>(cache->totals().tokens);
  stat.trained_tokens = static_cast<int64_t>(cache->totals().trained_tokens);
  stat.longest = static_cast<int64_t>(cache->totals().longest);
  impl->stats.sources.push_back(std::move(stat));
  impl->sources.push_back({std::move(cache), 0, 0, "memory"});
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
