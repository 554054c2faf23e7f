#include "runtime/data/open_source.h"

#include <chrono>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/log.h"
#include "runtime/data/input.h"
#include "runtime/data/tokenize_file.h"
#include "runtime/tokenizer/tokenizer.h"

namespace r1::data {
namespace fs = std::filesystem;

namespace {

// Part of every cache key: raise it when the same row would become other tokens.
constexpr uint64_t kEncodingVersion = 3;

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

/// Everything that decides which tokens the file becomes.
[[nodiscard]] Hash128 cache_key(const Hash128& content, const DataSource& source,
                                const DataOptions& options, const text::Tokenizer* tokenizer,
                                const TokenizerSettings& settings) {
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
  return hasher.finish();
}

[[nodiscard]] TokenizeFileOptions tokenize_options(const DataOptions& options,
                                                   const text::Tokenizer* tokenizer,
                                                   const TokenizerSettings& settings) {
  TokenizeFileOptions out;
  out.format = format_by_name(options.format);
  out.encode.tokenizer = tokenizer;
  out.encode.chat_template = settings.chat_template;
  out.encode.think_history =
      options.think_history == "all" ? text::ThinkHistory::kAll : text::ThinkHistory::kLast;
  out.encode.train_on_prompt = options.train_on_prompt;
  out.encode.parse_special = options.parse_special;
  out.encode.end_id = settings.end_id;
  out.no_template_reason = settings.no_template_reason;
  out.threads = options.threads;
  out.progress = options.progress;
  out.progress_every = options.progress_every;
  return out;
}

[[nodiscard]] std::shared_ptr<const CacheFile> tokenize(InputFile input, const Hash128& content,
                                                        const std::string& format_name,
                                                        const TokenizeFileOptions& options,
                                                        CacheWriter& writer) {
  const std::string name = input.path().string();
  RecordReader reader(std::move(input), format_name == "text"   ? RecordReader::Text::kYes
                                        : format_name == "auto" ? RecordReader::Text::kByName
                                                                : RecordReader::Text::kNo);
  const Format format = tokenize_rows(reader, writer, options);
  if (reader.input().stored_hash() != content)
    throw DataError("{}: the file changed while it was read; start again when it is complete",
                    name);
  return writer.finish(format);
}

/// The finished cache file, if it is there and whole.
[[nodiscard]] std::shared_ptr<const CacheFile> look(const fs::path& file, const Hash128& key,
                                                    bool warn) {
  std::string damage;
  auto cache = CacheFile::open(file, key, &damage);
  if (cache == nullptr && !damage.empty() && warn)
    log::warn("{}: damaged cache file ({}); the data is tokenised again", file.string(), damage);
  return cache;
}

/// The right to make a cache file. Another process may be at it: no time limit, since it either
/// finishes or dies, and then the lock is ours.
[[nodiscard]] CacheLock wait_for_lock(const fs::path& file, const DataProgress& waiting,
                                      const std::function<void(const DataProgress&)>& progress) {
  auto last_report = std::chrono::steady_clock::now();
  while (true) {
    if (auto lock = CacheLock::try_acquire(file)) return std::move(*lock);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const auto now = std::chrono::steady_clock::now();
    if (progress && now - last_report > std::chrono::milliseconds(250)) {
      last_report = now;
      progress(waiting);
    }
  }
}

}  // namespace

OpenedSource open_source(const DataSource& source, const DataOptions& options,
                         const text::Tokenizer* tokenizer, const TokenizerSettings& settings,
                         int64_t max_bad_rows) {
  // Opened first: an error about the file itself comes before any about the cache.
  InputFile input(source.path);
  const Hash128 content = content_hash(source.path, options.cache_dir, options.progress);
  OpenedSource out;
  out.key = cache_key(content, source, options, tokenizer, settings);
  out.content = content.lo;
  TokenizeFileOptions how = tokenize_options(options, tokenizer, settings);
  how.max_bad_rows = max_bad_rows;

  if (options.cache_dir.empty()) {
    CacheWriter writer(CacheWriter::Place::kUnnamed, {}, out.key);
    out.cache = tokenize(std::move(input), content, options.format, how, writer);
    return out;
  }
  const fs::path file = options.cache_dir / (out.key.hex() + ".r1data");
  out.cached = true;
  out.cache = look(file, out.key, false);
  if (out.cache != nullptr) return out;
  const CacheLock lock = wait_for_lock(
      file, {.path = source.path, .bytes_total = input.stored_bytes(), .waiting = true},
      options.progress);
  out.cache = look(file, out.key, true);
  if (out.cache != nullptr) return out;
  out.cached = false;
  remove_stale_temporaries(file);
  CacheWriter writer(CacheWriter::Place::kNamed, file, out.key);
  out.cache = tokenize(std::move(input), content, options.format, how, writer);
  return out;
}

}  // namespace r1::data
