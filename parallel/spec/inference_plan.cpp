#include "parallel/spec/inference_plan.h"

#include <algorithm>

namespace r1::parallel {

namespace {

/// Layers of the stages that the rank at `pp` holds.
int64_t rank_layers(const ModelSpec& spec, const MeshShape& mesh, int pp) {
  int64_t n = 0;
  for (int stage = pp; stage < static_cast<int>(spec.stages().size()); stage += mesh.pp) {
    const StageSpec& s = spec.stages()[static_cast<size_t>(stage)];
    n += s.layer_end - s.layer_begin;
  }
  return n;
}

PlannedTensor cache_tensor(const ModelSpec& spec, int tp_rank, const InferenceShape& shape, const char* name,
                           int64_t blocks) {
  return {name, {blocks, shape.block_size, spec.local(tp_rank).kv_heads.size(), spec.config().head_dim}, shape.dtype};
}

}  // namespace

int64_t kv_block_bytes(const ModelSpec& spec, const MeshShape& mesh, const MeshCoord& coord,
                       const InferenceShape& shape) {
  return 2 * rank_layers(spec, mesh, coord.pp) * cache_tensor(spec, coord.tp, shape, "", 1).bytes();
}

InferencePlan plan_inference(const ModelSpec& spec, const MeshShape& mesh, const MeshCoord& coord,
                             const InferenceShape& shape) {
  const ModelConfig& c = spec.config();
  const LocalShape local = spec.local(coord.tp);
  InferencePlan plan{.mesh = mesh, .coord = coord, .shape = shape};
  bool head = false;
  for (int stage = coord.pp; stage < static_cast<int>(spec.stages().size()); stage += mesh.pp) {
    plan.chunks.push_back({stage, param_layout(spec.stage_params(stage), coord.tp).elems});
    head = head || spec.stages()[static_cast<size_t>(stage)].head;
  }
  for (int64_t l = 0; l < rank_layers(spec, mesh, coord.pp); ++l)
    for (const char* name : {"keys", "values"})
      plan.cache.push_back(cache_tensor(spec, coord.tp, shape, name, shape.blocks));

  const int64_t t = shape.pass_tokens, nq = local.q_heads.size(), nkv = local.kv_heads.size(),
                qkv = (nq + 2 * nkv) * c.head_dim;
  const auto add = [&](const char* name, std::vector<int64_t> dims, DType dtype) {
    plan.scratch.push_back({name, std::move(dims), dtype});
  };
  add("stream", {t, c.hidden}, shape.dtype);
  // A stage's output is sent while the next pass is computed.
  add("output 0", {t, c.hidden}, shape.dtype);
  add("output 1", {t, c.hidden}, shape.dtype);
  add("norm", {t, c.hidden}, shape.dtype);
  add("rstd", {t}, DType::kF32);
  add("qkv", {t, qkv}, shape.dtype);
  if (c.qk_norm) {
    add("qkv raw", {t, qkv}, shape.dtype);
    add("qk rstd", {t, nq + nkv}, DType::kF32);
  }
  add("attention", {t, nq * c.head_dim}, shape.dtype);
  add("partial", {t, c.hidden}, shape.dtype);
  add("gate_up", {t, 2 * local.ffn.size()}, shape.dtype);
  add("swiglu", {t, local.ffn.size()}, shape.dtype);
  if (head) {
    const int64_t rows = std::min(shape.sequences, t), chunk = std::min(shape.logit_rows, rows);
    add("head input", {rows, c.hidden}, shape.dtype);
    add("logits", {chunk, local.vocab.size()}, shape.dtype);
    add("all logits", {mesh.tp > 1 ? chunk * c.vocab : 0}, shape.dtype);
    add("seen", {chunk, (c.vocab + 31) / 32}, DType::kI32);  // kernels::seen_words
    add("sampled", {chunk}, DType::kI32);
    add("best", {2, chunk}, DType::kF32);
    add("all best", {mesh.tp, 2, chunk}, DType::kF32);
    add("targets", {chunk}, DType::kI32);
    add("stats", {3, chunk}, DType::kF32);
    add("all stats", {mesh.tp, 3, chunk}, DType::kF32);
    add("lse", {chunk}, DType::kF32);
    add("token loss", {chunk}, DType::kF32);
  }
  add("token ids", {t}, DType::kI32);
  add("positions", {t}, DType::kI32);
  add("slots", {t}, DType::kI64);
  add("block table", {t, shape.blocks_of(shape.context)}, DType::kI32);
  add("context lengths", {t}, DType::kI32);
  add("rope table", {shape.context, c.head_dim}, DType::kF32);
  if (shape.workspace_bytes > 0) add("workspace", {shape.workspace_bytes}, DType::kU8);
  return plan;
}

InferencePlan::Bytes InferencePlan::bytes() const {
  Bytes b;
  for (const Chunk& c : chunks) b.weights += c.param_elems * dtype_bytes(shape.dtype);
  b.cache = laid_out_bytes(cache);
  b.scratch = laid_out_bytes(scratch);
  return b;
}

}  // namespace r1::parallel
