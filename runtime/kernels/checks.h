// Argument checks of the operations: a wrong shape, dtype or device is our own bug and is named
// before any memory is read.
#pragma once

#include <initializer_list>
#include <span>

#include "runtime/core/error.h"
#include "runtime/device/tensor.h"

namespace r1::kernels::checks {

/// A tensor under the name the operation's documentation gives it.
struct Named {
  const char* name;
  const Tensor& tensor;
};

/// Checks of one call of one operation. All tensors must be on the stream's device; an empty tensor
/// may have no memory.
class Call {
 public:
  Call(const char* op, const Stream& s) : op_(op), device_(s.device) {}

  /// `t` has exactly this shape.
  void shape(const char* name, const Tensor& t, std::initializer_list<int64_t> dims) const;
  /// `t` has as many dims as named.
  void rank(const char* name, const Tensor& t, int rank) const;
  /// `t` is of one of the dtypes.
  void dtype(const char* name, const Tensor& t, std::initializer_list<DType> allowed) const;
  /// All of one dtype, which on CPU is fp32 and on CUDA fp32 or bf16: activations and weights.
  void floats(std::initializer_list<Named> tensors) const;
  /// Gradient or statistics kept apart from the activations: fp32, or on CUDA also bf16 where
  /// `bf16` allows it.
  void fp32(const char* name, const Tensor& t, bool bf16 = false) const;
  /// `t` is on the stream's device and has memory unless it has no elements.
  void memory(const char* name, const Tensor& t) const;
  /// Head counts and kv_of_q agree with each other.
  void heads(int64_t q_heads, int64_t kv_heads, int64_t head_dim,
             std::span<const int32_t> kv_of_q) const;
  /// A check particular to an operation; `what` completes "<op>: ".
  template <class... Args>
  void require(bool ok, fmt::format_string<Args...> what, Args&&... args) const {
    if (!ok) [[unlikely]]
      fail(fmt::format(what, std::forward<Args>(args)...));
  }

 private:
  [[noreturn]] void fail(const std::string& what) const;

  const char* op_;
  Device device_;
};

}  // namespace r1::kernels::checks
