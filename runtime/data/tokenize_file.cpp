#include "runtime/data/tokenize_file.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/core/error.h"

namespace r1::data {
namespace {

constexpr size_t kBatchBytes = size_t{256} << 10;
constexpr size_t kInFlightBytes = size_t{16}
                                  << 20;  // of row text, beside the batch that is being cut
constexpr size_t kDetectRows = 100;

struct Result {
  struct Sample {
    EncodedSample sample;
    int64_t line = 0;
  };
  std::vector<Sample> samples;
  std::vector<BadRow> bad_rows;
  size_t text_bytes = 0;
};

[[nodiscard]] Result encode_batch(const RecordBatch& batch, Layout layout, Format format,
                                  const EncodeSettings& settings,
                                  const std::filesystem::path& path) {
  Result out;
  out.text_bytes = batch.bytes.size();
  for (const RecordBatch::Record& record : batch.records) {
    try {
      if (record.too_large)
        throw RowError(
            fmt::format("longer than {} MiB, the most that a row may be", kMaxRecordBytes >> 20));
      EncodedSample sample = layout == Layout::kTextLines
                                 ? encode_text(batch.text(record), settings)
                                 : encode_row(parse_row(format, batch.text(record)), settings);
      if (sample.ids.empty()) throw RowError("no tokens");
      out.samples.push_back({std::move(sample), record.line});
    } catch (const RowError& e) {
      out.bad_rows.push_back({path, record.line, e.what()});
    }
  }
  return out;
}

/// Threads that turn batches into results.
class Workers {
 public:
  template <class Work>
  Workers(int threads, Work work) {
    for (int i = 0; i < threads; ++i)
      threads_.emplace_back([this, work] {
        while (true) {
          RecordBatch batch;
          {
            std::unique_lock lock(mutex_);
            wake_worker_.wait(lock, [&] { return stop_ || !in_.empty(); });
            if (stop_) return;
            batch = std::move(in_.front());
            in_.pop_front();
          }
          try {
            Result result = work(batch);
            const std::lock_guard lock(mutex_);
            out_.emplace(batch.index, std::move(result));
          } catch (...) {
            const std::lock_guard lock(mutex_);
            if (!error_) error_ = std::current_exception();
          }
          wake_reader_.notify_one();
        }
      });
  }
  ~Workers() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_worker_.notify_all();
    for (std::thread& t : threads_) t.join();
  }
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  void push(RecordBatch batch) {
    {
      const std::lock_guard lock(mutex_);
      in_.push_back(std::move(batch));
    }
    wake_worker_.notify_one();
  }
  /// The result of batch `index`, if it is there within `wait`. Rethrows what a worker threw.
  [[nodiscard]] std::optional<Result> take(int64_t index, std::chrono::milliseconds wait) {
    std::unique_lock lock(mutex_);
    wake_reader_.wait_for(lock, wait, [&] { return error_ != nullptr || out_.contains(index); });
    if (error_) std::rethrow_exception(error_);
    const auto it = out_.find(index);
    if (it == out_.end()) return std::nullopt;
    std::optional<Result> result(std::move(it->second));
    out_.erase(it);
    return result;
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_worker_, wake_reader_;
  std::deque<RecordBatch> in_;
  std::map<int64_t, Result> out_;
  std::exception_ptr error_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

[[nodiscard]] Format find_format(const RecordBatch& first, const std::filesystem::path& path) {
  std::string why_first;
  int64_t line = 1;
  size_t tried = 0;
  for (const RecordBatch::Record& record : first.records) {
    if (record.too_large) continue;
    std::string why;
    if (const auto format = detect_format(first.text(record), &why)) return *format;
    if (why_first.empty()) why_first = why, line = record.line;
    if (++tried == kDetectRows) break;
  }
  // Another name for the format helps only where the keys are what is not known.
  std::string advice;
  if (why_first.starts_with("its keys are")) {
    for (const std::string_view name : format_names())
      advice += (advice.empty() ? "" : ", ") + std::string(name);
    advice = fmt::format(". If the rows are right, name their format with --format ({})", advice);
  }
  throw DataError("{}:{}: cannot tell the format of the rows: {}{}", path.string(), line, why_first,
                  advice);
}

}  // namespace

std::string describe_bad_rows(const std::vector<BadRow>& rows, int64_t count, bool all_read,
                              int64_t max_bad_rows) {
  std::string out = fmt::format(
      "{}{} bad row{} where --max-bad-rows {} {}:", all_read ? "" : "at least ", count,
      count == 1 ? "" : "s", max_bad_rows, max_bad_rows == 0 ? "allows none" : "is the limit");
  constexpr size_t kShown = 10;
  for (size_t i = 0; i < rows.size() && i < kShown; ++i)
    out += fmt::format("\n  {}:{}: {}", rows[i].path.string(), rows[i].line, rows[i].reason);
  if (static_cast<size_t>(count) > std::min(rows.size(), kShown)) out += "\n  ...";
  return out;
}

Format tokenize_rows(RecordReader& reader, CacheWriter& writer,
                     const TokenizeFileOptions& options) {
  const std::filesystem::path path = reader.input().path();
  const Layout layout = reader.layout();
  RecordBatch batch;
  bool more = reader.next(batch, kBatchBytes);
  if (!more) throw DataError("{}: no rows", path.string());
  const Format format = layout == Layout::kTextLines ? Format::kText
                        : options.format             ? *options.format
                                                     : find_format(batch, path);
  if (format != Format::kInputIds && options.encode.tokenizer == nullptr)
    throw UsageError(
        "{}: rows of format {} need a tokenizer, and the model directory has no tokenizer.json "
        "(input-ids files do without)",
        path.string(), format_name(format));
  if (needs_template(format) && !options.encode.chat_template)
    throw UsageError("{}: rows of format {} need a chat template: {}", path.string(),
                     format_name(format), options.no_template_reason);

  DataProgress state{.path = path, .bytes_total = reader.input().stored_bytes()};
  auto last_report = std::chrono::steady_clock::now();
  const auto report = [&] {
    const auto now = std::chrono::steady_clock::now();
    if (!options.progress || now - last_report < options.progress_every) return;
    last_report = now;
    state.bytes_done = reader.input().stored_bytes_read();
    state.samples = static_cast<int64_t>(writer.totals().samples);
    state.tokens = static_cast<int64_t>(writer.totals().tokens);
    state.bad_rows = static_cast<int64_t>(writer.totals().bad_rows);
    options.progress(state);
  };

  // `options` and `path` outlive the workers: they are joined before this function returns or
  // throws.
  Workers workers(std::max(1, options.threads), [&, layout, format](const RecordBatch& b) {
    return encode_batch(b, layout, format, options.encode, path);
  });
  const size_t most_batches = static_cast<size_t>(std::max(1, options.threads)) * 2 + 2;
  size_t in_flight = 0, in_flight_bytes = 0;
  int64_t next_result = 0;
  while (more || in_flight > 0) {
    while (more && in_flight < most_batches &&
           (in_flight == 0 || in_flight_bytes < kInFlightBytes)) {
      ++in_flight;
      in_flight_bytes += batch.bytes.size();
      workers.push(std::move(batch));
      batch = RecordBatch();
      more = reader.next(batch, kBatchBytes);
    }
    std::optional<Result> result;
    while (!(result = workers.take(next_result, std::chrono::milliseconds(100)))) report();
    ++next_result;
    --in_flight;
    in_flight_bytes -= result->text_bytes;
    for (const Result::Sample& s : result->samples) writer.add(s.sample, s.line);
    for (BadRow& row : result->bad_rows) writer.add_bad_row(std::move(row));
    const auto bad = static_cast<int64_t>(writer.totals().bad_rows);
    if (bad > options.max_bad_rows)
      throw DataError("{}", describe_bad_rows(writer.bad_rows(), bad, !more && in_flight == 0,
                                              options.max_bad_rows));
    report();
  }
  return format;
}

}  // namespace r1::data
