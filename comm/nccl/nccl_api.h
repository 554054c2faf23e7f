// NCCL as the communicator uses it: every call says whether it is through, under way, or failed.
// Implemented in the CUDA library, which opens libnccl.so.2 when a group is first made; no NCCL or
// CUDA header is needed to use it.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace r1::comm {

/// What a call on a non-blocking NCCL communicator left behind.
struct NcclStatus {
  enum class State { kDone, kUnderWay, kFailed } state = State::kDone;
  std::string text;  ///< of a failure: NCCL's message and its last error
};

class NcclApi {
 public:
  using Id = std::array<char, 128>;
  using Comm = void*;

  virtual ~NcclApi() = default;
  [[nodiscard]] virtual std::string version() = 0;
  /// Throws CommError with NCCL's text.
  [[nodiscard]] virtual Id unique_id() = 0;
  /// Starts making a communicator (non-blocking); `status` says when it can be used. Throws
  /// CommError when refused.
  [[nodiscard]] virtual Comm init(const Id& id, int ranks, int rank, Device device) = 0;
  [[nodiscard]] virtual NcclStatus status(Comm comm) = 0;
  /// Starts making a communicator of the same ranks whose calls run in the caller's thread: a call
  /// on a non-blocking one costs a thread of its own (70 us against 50 us for a small all-reduce of
  /// two H100s). It shares the resources of `parent`, which is to be kept until after it. Ready
  /// when `status(parent)` says so, then in `*out`. Collective.
  [[nodiscard]] virtual NcclStatus split(Comm parent, int rank, Comm* out) = 0;

  virtual void group_begin() = 0;
  [[nodiscard]] virtual NcclStatus group_end() = 0;
  [[nodiscard]] virtual NcclStatus all_reduce(Comm comm, const Tensor& x, ReduceOp op,
                                              const Stream& s) = 0;
  [[nodiscard]] virtual NcclStatus all_gather(Comm comm, const void* in, void* out, int64_t numel,
                                              DType dtype, const Stream& s) = 0;
  [[nodiscard]] virtual NcclStatus reduce_scatter(Comm comm, const void* in, void* out,
                                                  int64_t numel, DType dtype, const Stream& s) = 0;
  [[nodiscard]] virtual NcclStatus broadcast(Comm comm, const Tensor& x, int root,
                                             const Stream& s) = 0;
  [[nodiscard]] virtual NcclStatus send(Comm comm, const void* data, int64_t bytes, int peer,
                                        const Stream& s) = 0;
  [[nodiscard]] virtual NcclStatus recv(Comm comm, void* data, int64_t bytes, int peer,
                                        const Stream& s) = 0;

  /// Collective ends: finalize on all ranks, then destroy when `status` is done.
  [[nodiscard]] virtual NcclStatus finalize(Comm comm) = 0;
  virtual void destroy(Comm comm) noexcept = 0;
  /// Makes their kernels leave, wherever the other ranks are. Local. All at once: freeing the first
  /// waits for the device, on which a kernel of the second may wait for its peer. Does not wait
  /// longer than a few seconds.
  virtual void abort(const std::vector<Comm>& comms) noexcept = 0;
};

/// Opens the CUDA library and NCCL. Throws DeviceError with the paths tried and the loader's
/// message.
[[nodiscard]] NcclApi& nccl_api();

}  // namespace r1::comm
