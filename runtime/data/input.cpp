#include "runtime/data/input.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <utility>

#include "runtime/core/text.h"
#include "runtime/core/error.h"

namespace r1::data {
namespace {

constexpr size_t kStoredBuffer = size_t{256} << 10;
constexpr size_t kReadBytes = size_t{256} << 10;

[[nodiscard]] bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

}  // namespace

struct InputFile::Impl {
  enum class Coding : uint8_t { kPlain, kGzip, kZstd };

  std::filesystem::path path;
  int fd = -1;
  std::string memory;  // the content when fd < 0
  int64_t size = 0, consumed = 0;
  Hasher hasher;
  Coding coding = Coding::kPlain;
  std::vector<char> stored;  // no larger than the file needs
  size_t stored_begin = 0, stored_end = 0;
  bool stored_eof = false;
  z_stream gz{};
  bool gz_open = false;
  ZSTD_DStream* zstd = nullptr;
  bool in_frame = false;  // between the start and the end of a gzip member or zstd frame

  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    if (gz_open) inflateEnd(&gz);
    if (zstd != nullptr) ZSTD_freeDStream(zstd);
    if (fd >= 0) ::close(fd);
  }

  /// More stored bytes behind what is left in `stored`.
  void refill() {
    if (stored_eof) return;
    if (stored_begin != 0) {
      std::memmove(stored.data(), stored.data() + stored_begin, stored_end - stored_begin);
      stored_end -= stored_begin;
      stored_begin = 0;
    }
    const size_t room = stored.size() - stored_end;
    if (room == 0) return;
    size_t got = 0;
    if (fd < 0) {
      got = std::min(room, memory.size() - static_cast<size_t>(consumed));
      std::memcpy(stored.data() + stored_end, memory.data() + consumed, got);
    } else {
      ssize_t n = 0;
      do n = ::read(fd, stored.data() + stored_end, room);
      while (n < 0 && errno == EINTR);
      if (n < 0) throw DataError("{}: cannot be read: {}", path.string(), std::strerror(errno));
      got = static_cast<size_t>(n);
    }
    hasher.update(stored.data() + stored_end, got);
    consumed += static_cast<int64_t>(got);
    stored_end += got;
    if (got == 0) stored_eof = true;
  }

  void start() {
    stored.resize(static_cast<size_t>(
        std::clamp<int64_t>(size, int64_t{4} << 10, static_cast<int64_t>(kStoredBuffer))));
    while (!stored_eof && stored_end < 4) refill();
    const auto* b = reinterpret_cast<const unsigned char*>(stored.data());
    if (stored_end >= 2 && b[0] == 0x1f && b[1] == 0x8b) coding = Coding::kGzip;
    if (stored_end >= 4 && b[0] == 0x28 && b[1] == 0xb5 && b[2] == 0x2f && b[3] == 0xfd)
      coding = Coding::kZstd;
    if (coding == Coding::kGzip) {
      if (inflateInit2(&gz, 15 + 16) != Z_OK) throw InternalError("zlib cannot start");
      gz_open = true;
    } else if (coding == Coding::kZstd) {
      zstd = ZSTD_createDStream();
      if (zstd == nullptr) throw InternalError("zstd cannot start");
    }
  }

  size_t read_plain(char* out, size_t bytes) {
    if (stored_begin == stored_end) refill();
    const size_t n = std::min(bytes, stored_end - stored_begin);
    std::memcpy(out, stored.data() + stored_begin, n);
    stored_begin += n;
    return n;
  }

  size_t read_gzip(char* out, size_t bytes) {
    size_t done = 0;
    while (done == 0) {
      if (stored_begin == stored_end) refill();
      if (stored_begin == stored_end) {  // end of file
        if (in_frame) cut_off("gzip");
        return 0;
      }
      if (!in_frame) {
        // Members may follow each other; zeros behind the last one (tape padding) are ignored, as
        // gzip does.
        if (stored[stored_begin] == 0) {
          ++stored_begin;
          continue;
        }
        if (inflateReset(&gz) != Z_OK) throw InternalError("zlib cannot be reset");
        in_frame = true;
      }
      gz.next_in = reinterpret_cast<Bytef*>(stored.data() + stored_begin);
      gz.avail_in = static_cast<uInt>(stored_end - stored_begin);
      gz.next_out = reinterpret_cast<Bytef*>(out);
      gz.avail_out = static_cast<uInt>(std::min<size_t>(bytes, 1u << 30));
      const uInt room = gz.avail_out;
      const int rc = inflate(&gz, Z_NO_FLUSH);
      stored_begin = stored_end - gz.avail_in;
      done = room - gz.avail_out;
      if (rc == Z_STREAM_END) {
        in_frame = false;
      } else if (rc != Z_OK && rc != Z_BUF_ERROR) {
        throw DataError("{}: damaged gzip data near stored byte {}: {}", path.string(), position(),
                        gz.msg != nullptr ? gz.msg : "zlib error");
      }
    }
    return done;
  }

