#include "runtime/kernels/checks.h"

#include <algorithm>

namespace r1::kernels::checks {
namespace {

const char* device_name(Device d) { return d.kind == DeviceKind::kCpu ? "cpu" : "cuda"; }

}  // namespace

void Call::fail(const std::string& what) const { throw InternalError("{}: {}", op_, what); }

void Call::memory(const char* name, const Tensor& t) const {
  if (t.device != device_)
    fail(fmt::format("{} is on {}:{}, the stream on {}:{}", name, device_name(t.device),
                     t.device.index, device_name(device_), device_.index));
  if (t.data == nullptr && t.numel() != 0)
    fail(fmt::format("{} {} has no memory", name, t.shape.str()));
}

void Call::shape(const char* name, const Tensor& t, std::initializer_list<int64_t> dims) const {
  memory(name, t);
  if (!(t.shape == Shape(dims)))
    fail(fmt::format("{} has shape {}, expected {}", name, t.shape.str(), Shape(dims).str()));
}

void Call::rank(const char* name, const Tensor& t, int rank) const {
  memory(name, t);
  if (t.shape.rank() != rank)
    fail(fmt::format("{} has shape {}, expected {} dims", name, t.shape.str(), rank));
}

void Call::dtype(const char* name, const Tensor& t, std::initializer_list<DType> allowed) const {
  if (std::find(allowed.begin(), allowed.end(), t.dtype) != allowed.end()) return;
  std::string names;
  for (const DType d : allowed)
    names += fmt::format("{}{}", names.empty() ? "" : " or ", dtype_name(d));
  fail(fmt::format("{} is {}, expected {}", name, dtype_name(t.dtype), names));
}

void Call::floats(std::initializer_list<Named> tensors) const {
  const DType first = tensors.begin()->tensor.dtype;
  for (const auto& [name, tensor] : tensors) {
    if (device_.kind == DeviceKind::kCpu)
      dtype(name, tensor, {DType::kF32});
    else
      dtype(name, tensor, {DType::kF32, DType::kBF16});
    if (tensor.dtype != first)
      fail(fmt::format("{} is {}, but {} is {}", name, dtype_name(tensor.dtype),
                       tensors.begin()->name, dtype_name(first)));
  }
}

void Call::fp32(const char* name, const Tensor& t, bool bf16) const {
  if (bf16 && device_.kind == DeviceKind::kCuda)
    dtype(name, t, {DType::kF32, DType::kBF16});
  else
    dtype(name, t, {DType::kF32});
}

void Call::heads(int64_t q_heads, int64_t kv_heads, int64_t head_dim,
                 std::span<const int32_t> kv_of_q) const {
  require(q_heads >= 0 && kv_heads >= 0 && head_dim >= 1, "{} q heads, {} kv heads, head dim {}",
          q_heads, kv_heads, head_dim);
  require(static_cast<int64_t>(kv_of_q.size()) == q_heads, "kv_of_q has {} entries for {} q heads",
          kv_of_q.size(), q_heads);
  int32_t last = 0;
  for (const int32_t kv : kv_of_q) {
    require(kv >= last && kv < kv_heads,
            "kv_of_q must be non-decreasing and below {} kv heads, found {} after {}", kv_heads, kv,
            last);
    last = kv;
  }
}

}  // namespace r1::kernels::checks
