// Training data: files of conversations or texts -> token samples (tokenised once, in threads, into
// a memory-mapped cache) -> packed rows of seq_len tokens. Rows exist before they are distributed:
// row i is the same for every layout, rank and thread count, a pure function of (content,
// tokenizer, settings, seed, i).
//
// Order. One epoch is rows_per_epoch() rows. With shuffle, epoch e visits the rows in a keyed
// permutation, and samples of equal length trade places between rows, so that rows are formed anew
// each epoch at the same fill. Without shuffle the file's order is kept (packed: up to the window
// of rows that are open at once; unpacked: exactly).
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace r1::text {
class Tokenizer;
}

namespace r1::data {

/// One file of samples. In an epoch every sample of it appears `weight` times: 2 = twice, 0.25 = a
/// quarter of the samples each epoch, another quarter the next (with shuffle).
struct DataSource {
  std::filesystem::path path;
  double weight = 1.0;
};

/// Reads "FILE" or "FILE:WEIGHT". An existing file whose name holds a colon is taken as it is.
/// Throws UsageError when the weight is not a positive number.
[[nodiscard]] DataSource parse_data_source(std::string_view text);

/// The token that ends a text: "eos_token" of tokenizer_config.json in `model_dir` (empty: where
/// the tokenizer was loaded from), else the first known end token that the tokenizer has.
[[nodiscard]] std::optional<int32_t> end_of_text_id(const std::filesystem::path& model_dir,
                                                    const text::Tokenizer& tokenizer);

/// What Dataset::open is doing; given to DataOptions::progress a few times a second, on the calling
/// thread.
struct DataProgress {
  std::filesystem::path path;
  int64_t bytes_done = 0, bytes_total = 0;  ///< of the file as stored (compressed bytes)
  int64_t samples = 0, tokens = 0, bad_rows = 0;
  bool waiting = false;  ///< another process tokenises this file; we wait for its result
};

struct DataOptions {
  std::vector<DataSource> sources;
  /// "auto" (from the file's name and first row) or one of format_names().
  std::string format = "auto";
  int64_t seq_len = 0;  ///< tokens in a row; 0 = as long as the longest sample
  bool pack = true, shuffle = true;
  uint64_t seed = 0;
  bool train_on_prompt = false;
  /// "all": every assistant turn keeps its thoughts and is trained. "last": where earlier turns
  /// have thoughts, those are left out as the chat template leaves them out in use, and only the
  /// last turn is trained; conversations without earlier thoughts are trained on every assistant
  /// turn.
  std::string think_history = "last";
  int64_t max_bad_rows = 0;  ///< more bad rows than this in all sources together are a DataError
  std::string too_long = "error";  ///< "error", "truncate" or "drop": samples longer than seq_len
  std::string template_name;       ///< empty: that of model_dir
  /// Holds tokenizer_config.json (chat template, end and pad token); empty: where the tokenizer was
  /// loaded from.
  std::filesystem::path model_dir;
  /// Control tokens spelled out in raw text (text, prompt-completion) become control tokens.
  bool parse_special = false;
  /// Shared by ranks and runs. Empty: an unnamed temporary file of this process alone.
  std::filesystem::path cache_dir;
  int threads = 1;
  int64_t vocab_size = 0;         ///< of the model; larger ids are a DataError. 0: not checked
  std::optional<int32_t> pad_id;  ///< empty: the tokenizer's pad token, else its end token, else 0
  /// May throw to stop the work (StoppedError on a signal); the exception leaves Dataset::open.
  std::function<void(const DataProgress&)> progress;
  std::chrono::milliseconds progress_every{250};  ///< while a file is tokenised
};

/// Names that DataOptions::format accepts.
[[nodiscard]] std::span<const std::string_view> format_names();

/// One packed row of seq_len tokens.
struct Row {
  std::vector<int32_t> ids;  ///< [seq_len]; padded with the pad or end-of-text id
  /// [seq_len]; the next token of the same sample, or -1 where not trained (last token of a sample,
  /// before a prompt token, padding)
  std::vector<int32_t> targets;
  /// Lengths of the samples in order, then that of the padding if there is any; sums to seq_len.
  /// Attention is confined to a segment and positions start again in each. segments.size() -
  /// samples.size() is 1 with padding, else 0.
  std::vector<int32_t> segments;
  int64_t trained_tokens = 0;    ///< targets >= 0
  std::vector<int64_t> samples;  ///< global sample ids: counted over all sources in order
};

/// A row of a file that could not be used.
struct BadRow {
  std::filesystem::path path;
  int64_t line = 0;  ///< from 1; of the row's first character
  std::string reason;
};

struct SourceStats {
  std::filesystem::path path;
  std::string format;
  double weight = 1.0;
  uint64_t content = 0;        ///< hash of the file's bytes
  int64_t samples = 0;         ///< usable ones in the file
  int64_t tokens = 0;          ///< of them, before truncation
  int64_t trained_tokens = 0;  ///< targets among them, before truncation
  int64_t longest = 0;         ///< tokens
  int64_t bad_rows = 0;
  int64_t too_long = 0;        ///< longer than seq_len
  int64_t unclosed_think = 0;  ///< answers that open <think> and never close it
  int64_t empty_answers = 0;   ///< samples whose last answer says nothing
  bool cached = false;         ///< taken from the cache, not tokenised now
};

struct DatasetStats {
  int64_t rows = 0;     ///< rows of one epoch
  int64_t samples = 0;  ///< samples in one epoch (weights applied, dropped ones left out)
  int64_t tokens =
      0;  ///< tokens in one epoch, padding left out (with fractional weights: expected)
  int64_t trained_tokens = 0;  ///< as tokens; before truncation where samples are truncated
  double fill = 0.0;           ///< tokens / (rows * seq_len)
  int64_t bad_rows = 0, too_long = 0, unclosed_think = 0, empty_answers = 0;
  std::vector<SourceStats> sources;
  std::vector<BadRow> bad_row_examples;  ///< the first few of each source
};

/// A sample that is already token ids. labels: empty = all trained; else as long as ids, not
/// shifted, -100 = not trained.
struct TokenSample {
  std::vector<int32_t> ids;
  std::vector<int32_t> labels;
};

/// Cheap to copy; all members are thread-safe.
class Dataset {
 public:
  /// Tokenises the sources into the cache, or maps what is there. Any number of processes may do so
  /// at once: one works, the others wait for it or take over when it dies. Throws UsageError,
  /// DataError (file:line), StorageError.
  [[nodiscard]] static Dataset open(const DataOptions& options, const text::Tokenizer& tokenizer);
  /// As above; without a tokenizer (null) only input-ids files can be read.
  [[nodiscard]] static Dataset open(const DataOptions& options, const text::Tokenizer* tokenizer);
  /// The same rows from samples in memory (options.sources and the tokenising options are not
  /// used).
  [[nodiscard]] static Dataset from_tokens(std::vector<TokenSample> samples,
                                           const DataOptions& options, int32_t pad_id);

  [[nodiscard]] int64_t rows_per_epoch() const;
  [[nodiscard]] int64_t seq_len() const;
  [[nodiscard]] int64_t samples() const;  ///< distinct samples over all sources
  /// Any index >= 0: epoch = index / rows_per_epoch(). Pure.
  [[nodiscard]] Row row(int64_t global_row) const;
  /// Of everything that decides row(): content, tokenizer, settings, seed. Not of paths, threads or
  /// the cache.
  [[nodiscard]] uint64_t fingerprint() const;
  [[nodiscard]] const DatasetStats& stats() const;

  [[nodiscard]] int64_t sample_length(int64_t sample) const;  ///< tokens, before truncation
  [[nodiscard]] TokenSample sample(int64_t sample) const;
  [[nodiscard]] int64_t sample_line(
      int64_t sample) const;  ///< line in its file, from 1; 0 for from_tokens
  [[nodiscard]] int sample_source(int64_t sample) const;  ///< index into DataOptions::sources
  [[nodiscard]] int32_t pad_id() const;

 private:
  struct Impl;
  explicit Dataset(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace r1::data
