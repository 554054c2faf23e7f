#include "runtime/data/input.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "runtime/core/error.h"

namespace r1::data {
namespace {

constexpr size_t kStoredBuffer = size_t{256} << 10;

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

}  // namespace r1::data
