// A decoder layer for generation: keys and values live in a paged cache, tokens of many sequences share a pass.
//
// Between blocks every tp rank holds all tokens (a decode pass has fewer tokens than ranks, so cutting them as training
// does would leave ranks idle and double the number of collectives): one all-reduce after attention, one after the MLP.
//
// Legend: T tokens of a pass, H hidden, NQ/NKV local heads, D head dim, F local ffn.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/communicator.h"
#include "parallel/spec/model_spec.h"
#include "runtime/nn/decoder_layer.h"

namespace r1::nn {

/// The tokens of a pass, on the device. Tokens of one sequence need not be neighbours; a token sees what its block
/// table row names up to its own position, so all of a pass's keys and values are stored before any is read.
struct PagedBatch {
  Tensor ids;           ///< [T] int32
  Tensor positions;     ///< [T] int32
  Tensor slots;         ///< [T] int64, where its key and value go: block * block_size + offset
  Tensor block_table;   ///< [T, W] int32
  Tensor context_lens;  ///< [T] int32: position + 1
  int64_t tokens = 0;
  int64_t max_context = 0;  ///< largest of context_lens
};

/// Working memory of a pass, T rows at most each; see parallel::plan_inference.
struct PagedScratch {
  Tensor norm, rstd, qkv, qkv_raw, qk_rstd, attention, partial, gate_up, swiglu, workspace;
};

/// What all layers of a rank share.
struct PagedShared {
  const parallel::ModelConfig* config = nullptr;
  parallel::LocalShape local;
  std::vector<int32_t> kv_of_q;
  comm::Communicator* tp = nullptr;
  Tensor cos_sin;  ///< [positions, D] fp32
  PagedScratch scratch;
  int64_t attention_rows = 0;
};

class PagedLayer {
 public:
  PagedLayer(const PagedShared& shared, LayerTensors weights, Tensor keys, Tensor values)
      : shared_(shared), w_(std::move(weights)), keys_(keys), values_(values) {}

  /// x [T, H] is the residual stream; `scratch.partial` is what the layer before left to be added to it (`pending`),
  /// and on return what this one leaves. Collective over tp.
  void forward(const Tensor& x, bool pending, const PagedBatch& batch, const Stream& s) const;

 private:
  void attention(const PagedBatch& batch, const Tensor& qkv, const Tensor& out, const Stream& s) const;

  const PagedShared& shared_;
  LayerTensors w_;
  Tensor keys_, values_;  ///< [blocks, block_size, NKV, D]
};

}  // namespace r1::nn
