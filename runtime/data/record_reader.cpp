// A stream of bytes cut into rows: lines, the elements of a JSON array, or JSON values in a row.
#include <algorithm>
#include <array>
#include <cstring>

#include "runtime/core/error.h"
#include "runtime/core/text.h"
#include "runtime/data/input.h"

namespace r1::data {
namespace {

constexpr size_t kReadBytes = size_t{256} << 10;

[[nodiscard]] bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

/// The file's extension in lower case, compression left out: "a.TXT.gz" -> ".txt".
[[nodiscard]] std::string content_extension(std::filesystem::path path) {
  std::string ext = lower(path.extension().string());
  if (ext == ".gz" || ext == ".zst" || ext == ".zstd")
    ext = lower(path.stem().extension().string());
  return ext;
}

/// Follows the brackets of JSON text a byte at a time. Bracket kinds are kept, one bit a level, to
/// see a '}' that closes a '[' where it stands and not at the end of the file.
class BracketScanner {
 public:
  enum class State : uint8_t { kInside, kDone, kMismatch, kTooDeep };
  [[nodiscard]] State feed(char c) {
    if (in_string_) {
      if (escaped_) {
        escaped_ = false;
      } else if (c == '\\') {
        escaped_ = true;
      } else if (c == '"') {
        in_string_ = false;
        if (depth_ == 0) return State::kDone;
      }
      return State::kInside;
    }
    switch (c) {
      case '"':
        in_string_ = true;
        break;
      case '{':
      case '[':
        if (depth_ == kMaxDepth) return State::kTooDeep;
        square_[depth_++] = c == '[';
        break;
      case '}':
      case ']':
        if (depth_ == 0 || square_[depth_ - 1] != (c == ']')) return State::kMismatch;
        if (--depth_ == 0) return State::kDone;
        break;
      default:
        break;
    }
    return State::kInside;
  }
  [[nodiscard]] bool in_string() const { return in_string_; }
  [[nodiscard]] size_t depth() const { return depth_; }

