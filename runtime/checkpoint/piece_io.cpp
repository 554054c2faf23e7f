#include "runtime/checkpoint/piece_io.h"

#include <algorithm>
#include <vector>

#include "runtime/checkpoint/crc32c.h"

namespace r1::checkpoint {
namespace {

struct Widths {
  DType from, to;
  int64_t stored, wanted;  // bytes of an element
};
Widths widths_of(const TensorEntry& entry, DType dtype) {
  R1_CHECK(entry.dtype && convertible(*entry.dtype, dtype), "tensor {}: {} to {}",
           shown(entry.name), entry.dtype_name, dtype_name(dtype));
  return {*entry.dtype, dtype, dtype_bytes(*entry.dtype), dtype_bytes(dtype)};
}

}  // namespace

void read_part(const SafetensorsFile& file, const TensorEntry& entry, const Box& stored,
               const Box& part, const Box& want, DType dtype, void* dst) {
  const Widths w = widths_of(entry, dtype);
  char* out = static_cast<char*>(dst);
  if (w.from == w.to) {
    for_each_run(part, stored, want, [&](const BoxRun& r) {
      file.read_bytes(entry, static_cast<uint64_t>(r.from * w.stored), out + r.to * w.wanted,
                      static_cast<size_t>(r.elems * w.stored));
    });
    return;
  }
  // Runs are gathered in a staging buffer and converted together: a column cut has one short run a
  // row.
  const auto capacity = static_cast<int64_t>(kChunkBytes) / w.stored;
  std::vector<char> staged(static_cast<size_t>(std::min(part.elems(), capacity) * w.stored));
  struct Pending {
    int64_t at, to, elems;
  };
  std::vector<Pending> pending;
  int64_t used = 0;
  const auto flush = [&] {
    for (const Pending& p : pending)
      convert_elements(w.from, staged.data() + p.at * w.stored, w.to, out + p.to * w.wanted,
                       static_cast<size_t>(p.elems));
    pending.clear();
    used = 0;
  };
  for_each_run(part, stored, want, [&](BoxRun r) {
    while (r.elems > 0) {
      if (used == capacity) flush();
      const int64_t n = std::min(r.elems, capacity - used);
      file.read_bytes(entry, static_cast<uint64_t>(r.from * w.stored),
                      staged.data() + used * w.stored, static_cast<size_t>(n * w.stored));
      if (!pending.empty() && pending.back().to + pending.back().elems == r.to)
        pending.back().elems += n;  // the rows of a cut usually follow each other in the buffer
      else
        pending.push_back({used, r.to, n});
      used += n;
      r.from += n;
      r.to += n;
      r.elems -= n;
    }
  });
  flush();
}

uint32_t read_part_checked(const SafetensorsFile& file, const TensorEntry& entry, const Box& stored,
                           const Box& part, const Box& want, DType dtype, void* dst) {
  const Widths w = widths_of(entry, dtype);
  char* out = static_cast<char*>(dst);
  const int64_t total = stored.elems();
  const auto capacity = static_cast<int64_t>(kChunkBytes) / w.stored;
  uint32_t crc = 0;
  if (w.from == w.to && part == stored && part == want) {  // straight into place
    for (int64_t at = 0; at < total; at += capacity) {
      const auto n = static_cast<size_t>(std::min(capacity, total - at) * w.stored);
      file.read_bytes(entry, static_cast<uint64_t>(at * w.stored), out + at * w.stored, n);
      crc = crc32c(out + at * w.stored, n, crc);
    }
    return crc;
  }
  std::vector<char> staged(static_cast<size_t>(std::min(total, capacity) * w.stored));
  int64_t begin = 0, end = 0;  // elements in `staged`
  const auto next_chunk = [&] {
    begin = end;
    end = std::min(total, begin + capacity);
    const auto n = static_cast<size_t>((end - begin) * w.stored);
    file.read_bytes(entry, static_cast<uint64_t>(begin * w.stored), staged.data(), n);
    crc = crc32c(staged.data(), n, crc);
  };
  for_each_run(part, stored, want, [&](BoxRun r) {
    while (r.elems > 0) {
      while (r.from >= end) next_chunk();
      const int64_t n = std::min(r.elems, end - r.from);
      convert_elements(w.from, staged.data() + (r.from - begin) * w.stored, w.to,
                       out + r.to * w.wanted, static_cast<size_t>(n));
      r.from += n;
      r.to += n;
      r.elems -= n;
    }
  });
  while (end < total) next_chunk();
  return crc;
}

}  // namespace r1::checkpoint
