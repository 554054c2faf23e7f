#include "comm/arguments.h"

#include <algorithm>
#include <numeric>

namespace r1::comm {

void check_tensor(const Communicator& c, const char* operation, const Tensor& x, DeviceKind kind) {
  R1_CHECK(x.data != nullptr || x.numel() == 0, "{} on {}: {} elements without data", operation,
           c.name(), x.numel());
  R1_CHECK(x.device.kind == kind, "{} on {}: a {} tensor, but this backend works on {} tensors",
           operation, c.name(), x.device.kind == DeviceKind::kCpu ? "CPU" : "CUDA",
           kind == DeviceKind::kCpu ? "CPU" : "CUDA");
}

void check_reducible(const Communicator& c, const char* operation, const Tensor& x) {
  R1_CHECK(x.dtype != DType::kU8, "{} on {}: no reduction of {} is defined", operation, c.name(),
           dtype_name(x.dtype));
}

void check_peer(const Communicator& c, const char* operation, int peer) {
  R1_CHECK(0 <= peer && peer < c.size(), "{} on {}: rank {} of a group of {}", operation, c.name(),
           peer, c.size());
}

void check_counts(const Communicator& c, const char* operation, const Tensor& x,
                  std::span<const int64_t> counts) {
  R1_CHECK(static_cast<int>(counts.size()) == c.size(), "{} on {}: {} counts for {} ranks",
           operation, c.name(), counts.size(), c.size());
  int64_t sum = 0;
  for (int64_t n : counts) {
    R1_CHECK(n >= 0, "{} on {}: a count of {}", operation, c.name(), n);
    sum += n;
  }
  R1_CHECK(x.numel() == sum, "{} on {}: counts make {} elements, the tensor has {}", operation,
           c.name(), sum, x.numel());
}

void check_parts(const Communicator& c, const char* operation, const Tensor& part,
                 const Tensor& whole, std::span<const int64_t> counts) {
  check_counts(c, operation, whole, counts);
  const int64_t own = counts[static_cast<size_t>(c.rank())];
  R1_CHECK(part.numel() == own, "{} on {}: the part of rank {} has {} elements, its count is {}",
           operation, c.name(), c.rank(), part.numel(), own);
  R1_CHECK(part.dtype == whole.dtype, "{} on {}: parts of {} and a whole of {}", operation,
           c.name(), dtype_name(part.dtype), dtype_name(whole.dtype));
}

void check_sharded(const Communicator& c, const char* operation, const ShardedTensor& x) {
  R1_CHECK(static_cast<int>(x.parts.size()) == c.size(), "{} on {}: {} parts for {} ranks", operation, c.name(),
           x.parts.size(), c.size());
  for (const Tensor& part : x.parts) {
    R1_CHECK(part.data != nullptr || part.numel() == 0, "{} on {}: {} elements without data", operation, c.name(),
             part.numel());
    R1_CHECK(part.dtype == x.parts.front().dtype, "{} on {}: parts of {} and {}", operation, c.name(),
             dtype_name(part.dtype), dtype_name(x.parts.front().dtype));
    check_reducible(c, operation, part);
  }
}

void check_sharded(const Communicator& c, const char* operation, std::span<const ShardedTensor> xs, DeviceKind kind) {
  for (const ShardedTensor& x : xs) {
    check_sharded(c, operation, x);
    for (const Tensor& part : x.parts) check_tensor(c, operation, part, kind);
  }
}

std::string group_name(const std::string& axis, std::span<const int> world_ranks) {
  if (axis.find('[') != std::string::npos) return axis;
  std::string text = axis + "[";
  for (size_t i = 0; i < world_ranks.size();) {
    size_t end = i + 1;  // one past the run of consecutive ranks
    if (world_ranks.size() > 8)
      while (end < world_ranks.size() && world_ranks[end] == world_ranks[end - 1] + 1) ++end;
    if (i != 0) text += ',';
    fmt::format_to(std::back_inserter(text), "{}", world_ranks[i]);
    if (end - i > 1)
      fmt::format_to(std::back_inserter(text), "{}{}", end - i > 2 ? '-' : ',',
                     world_ranks[end - 1]);
    i = end;
  }
  return text + "]";
}

std::vector<int> split_members(std::span<const SplitKey> keys, int rank) {
  std::vector<int> members;
  for (size_t r = 0; r < keys.size(); ++r)
    if (keys[r].color == keys[static_cast<size_t>(rank)].color)
      members.push_back(static_cast<int>(r));
  std::stable_sort(members.begin(), members.end(), [&](int a, int b) {
    return keys[static_cast<size_t>(a)].key < keys[static_cast<size_t>(b)].key;
  });
  return members;
}

}  // namespace r1::comm
