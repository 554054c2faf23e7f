// Data files as byte streams and streams of rows, in bounded memory whatever the size of the file:
// plain, gzip and zstd (told by their first bytes); JSON Lines, one JSON array, JSON values one
// after the other, and lines of text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/data/hash.h"

namespace r1::data {

/// The longest row accepted, in bytes; a longer one is a bad row and is skipped without being held.
inline constexpr size_t kMaxRecordBytes = size_t{64} << 20;

/// A file (or bytes in memory) read from front to back, decompressed on the way.
class InputFile {
 public:
  /// Throws DataError: missing, a directory, not readable.
  explicit InputFile(const std::filesystem::path& path);
  /// Bytes in memory under a name for messages; same rules.
  [[nodiscard]] static InputFile from_memory(std::string bytes, std::string name);
  InputFile(InputFile&&) noexcept;
  InputFile& operator=(InputFile&&) noexcept;
  ~InputFile();

  /// Up to `bytes` decompressed bytes into `out`; 0 at the end. Throws DataError for damaged or
  /// cut-off compression.
  [[nodiscard]] size_t read(char* out, size_t bytes);
  [[nodiscard]] const std::filesystem::path& path() const;
  [[nodiscard]] int64_t stored_bytes() const;  ///< size on disk
  [[nodiscard]] int64_t stored_bytes_read() const;
  /// Hash of the stored bytes read so far; of the whole file once read() has returned 0.
  [[nodiscard]] Hash128 stored_hash() const;

 private:
  struct Impl;
  explicit InputFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// How rows lie in a file.
enum class Layout : uint8_t {
  kJsonLines,   ///< a JSON value a line
  kJsonArray,   ///< one array; its elements are the rows
  kJsonValues,  ///< JSON values one after the other, over lines as they like
  kTextLines,   ///< a row is a line of text
};

/// Whole rows, as bytes.
struct RecordBatch {
  struct Record {
    size_t begin = 0, end = 0;  ///< in `bytes`
    int64_t line = 0;           ///< of the first character, from 1
    bool too_large = false;     ///< more than kMaxRecordBytes; the bytes are not there
  };
  std::string bytes;
  std::vector<Record> records;
  int64_t index = 0;
  [[nodiscard]] std::string_view text(const Record& r) const {
    return std::string_view(bytes).substr(r.begin, r.end - r.begin);
  }
};

/// Cuts a stream into rows. Blank lines and a byte order mark are skipped; CR LF counts as a line's
/// end.
class RecordReader {
 public:
  enum class Text : uint8_t {
    kNo,
    kYes,
    kByName
  };  ///< kByName: *.txt (and .txt.gz, .txt.zst) is text
  /// Reads the first bytes to tell the layout. Throws DataError: empty, binary or UTF-16 content.
  RecordReader(InputFile input, Text text);
  [[nodiscard]] Layout layout() const { return layout_; }
  [[nodiscard]] const InputFile& input() const { return input_; }
  /// Fills `batch` with whole rows of about `target_bytes` together; false at the end. Throws
  /// DataError (file:line) when an array's structure is broken: where its rows end cannot be told
  /// any more.
  [[nodiscard]] bool next(RecordBatch& batch, size_t target_bytes);

 private:
  [[nodiscard]] Layout find_layout(Text text) const;
  [[nodiscard]] bool fill();  ///< more bytes into buffer_; false at the end
  [[nodiscard]] bool next_lines(RecordBatch& batch, size_t target_bytes);
  [[nodiscard]] bool next_values(RecordBatch& batch, size_t target_bytes);
  void skip_separators(RecordBatch& batch);
  [[nodiscard]] bool scan_value(RecordBatch& batch);
  [[noreturn]] void broken(const std::string& what) const;

  InputFile input_;
  Layout layout_ = Layout::kJsonLines;
  std::string buffer_;  // bytes not yet handed out
  size_t scan_ = 0;     // how far in buffer_ we have looked
  int64_t line_ = 1;    // at scan_
  int64_t batches_ = 0;
  bool eof_ = false;
  bool first_value_ = true, array_open_ = true;
};

}  // namespace r1::data
