#include "runtime/device/cuda/attention_plans.h"

#include <dlfcn.h>

#include <cstdlib>
#include <unordered_map>
#include <utility>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <cudnn_frontend.h>
#pragma GCC diagnostic pop

#include "runtime/core/error.h"
#include "runtime/core/log.h"
#include "runtime/device/cuda/check.h"
#include "runtime/device/cuda/context.h"

namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;  // the frontend's own hook for a library opened at run time
}

namespace r1::cuda {
namespace {

namespace fe = cudnn_frontend;

enum Uid : int64_t {
  kQ = 1,
  kK,
  kV,
  kO,
  kLse,
  kDo,
  kDq,
  kDk,
  kDv,
  kLengthsQ,
  kLengthsKv,
  kQkvOffsets,
  kOOffsets,
  kLseOffsets,
  kDkvOffsets
};

}  // namespace

std::string AttentionShape::str() const {
  return fmt::format("{} {}{} batch {} length {} tokens {} heads {}/{} x {}",
                     backward ? "backward" : "forward", ragged ? "ragged" : "dense",
                     deterministic ? " deterministic" : "", batch, length, tokens, q_heads,
                     kv_heads, head_dim);
}

struct AttentionPlans::Plan {
  std::unique_ptr<fe::graph::Graph> graph;  // null: cuDNN has no kernel
  int64_t workspace = -1;
  std::string reason;  // why there is none
  int64_t candidates = 1;
  bool settled = true;  // false: the candidates are still to be timed
};

AttentionPlans::AttentionPlans(int device, const Settings& settings)
    : device_(device), settings_(settings) {}

AttentionPlans::~AttentionPlans() {
  plans_.clear();
  if (handle_ != nullptr) (void)fe::detail::destroy_handle(handle_);
}

bool AttentionPlans::open() {
  if (tried_) return handle_ != nullptr;
  tried_ = true;
  if (fe::cudnn_dlhandle == nullptr) {
    // The runtime this library is linked to; the frontend would otherwise look for older ones
    // first.
    (void)setenv("CUDNN_FRONTEND_CUDART_LIB_NAME", "libcudart.so.13", 0);
    fe::cudnn_dlhandle = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    if (fe::cudnn_dlhandle == nullptr) {
      const char* why = dlerror();
      log::warn(
          "cuDNN 9 cannot be loaded ({}): attention runs on the own fp32 kernels, several times "
          "slower. Install cuDNN "
          "9 for CUDA 13 or add its folder to LD_LIBRARY_PATH",
          why != nullptr ? why : "no message");
      return false;
    }
  }
  CUDA_CHECK(cudaSetDevice(device_));  // callers hold a DeviceScope for it already
  const auto status = fe::detail::create_handle(&handle_);
  if (status != CUDNN_STATUS_SUCCESS) {
    handle_ = nullptr;
    throw DeviceError(
        "cuda:{}: cuDNN cannot start: {}; check that driver and cuDNN fit each other and that "
        "memory is free",
        device_, fe::detail::get_error_string(status));
  }
  return true;
}

void AttentionPlans::build(const AttentionShape& s, Plan& plan) {
  using fe::DataType_t;
  auto graph = std::make_unique<fe::graph::Graph>();
  graph->set_io_data_type(DataType_t::BFLOAT16)
      .set_intermediate_data_type(DataType_t::FLOAT)
      .set_compute_data_type(DataType_t::FLOAT);
  using Attributes = fe::graph::Tensor_attributes;
  using TensorPtr = std::shared_ptr<Attributes>;
  const auto vector = [&](const char* name, Uid uid, int64_t n, DataType_t type) {
    return graph->tensor(Attributes()
                             .set_name(name)
                             .set_uid(uid)
                             .set_dim({n, 1, 1, 1})
                             .set_stride({1, 1, 1, 1})
                             .set_data_type(type));
  };
  // Offsets count elements; beyond 2^31 of them they need 64 bits.
  const DataType_t offset_type =
      s.tokens * s.width < (int64_t{1} << 31) ? DataType_t::INT32 : DataType_t::INT64;
  TensorPtr lengths_q, lengths_kv, qkv_offsets, o_offsets, lse_offsets, dkv_offsets;
  if (s.ragged) {
    lengths_q = vector("lengths_q", kLengthsQ, s.batch, DataType_t::INT32);
    lengths_kv = vector("lengths_kv", kLengthsKv, s.batch, DataType_t::INT32);
    qkv_offsets = vector("qkv_offsets", kQkvOffsets, s.batch + 1, offset_type);
    o_offsets = vector("o_offsets", kOOffsets, s.batch + 1, offset_type);
    lse_offsets = vector("lse_offsets", kLseOffsets, s.batch + 1, offset_type);
    if (s.backward) dkv_offsets = vector("dkv_offsets", kDkvOffsets, s.batch + 1, offset_type);
  }
  const int64_t d = s.head_dim, n = s.length;
  const auto describe = [&](const char* name, Uid uid, int64_t heads, int64_t row,
                            const TensorPtr& offsets) {
    auto a = Attributes()
                 .set_name(name)
                 .set_uid(uid)
                 .set_dim({s.batch, heads, n, d})
                 .set_stride({n * row, d, row, 1});
    if (offsets) a.set_ragged_offset(offsets);
    return a;
  };
  const auto q = graph->tensor(describe("q", kQ, s.q_heads, s.width, qkv_offsets));
  const auto k = graph->tensor(describe("k", kK, s.kv_heads, s.width, qkv_offsets));
  const auto v = graph->tensor(describe("v", kV, s.kv_heads, s.width, qkv_offsets));
  // Statistics: [B, heads, S], or [tokens, heads] where ragged.
  auto stats = Attributes()
                   .set_name("lse")
                   .set_uid(kLse)
                   .set_dim({s.batch, s.q_heads, n, 1})
                   .set_data_type(DataType_t::FLOAT);
  if (s.ragged)
    stats.set_stride({s.q_heads * n, 1, s.q_heads, 1}).set_ragged_offset(lse_offsets);
  else
    stats.set_stride({s.q_heads * n, n, 1, 1});
  const auto finish = [&](const TensorPtr& t, const char* name, Uid uid, int64_t heads, int64_t row,
                          const TensorPtr& offsets) {
    t->set_output(true)
        .set_name(name)
        .set_uid(uid)
        .set_dim({s.batch, heads, n, d})
        .set_stride({n * row, d, row, 1});
    if (offsets) t->set_ragged_offset(offsets);
  };

  if (!s.backward) {
    auto options = fe::graph::SDPA_attributes()
                       .set_name("attention")
                       .set_generate_stats(true)
                       .set_causal_mask(true)
                       .set_attn_scale(s.scale);
    if (s.ragged)
      options.set_padding_mask(true).set_seq_len_q(lengths_q).set_seq_len_kv(lengths_kv);
    auto [o, lse] = graph->sdpa(q, k, v, options);
    finish(o, "o", kO, s.q_heads, s.o_width, o_offsets);
    lse->set_output(true)
        .set_name("lse")
        .set_uid(kLse)
        .set_data_type(DataType_t::FLOAT)
        .set_dim(stats.get_dim())
        .set_stride(stats.get_stride());
    if (s.ragged) lse->set_ragged_offset(lse_offsets);
  } else {
    const auto o = graph->tensor(describe("o", kO, s.q_heads, s.o_width, o_offsets));
    const auto d_o = graph->tensor(describe("do", kDo, s.q_heads, s.o_width, o_offsets));
    const auto lse = graph->tensor(stats);
    auto options = fe::graph::SDPA_backward_attributes()
                       .set_name("attention_backward")
                       .set_causal_mask(true)
                       .set_attn_scale(s.scale)
                       .set_deterministic_algorithm(s.deterministic);
    if (s.ragged) {
      options.set_padding_mask(true).set_seq_len_q(lengths_q).set_seq_len_kv(lengths_kv);
      options.set_max_total_seq_len_q(s.tokens).set_max_total_seq_len_kv(s.tokens);
    }
    auto [dq, dk, dv] = graph->sdpa_backward(q, k, v, o, d_o, lse, options);
    const int64_t kv_row = s.compact_dkv() ? s.kv_heads * d : s.width;
    finish(dq, "dq", kDq, s.q_heads, s.width, qkv_offsets);
    finish(dk, "dk", kDk, s.kv_heads, kv_row, dkv_offsets);
    finish(dv, "dv", kDv, s.kv_heads, kv_row, dkv_offsets);
  }
  // The library's first choice is not always its fastest. Two candidates may sum in different orders: a run that must
  // repeat takes the first.
  const bool timed = settings_.tuning == Tuning::kTimed && !settings_.deterministic;
  auto status = graph->build(
      handle_, {fe::HeurMode_t::A},
      timed ? fe::BuildPlanPolicy_t::ALL : fe::BuildPlanPolicy_t::HEURISTICS_CHOICE);
  if (status.is_bad()) {
    plan.reason = status.get_message();
    log::debug("cuDNN has no attention for {}: {}", s.str(), plan.reason);
    return;
  }
  int64_t bytes = 0;
  auto sized = graph->get_workspace_size(bytes);
  if (sized.is_bad())
    throw DeviceError("cuda:{}: cuDNN attention {}: {}", device_, s.str(), sized.get_message());
  if (timed) {
    plan.candidates = graph->get_execution_plan_count();
    plan.settled = plan.candidates < 2;
    bytes = std::max(bytes, graph->get_autotune_workspace_size());
  }
  plan.workspace = bytes;
  plan.graph = std::move(graph);
}

AttentionPlans::Plan& AttentionPlans::plan(const AttentionShape& shape) {
  auto& entry = plans_[shape];
  if (!entry) {
    auto fresh = std::make_unique<Plan>();
    if (open()) build(shape, *fresh);
    entry = std::move(fresh);
  }
  return *entry;
}

int64_t AttentionPlans::prepare(const AttentionShape& shape) {
  const std::scoped_lock lock(mutex_);
  return plan(shape).workspace;
}

void AttentionPlans::run(const AttentionShape& shape, const AttentionPointers& p, void* workspace,
                         cudaStream_t stream) {
  const std::scoped_lock lock(mutex_);
  Plan& pl = plan(shape);
  R1_CHECK(pl.graph != nullptr, "attention {} was not prepared", shape.str());
  std::unordered_map<int64_t, void*> pack{
      {kQ, p.q}, {kK, p.k}, {kV, p.v}, {kO, p.o}, {kLse, p.lse}};
  if (shape.backward) pack.insert({{kDo, p.d_o}, {kDq, p.dq}, {kDk, p.dk}, {kDv, p.dv}});
  if (shape.ragged) {
    pack.insert({{kLengthsQ, p.lengths},
                 {kLengthsKv, p.lengths},
                 {kQkvOffsets, p.qkv_offsets},
                 {kOOffsets, p.o_offsets},
                 {kLseOffsets, p.lse_offsets}});
    if (shape.backward) pack.insert({kDkvOffsets, p.dkv_offsets});
  }
  const auto bound = fe::detail::set_stream(handle_, stream);
  if (bound != CUDNN_STATUS_SUCCESS)
    throw DeviceError("cuda:{}: cuDNN refused the stream: {}", device_,
                      fe::detail::get_error_string(bound));
  if (!pl.settled) {
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    CUDA_CHECK(cudaStreamIsCapturing(stream, &capturing));
    if (capturing == cudaStreamCaptureStatusNone) {
      pl.settled = true;
      if (auto tuned = pl.graph->autotune(handle_, pack, workspace); tuned.is_bad())
        log::debug("cuDNN attention {}: {}", shape.str(), tuned.get_message());
    }
  }
  auto status = pl.graph->execute(handle_, pack, workspace);
  if (status.is_bad())
    throw DeviceError("cuda:{}: cuDNN attention {} failed: {}", device_, shape.str(),
                      status.get_message());
}

std::vector<std::pair<std::string, int64_t>> AttentionPlans::plans() {
  const std::scoped_lock lock(mutex_);
  std::vector<std::pair<std::string, int64_t>> all;
  for (const auto& [shape, plan] : plans_)
    all.emplace_back(plan->reason.empty()
                         ? fmt::format("{}, {} candidates", shape.str(), plan->candidates)
                         : fmt::format("{} (own kernel; cuDNN: {})", shape.str(), plan->reason),
                     plan->workspace);
  return all;
}

}  // namespace r1::cuda
