#include "runtime/models/parameters.h"


#include "runtime/core/rng.h"
#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/ops.h"

namespace r1::models {

using parallel::ParamRole;
using parallel::ParamSpec;

namespace {

Tensor flat(const Buffer& b, DType dtype, int64_t elems) {
  return {.data = b.data(), .dtype = dtype, .shape = {elems}, .device = b.device()};
}

}  // namespace

StageParameters::StageParameters(const parallel::ModelSpec& spec, int stage, int tp_rank, const parallel::NumericFormat& format,
                                 Device device, const Holds& holds, const Stream& s)
    : stage_(stage), tp_rank_(tp_rank), shards_(holds.shards), specs_(spec.stage_params(stage)),
      layout_(param_layout(specs_, tp_rank)),
      state_layout_(parallel::state_layout(specs_, tp_rank, holds.shard, holds.shards)) {
  DeviceBackend& backend = backend_of(device.kind);
  const auto make = [&](Buffer& buffer, DType dtype, int64_t elems) {
    buffer = Buffer(device, static_cast<size_t>(elems * dtype_bytes(dtype)));
    backend.fill_zero(buffer.data(), buffer.bytes(), s);
    return flat(buffer, dtype, elems);
  };
  const auto make_state = [&](Buffer& buffer, DType dtype) {
    if (!holds.offload) return make(buffer, dtype, state_layout_.elems);
    offloaded_.emplace_back(device.kind, static_cast<size_t>(state_layout_.elems * dtype_bytes(dtype)));
    const PinnedBuffer& host = offloaded_.back();
    backend_of(DeviceKind::kCpu).fill_zero(host.data(), host.bytes(), {});
    return Tensor{.data = host.data(), .dtype = dtype, .shape = {state_layout_.elems}, .device = device};
  };
  weights_ = make(weight_buffer_, format.weights, layout_.elems);
  if (!holds.training) return;
  for (int k = 0; k < holds.gradient_slots; ++k) {
    gradient_slots_.push_back(make(gradient_buffers_.emplace_back(), format.gradients, layout_.elems));
    if (!holds.tied_head) continue;
    const size_t embedding = index(ParamRole::kEmbedding, -1);
    const std::vector<int64_t> shape = specs_[embedding].shard.local_shape(tp_rank);
    tied_head_gradients_.push_back(
        make(gradient_buffers_.emplace_back(), format.gradients, specs_[embedding].shard.local_elems(tp_rank))
            .view(Shape{std::span<const int64_t>(shape)}));
  }
  if (format.master) master_ = make_state(master_buffer_, DType::kF32);
  exp_avg_ = make_state(exp_avg_buffer_, format.moments);
  exp_avg_sq_ = make_state(exp_avg_sq_buffer_, format.moments);
}

Tensor StageParameters::state(const Tensor& block, size_t i) const {
  if (block.data == nullptr) return {};
  std::vector<int64_t> shape = specs_.at(i).shard.local_shape(tp_rank_);
  shape.front() = state_layout_.rows[i].size();
  Tensor t = block;
  t.shape = Shape{std::span<const int64_t>(shape)};
  t.data = static_cast<char*>(block.data) + state_layout_.offsets[i] * dtype_bytes(block.dtype);
  return t;
}

Tensor StageParameters::part(const Tensor& block, size_t i) const { return fused(block, i, 1); }

Tensor StageParameters::fused(const Tensor& block, size_t first, size_t count) const {
  if (block.data == nullptr) return {};
  R1_CHECK(block.numel() == layout_.elems, "stage {}: a block of {} elements, its parameters have {}", stage_, block.numel(),
           layout_.elems);
  const std::vector<int64_t> shape = specs_.at(first).shard.local_shape(tp_rank_);
  Shape s{std::span<const int64_t>(shape)};
  for (size_t i = first + 1; i < first + count; ++i) {
    R1_CHECK(specs_.at(i).fused_with_previous, "{} does not follow its neighbour", specs_[i].name);
    s[0] += specs_[i].shard.local_shape(tp_rank_)[0];
  }
  Tensor t = block;
  t.shape = s;
  t.data = static_cast<char*>(block.data) + layout_.offsets[first] * dtype_bytes(block.dtype);
  return t;
}

bool StageParameters::holds(ParamRole role, int64_t layer) const {
  for (const ParamSpec& p : specs_)
    if (p.role == role && p.layer == layer) return true;
  return false;
}

size_t StageParameters::index(ParamRole role, int64_t layer) const {
  for (size_t i = 0; i < specs_.size(); ++i)
    if (specs_[i].role == role && specs_[i].layer == layer) return i;
  throw InternalError("stage {} holds no parameter of role {} in layer {}", stage_, static_cast<int>(role), layer);
}

nn::LayerTensors StageParameters::layer(const Tensor& block, int64_t l) const {
  nn::LayerTensors t;
  if (block.data == nullptr) return t;
  t.input_norm = part(block, index(ParamRole::kInputNorm, l));
  t.qkv = fused(block, index(ParamRole::kQ, l), 3);
  if (holds(ParamRole::kQBias, l)) t.qkv_bias = fused(block, index(ParamRole::kQBias, l), 3);
  if (holds(ParamRole::kQNorm, l)) {
    t.q_norm = part(block, index(ParamRole::kQNorm, l));
    t.k_norm = part(block, index(ParamRole::kKNorm, l));
  }
  t.o = part(block, index(ParamRole::kO, l));
  t.post_norm = part(block, index(ParamRole::kPostNorm, l));
  t.gate_up = fused(block, index(ParamRole::kGate, l), 2);
  t.down = part(block, index(ParamRole::kDown, l));
  return t;
}

void initialise(const StageParameters& params, const parallel::ModelConfig& config, uint64_t seed, const Stream& s) {
  for (size_t i = 0; i < params.specs().size(); ++i) {
    const ParamSpec& p = params.specs()[i];
    const int64_t n = p.shard.local_elems(params.tp_rank());
    std::vector<float> values(static_cast<size_t>(n));
    switch (p.role) {
      case ParamRole::kInputNorm: case ParamRole::kPostNorm: case ParamRole::kFinalNorm: case ParamRole::kQNorm:
      case ParamRole::kKNorm:
        std::fill(values.begin(), values.end(), 1.0F);
        break;
      case ParamRole::kQBias: case ParamRole::kKBias: case ParamRole::kVBias:
        break;  // zeros
      default: {
        const Rng rng(seed, "init:" + p.name);
        for (const parallel::Run& run : runs_of(p.shard, params.tp_rank(), p.shard.part(params.tp_rank())))
          parallel_ranges(run.count, int64_t{1} << 16, [&](int64_t begin, int64_t end) {
            for (int64_t e = begin; e < end; ++e)
              values[static_cast<size_t>(run.local + e)] =
                  static_cast<float>(config.initializer_range * rng.normal(static_cast<uint64_t>(run.global + e)));
          });
      }
    }
    set_weights(params, i, values.data(), s);
  }
}

void set_weights(const StageParameters& params, size_t i, const float* values, const Stream& s) {
  DeviceBackend& backend = backend_of(s.device.kind);
  const Tensor w = params.part(params.weights(), i);
  const Tensor m = params.state(params.master(), i);
  const int64_t n = w.numel();
  if (w.dtype == DType::kF32) {
    backend.copy(w.data, values, w.bytes(), s);
  } else {
    R1_CHECK(w.dtype == DType::kBF16, "weights of dtype {}", dtype_name(w.dtype));
    std::vector<uint16_t> bits(static_cast<size_t>(n));
    parallel_ranges(n, int64_t{1} << 20, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e) bits[static_cast<size_t>(e)] = float_to_bf16(values[e]);
    });
    backend.copy(w.data, bits.data(), w.bytes(), s);
    backend.synchronize(s);
  }
  if (m.data != nullptr && m.numel() != 0) {
    const int64_t row = m.numel() / m.dim(0);
    backend.copy(m.data, values + params.state_layout().rows[i].begin * row, m.bytes(), s);
  }
  backend.synchronize(s);
}

std::vector<float> host_values(const StageParameters& params, const Tensor& block, size_t i, const Stream& s) {
  return host_floats(params.part(block, i), s);
}

std::vector<float> host_floats(const Tensor& t, const Stream& s) {
  DeviceBackend& backend = backend_of(s.device.kind);
  std::vector<float> out(static_cast<size_t>(t.numel()));
  if (t.dtype == DType::kF32) {
    backend.copy(out.data(), t.data, t.bytes(), s);
    backend.synchronize(s);
    return out;
  }
  R1_CHECK(t.dtype == DType::kBF16, "values of dtype {}", dtype_name(t.dtype));
  std::vector<uint16_t> bits(out.size());
  backend.copy(bits.data(), t.data, t.bytes(), s);
  backend.synchronize(s);
  for (size_t e = 0; e < out.size(); ++e) out[e] = bf16_to_float(bits[e]);
  return out;
}

}  // namespace r1::models