  size_t read_zstd(char* out, size_t bytes) {
    ZSTD_outBuffer to{out, bytes, 0};
    while (to.pos == 0) {
      if (stored_begin == stored_end) refill();
      const bool end = stored_begin == stored_end;
      if (end && !in_frame) return 0;
      ZSTD_inBuffer from{stored.data() + stored_begin, stored_end - stored_begin, 0};
      const size_t rc = ZSTD_decompressStream(zstd, &to, &from);
      stored_begin += from.pos;
      if (ZSTD_isError(rc) != 0)
        throw DataError("{}: damaged zstd data near stored byte {}: {}", path.string(), position(),
                        ZSTD_getErrorName(rc));
      in_frame = rc != 0;
      if (end && in_frame && to.pos == 0) cut_off("zstd");
    }
    return to.pos;
  }

  [[nodiscard]] int64_t position() const {
    return consumed - static_cast<int64_t>(stored_end - stored_begin);
  }
  [[noreturn]] void cut_off(const char* kind) const {
    throw DataError("{}: the {} data ends in the middle after {} bytes (half a download or copy?)",
                    path.string(), kind, consumed);
  }
};

InputFile::InputFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
InputFile::InputFile(InputFile&&) noexcept = default;
InputFile& InputFile::operator=(InputFile&&) noexcept = default;
InputFile::~InputFile() = default;

InputFile::InputFile(const std::filesystem::path& path) : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  impl_->fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (impl_->fd < 0)
    throw DataError("data file {}: cannot be opened: {}", path.string(), std::strerror(errno));
  struct stat st {};
  if (::fstat(impl_->fd, &st) != 0)
    throw DataError("data file {}: {}", path.string(), std::strerror(errno));
  if (S_ISDIR(st.st_mode))
    throw DataError("data file {}: is a directory; name the files in it, each with its own --data",
                    path.string());
  if (!S_ISREG(st.st_mode))
    throw DataError(
        "data file {}: not a regular file; it is read more than once, so save it to a file first",
        path.string());
  impl_->size = st.st_size;
  impl_->start();
}

InputFile InputFile::from_memory(std::string bytes, std::string name) {
  auto impl = std::make_unique<Impl>();
  impl->path = std::move(name);
  impl->memory = std::move(bytes);
  impl->size = static_cast<int64_t>(impl->memory.size());
  impl->start();
  return InputFile(std::move(impl));
}

size_t InputFile::read(char* out, size_t bytes) {
  if (bytes == 0) return 0;
  switch (impl_->coding) {
    case Impl::Coding::kPlain:
      return impl_->read_plain(out, bytes);
    case Impl::Coding::kGzip:
      return impl_->read_gzip(out, bytes);
    case Impl::Coding::kZstd:
      return impl_->read_zstd(out, bytes);
  }
  return 0;
}
const std::filesystem::path& InputFile::path() const { return impl_->path; }
int64_t InputFile::stored_bytes() const { return impl_->size; }
int64_t InputFile::stored_bytes_read() const { return impl_->consumed; }
Hash128 InputFile::stored_hash() const { return impl_->hasher.finish(); }

namespace {

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

}  // namespace

RecordReader::RecordReader(InputFile input, Text text) : input_(std::move(input)) {
  while (buffer_.size() < kReadBytes && fill()) {
  }
  const std::string name = input_.path().string();
  if (buffer_.empty()) throw DataError("{}: the file is empty", name);
  const auto begins = [&](std::string_view s) { return buffer_.compare(0, s.size(), s) == 0; };
  if (begins("\xff\xfe") || begins("\xfe\xff"))
    throw DataError("{}: UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)", name);
  if (begins("PAR1")) throw DataError("{}: a Parquet file; convert it to JSON Lines", name);
  if (begins("PK\x03\x04")) throw DataError("{}: a zip archive; unpack it first", name);
  if (begins("ARROW1")) throw DataError("{}: an Arrow file; convert it to JSON Lines", name);
  if (begins("\xef\xbb\xbf")) buffer_.erase(0, 3);

  const std::string ext = content_extension(input_.path());
  if (text == Text::kYes || (text == Text::kByName && ext == ".txt")) {
    // "--format text" means lines of text, unless the file says by its name that it is JSON.
    if (!(text == Text::kYes && (ext == ".json" || ext == ".jsonl" || ext == ".ndjson"))) {
      layout_ = Layout::kTextLines;
      return;
    }
  }
  // JSON: an array, values over lines as they like, or a value a line.
  size_t first = 0;
  while (first < buffer_.size() && is_space(buffer_[first])) ++first;
  if (first == buffer_.size() && eof_) throw DataError("{}: nothing but white space", name);
  if (ext == ".jsonl" || ext == ".ndjson") return;
  const char c = first < buffer_.size() ? buffer_[first] : '\0';
  if (c == '[') {
    layout_ = Layout::kJsonArray;
  } else if (c == '{') {
    BracketScanner scanner;
    bool whole = false;
    size_t i = first;
    for (; i < buffer_.size() && buffer_[i] != '\n'; ++i)
      if (scanner.feed(buffer_[i]) != BracketScanner::State::kInside) {
        whole = true;
        break;
      }
    const bool line_ends = i < buffer_.size() || eof_;
    if (!whole && line_ends) layout_ = Layout::kJsonValues;
  } else if (text != Text::kYes) {
    throw DataError(
        "{}: neither JSON nor named *.txt: it begins with byte 0x{:02x}, a JSON file begins with "
        "'{{' or '['; for "
        "plain text give --format text",
        name, static_cast<unsigned>(static_cast<unsigned char>(c)));
  } else {
    layout_ = Layout::kTextLines;
  }
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
