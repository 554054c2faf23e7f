#include "runtime/train/upload.h"

#include <algorithm>

#include "runtime/device/cpu/thread_pool.h"

namespace r1::train {

namespace {

/// Rows [begin, end) of the box, counted from its first.
checkpoint::Box rows_of(checkpoint::Box box, int64_t begin, int64_t end) {
  if (box.size.empty()) return box;  // a scalar
  box.start.front() += begin;
  box.size.front() = end - begin;
  return box;
}

int64_t rows_in(int64_t bytes, int64_t row_bytes) { return std::max<int64_t>(1, bytes / std::max<int64_t>(1, row_bytes)); }

}  // namespace

Uploader::Uploader(const Stream& s, const Bands& bands) : stream_(s), bands_(bands), backend_(backend_of(s.device.kind)) {}

Uploader::~Uploader() {
  for (Staging& s : staging_)
    if (s.copied.handle != nullptr) {
      // The copy may still read the memory, also when an error ends the loading.
      try {
        backend_.synchronize(s.copied);
      } catch (...) {
      }
      backend_.destroy_event(s.copied);
    }
}

Uploader::Staging& Uploader::next(size_t bytes) {
  Staging& s = staging_[turn_++ % staging_.size()];
  if (s.copied.handle != nullptr) backend_.synchronize(s.copied);
  if (s.memory.bytes() < bytes) s.memory = PinnedBuffer(stream_.device.kind, std::max(bytes, static_cast<size_t>(bands_.copy_bytes)));
  if (s.copied.handle == nullptr) s.copied = backend_.create_event(stream_.device, false);
  return s;
}

void Uploader::fill(const Tensor& to, const checkpoint::Box& box, const ReadBox& read) {
  const int64_t elems = box.elems();
  R1_CHECK(to.numel() == elems, "{} elements for a box of {}", to.numel(), elems);
  if (elems == 0) return;
  const int64_t rows = box.size.empty() ? 1 : box.size.front();
  const int64_t row_bytes = elems / rows * dtype_bytes(to.dtype);
  const auto read_rows = [&](int64_t begin, int64_t end, char* dst) {
    parallel_ranges(end - begin, rows_in(bands_.read_bytes, row_bytes), [&](int64_t b, int64_t e) {
      read(rows_of(box, begin + b, begin + e), to.dtype, dst + b * row_bytes);
    });
  };
  char* const target = static_cast<char*>(to.data);
  if (to.device.kind == DeviceKind::kCpu && !bands_.always_staged) return read_rows(0, rows, target);
  const int64_t band = rows_in(bands_.copy_bytes, row_bytes);
  for (int64_t row = 0; row < rows; row += band) {
    const int64_t n = std::min(band, rows - row);
    const auto bytes = static_cast<size_t>(n * row_bytes);
    Staging& staging = next(bytes);
    read_rows(row, row + n, static_cast<char*>(staging.memory.data()));
    backend_.copy(target + row * row_bytes, staging.memory.data(), bytes, stream_);
    backend_.record(staging.copied, stream_);
  }
}

}  // namespace r1::train
