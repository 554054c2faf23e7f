// What every backend checks before it touches a wire, and the names of groups.
#pragma once

#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "comm/communicator.h"

namespace r1::comm {

/// Checks of one call's arguments: all throw InternalError (a wrong call is our own mistake) with
/// group and operation. Tensors with elements need data; `kind` is where this backend's tensors
/// live.
void check_tensor(const Communicator& c, const char* operation, const Tensor& x,
                  DeviceKind kind = DeviceKind::kCpu);
void check_reducible(const Communicator& c, const char* operation, const Tensor& x);
void check_peer(const Communicator& c, const char* operation, int peer);
/// `part` holds counts[rank] elements and `whole` their sum; one dtype.
void check_parts(const Communicator& c, const char* operation, const Tensor& part,
                 const Tensor& whole, std::span<const int64_t> counts);
/// `x` holds the sum of counts.
void check_counts(const Communicator& c, const char* operation, const Tensor& x,
                  std::span<const int64_t> counts);

/// One part a rank, all of one dtype that can be summed; `kind` as above where the backend says so.
void check_sharded(const Communicator& c, const char* operation, const ShardedTensor& x);
/// The same of several, whose parts must be on devices of `kind`.
void check_sharded(const Communicator& c, const char* operation, std::span<const ShardedTensor> xs, DeviceKind kind);

/// "tp" and {4, 5, 6, 7} give "tp[4,5,6,7]"; more than eight ranks are shown as ranges:
/// "dp[0-15,32]". A name that carries brackets already is kept.
[[nodiscard]] std::string group_name(const std::string& axis, std::span<const int> world_ranks);

/// One rank's answer in a split, as it travels.
struct SplitKey {
  int64_t color = 0, key = 0;
};
/// Ranks of the parent that share the color of `rank`, ordered by key, ties by rank.
[[nodiscard]] std::vector<int> split_members(std::span<const SplitKey> keys, int rank);

/// Every rank's `mine`, in rank order; as many elements on each. `host` carries host tensors. Collective over it.
template <class T>
[[nodiscard]] std::vector<T> gather_all(Communicator& host, std::span<const T> mine) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto n = static_cast<size_t>(host.size());
  const auto bytes = static_cast<int64_t>(mine.size_bytes());
  std::vector<T> all(mine.size() * n);
  host.all_gather({.data = const_cast<T*>(mine.data()), .dtype = DType::kU8, .shape = {bytes}, .device = {}},
                  {.data = all.data(), .dtype = DType::kU8, .shape = {bytes * host.size()}, .device = {}},
                  std::vector<int64_t>(n, bytes), {});
  return all;
}

/// x moved on by `elems` elements.
[[nodiscard]] inline char* at_elem(const Tensor& x, int64_t elems) {
  return static_cast<char*>(x.data) + elems * dtype_bytes(x.dtype);
}

/// memcpy that accepts null pointers for zero bytes.
inline void copy_bytes(void* dst, const void* src, size_t bytes) {
  if (bytes != 0 && dst != src) std::memmove(dst, src, bytes);
}

}  // namespace r1::comm