 private:
  static constexpr size_t kMaxDepth = 512;
  std::array<bool, kMaxDepth> square_{};
  size_t depth_ = 0;
  bool in_string_ = false, escaped_ = false;
};

/// Files that hold no rows of text, by their first bytes.
void refuse_other_formats(std::string_view begin, const std::string& name) {
  if (begin.starts_with("\xff\xfe") || begin.starts_with("\xfe\xff"))
    throw DataError("{}: UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)", name);
  if (begin.starts_with("PAR1"))
    throw DataError("{}: a Parquet file; convert it to JSON Lines", name);
  if (begin.starts_with("PK\x03\x04")) throw DataError("{}: a zip archive; unpack it first", name);
  if (begin.starts_with("ARROW1"))
    throw DataError("{}: an Arrow file; convert it to JSON Lines", name);
}

/// Does the first line, from its '{', end inside the value that it begins?
bool first_line_is_cut(std::string_view text, bool all_there) {
  BracketScanner scanner;
  for (const char c : text) {
    if (c == '\n') return true;
    if (scanner.feed(c) != BracketScanner::State::kInside) return false;
  }
  return all_there;
}

}  // namespace

RecordReader::RecordReader(InputFile input, Text text) : input_(std::move(input)) {
  while (buffer_.size() < kReadBytes && fill()) {
  }
  const std::string name = input_.path().string();
  if (buffer_.empty()) throw DataError("{}: the file is empty", name);
  refuse_other_formats(buffer_, name);
  if (buffer_.starts_with("\xef\xbb\xbf")) buffer_.erase(0, 3);
  layout_ = find_layout(text);
}

Layout RecordReader::find_layout(Text text) const {
  const std::string name = input_.path().string();
  const std::string ext = content_extension(input_.path());
  const bool named_lines = ext == ".jsonl" || ext == ".ndjson";
  // "--format text" means lines of text, unless the file says by its name that it is JSON.
  if (text == Text::kYes && ext != ".json" && !named_lines) return Layout::kTextLines;
  if (text == Text::kByName && ext == ".txt") return Layout::kTextLines;
  // JSON: an array, values over lines as they like, or a value a line.
  size_t first = 0;
  while (first < buffer_.size() && is_space(buffer_[first])) ++first;
  if (first == buffer_.size() && eof_) throw DataError("{}: nothing but white space", name);
  if (named_lines) return Layout::kJsonLines;
  const char c = first < buffer_.size() ? buffer_[first] : '\0';
  if (c == '[') return Layout::kJsonArray;
  if (c == '{') {
    return first_line_is_cut(std::string_view(buffer_).substr(first), eof_) ? Layout::kJsonValues
                                                                            : Layout::kJsonLines;
  }
  if (text == Text::kYes) return Layout::kTextLines;
  throw DataError(
      "{}: neither JSON nor named *.txt: it begins with byte 0x{:02x}, a JSON file begins with "
      "'{{' or '['; for "
      "plain text give --format text",
      name, static_cast<unsigned>(static_cast<unsigned char>(c)));
}

bool RecordReader::fill() {
  if (eof_) return false;
  // As much again as is there: small files take little memory, large ones are read in large parts.
  const size_t old = buffer_.size(), more = std::clamp(old, size_t{4} << 10, kReadBytes);
  buffer_.resize(old + more);
  const size_t got = input_.read(buffer_.data() + old, more);
  buffer_.resize(old + got);
  if (got == 0) eof_ = true;
  return got != 0;
}

bool RecordReader::next(RecordBatch& batch, size_t target_bytes) {
  batch.bytes.clear();
  batch.records.clear();
  batch.index = batches_;
  const bool lines = layout_ == Layout::kJsonLines || layout_ == Layout::kTextLines;
  const bool any = lines ? next_lines(batch, target_bytes) : next_values(batch, target_bytes);
  if (any) ++batches_;
  return any;
}

bool RecordReader::next_lines(RecordBatch& batch, size_t target_bytes) {
  size_t begin = 0;       // of the current line in buffer_
  bool skipping = false;  // the current line is too large and is being thrown away
  scan_ = 0;
  while (true) {
    const void* hit = scan_ < buffer_.size()
                          ? std::memchr(buffer_.data() + scan_, '\n', buffer_.size() - scan_)
                          : nullptr;
    if (hit == nullptr) {
      scan_ = buffer_.size();
      if (buffer_.size() - begin > kMaxRecordBytes) {
        skipping = true;
        buffer_.resize(begin);
        scan_ = begin;
      }
      if (fill()) continue;
      if (buffer_.size() == begin && !skipping) break;  // nothing behind the last line's end
    }
    const bool last = hit == nullptr;
    const size_t newline =
        last ? buffer_.size() : static_cast<size_t>(static_cast<const char*>(hit) - buffer_.data());
    size_t end = newline;
    if (end > begin && buffer_[end - 1] == '\r') --end;
    bool blank = true;
    for (size_t i = begin; i < end && blank; ++i) blank = is_space(buffer_[i]);
    if (skipping || end - begin > kMaxRecordBytes) {
      batch.records.push_back({begin, begin, line_, true});
    } else if (!blank) {
      batch.records.push_back({begin, end, line_, false});
    }
    skipping = false;
    ++line_;
    begin = std::min(newline + 1, buffer_.size());
    scan_ = begin;
    if (last || (begin >= target_bytes && !batch.records.empty())) break;
    if (begin >= target_bytes) {  // nothing but blank lines so far: do not hold them
      buffer_.erase(0, begin);
      begin = scan_ = 0;
    }
  }
  batch.bytes.swap(buffer_);
  buffer_.assign(batch.bytes, begin);
  batch.bytes.resize(begin);
  scan_ = 0;
  return !batch.records.empty();
}

void RecordReader::broken(const std::string& what) const {
  throw DataError("{}:{}: {}", input_.path().string(), line_, what);
}

/// To the first character of the next value, over white space and, in an array, one comma.
void RecordReader::skip_separators(RecordBatch& batch) {
  bool comma = false;
  while (true) {
    if (scan_ == buffer_.size()) {
      // Hand over what is complete; keep the rest small.
      if (batch.records.empty()) {
        buffer_.clear();
        scan_ = 0;
      }
      if (!fill()) return;
      continue;
    }
    const char c = buffer_[scan_];
    if (c == '\n') ++line_;
    if (is_space(c)) {
      ++scan_;
    } else if (layout_ == Layout::kJsonArray && c == ',' && !first_value_ && !comma) {
      comma = true;
      ++scan_;
    } else {
      break;
    }
  }
  if (layout_ != Layout::kJsonArray) return;
  const char c = buffer_[scan_];
  if (c == ']' && comma)
    broken("',' before the ']' that closes the array; a row is missing or the comma is");
  if (c != ']' && !first_value_ && !comma)
    broken(fmt::format("expected ',' or ']' between two rows of the array, found '{}'", c));
}

/// From the first character of a value to its end; adds the record. False: the file ended inside.
bool RecordReader::scan_value(RecordBatch& batch) {
  size_t begin = scan_;
  const int64_t line = line_;
  BracketScanner scanner;
  bool too_large = false;
  const char first = buffer_[scan_];
  const bool scalar = first != '{' && first != '[' && first != '"';
  if (first == '}' || first == ',' || first == ':' ||
      (first == ']' && layout_ != Layout::kJsonArray))
    broken(fmt::format("found '{}' where a row should begin", first));
  while (true) {
    if (scan_ == buffer_.size()) {
      if (scan_ - begin > kMaxRecordBytes) {
        too_large = true;
        buffer_.resize(begin);
        scan_ = begin;
      }
      if (!fill()) {
        if (scalar) break;
        return false;
      }
    }
    const char c = buffer_[scan_];
    if (scalar) {
      if (is_space(c) || c == ',' || c == ']' || c == '}' || c == '{' || c == '[' || c == '"')
        break;
      ++scan_;
      continue;
    }
    if (c == '\n') ++line_;
    const auto state = scanner.feed(c);
    ++scan_;
    if (state == BracketScanner::State::kDone) break;
    if (state == BracketScanner::State::kMismatch)
      broken(
          fmt::format("'{}' closes nothing that is open here; the row began at line {}", c, line));
    if (state == BracketScanner::State::kTooDeep)
      broken(fmt::format("nested more than 512 deep in the row that began at line {}", line));
  }
  if (too_large || scan_ - begin > kMaxRecordBytes) {
    batch.records.push_back({begin, begin, line, true});
  } else {
    batch.records.push_back({begin, scan_, line, false});
  }
  first_value_ = false;
  return true;
}

bool RecordReader::next_values(RecordBatch& batch, size_t target_bytes) {
  const bool array = layout_ == Layout::kJsonArray;
  if (array && array_open_ && first_value_ && batches_ == 0) {  // the '[' itself
    while (is_space(buffer_[scan_])) {
      if (buffer_[scan_] == '\n') ++line_;
      ++scan_;
    }
    ++scan_;
  }
  size_t taken = 0;
  while (array_open_) {
    skip_separators(batch);
    if (scan_ == buffer_.size()) {  // end of file
      if (array)
        broken("the file ends before the ']' that closes the array (half a download or copy?)");
      break;
    }
    if (array && buffer_[scan_] == ']') {
      ++scan_;
      array_open_ = false;
      while (true) {
        if (scan_ == buffer_.size() && !fill()) break;
        const char c = buffer_[scan_];
        if (!is_space(c)) broken(fmt::format("found '{}' behind the ']' that closes the array", c));
        if (c == '\n') ++line_;
        ++scan_;
      }
      break;
    }
    if (!scan_value(batch))
      broken(array ? "the file ends inside a row of the array (half a download or copy?)"
                   : "the file ends inside a row (half a download or copy?)");
    taken = scan_;
    if (taken >= target_bytes) break;
  }
  batch.bytes.swap(buffer_);
  buffer_.assign(batch.bytes, std::min(scan_, batch.bytes.size()));
  batch.bytes.resize(std::min(scan_, batch.bytes.size()));
  scan_ = 0;
  return !batch.records.empty();
}

}  // namespace r1::data
