// cuDNN's fused attention through cudnn-frontend graphs: one plan a shape, kept for the life of the
// device's context. q, k and v are read inside the fused qkv tensor through strides, o, dq (and in
// the dense case dk, dv) written likewise.
//
// Dense: all segments equally long: [B, S] rows. Ragged: any packing, offsets on the device; batch
// and longest segment are rounded up (empty segments at the end), so that a few plans serve every
// packing.
#pragma once

#include <cuda_runtime_api.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

struct cudnnContext;

namespace r1::cuda {

struct Settings;  // runtime/device/cuda/context.h

/// What a plan is made for. Strides follow: `width` is the row length of the fused qkv tensor,
/// `o_width` of o.
struct AttentionShape {
  bool backward = false;
  bool ragged = false;
  bool deterministic = false;
  int64_t batch = 0, length = 0;  ///< segments and the longest of them, rounded up where ragged
  int64_t tokens = 0;             ///< of the whole tensor
  int64_t q_heads = 0, kv_heads = 0, head_dim = 0;
  int64_t width = 0, o_width = 0;
  float scale = 1;
  auto operator<=>(const AttentionShape&) const = default;
  [[nodiscard]] std::string str() const;
  /// True when the backward writes dk and dv as tensors of their own, [tokens, kv_heads, D], not into the fused dqkv: with
  /// grouped heads cuDNN first expands them to all query heads at the outputs' row length, and wide rows cost time (measured on
  /// an H200, 12/2 heads, T 4096: 1.42 ms in place) and workspace.
  [[nodiscard]] bool compact_dkv() const { return ragged || q_heads != kv_heads; }
};

/// Device pointers of one execution; the ragged ones are null in the dense case.
struct AttentionPointers {
  void *q = nullptr, *k = nullptr, *v = nullptr, *o = nullptr, *lse = nullptr;
  void *d_o = nullptr, *dq = nullptr, *dk = nullptr, *dv = nullptr;
  void *lengths = nullptr, *qkv_offsets = nullptr, *o_offsets = nullptr, *lse_offsets = nullptr,
       *dkv_offsets = nullptr;
};

class AttentionPlans {
 public:
  AttentionPlans(int device, const Settings& settings);
  ~AttentionPlans();
  AttentionPlans(const AttentionPlans&) = delete;
  AttentionPlans& operator=(const AttentionPlans&) = delete;

  /// Bytes of workspace the plan wants, or -1 when cuDNN has no kernel for the shape (the reason
  /// goes to the debug log).
  [[nodiscard]] int64_t prepare(const AttentionShape& shape);
  /// Enqueues a prepared plan. The first time, all candidates of the shape may be timed on `stream` (never while it
  /// captures).
  void run(const AttentionShape& shape, const AttentionPointers& p, void* workspace,
           cudaStream_t stream);
  /// For reports: shapes seen, with their workspace (-1: own kernel).
  [[nodiscard]] std::vector<std::pair<std::string, int64_t>> plans();

 private:
  struct Plan;
  Plan& plan(const AttentionShape& shape);
  void build(const AttentionShape& shape, Plan& plan);
  bool open();

  int device_;
  const Settings& settings_;
  std::mutex mutex_;
  bool tried_ = false;
  cudnnContext* handle_ = nullptr;
  std::map<AttentionShape, std::unique_ptr<Plan>> plans_;
};

}  // namespace r1::cuda
