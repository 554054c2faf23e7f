// Final norm, LM head and cross-entropy: vocabulary-parallel and in chunks of tokens, so that the logits of a micro-batch
// never exist whole. Loss and gradient are made in one go: the loss's normaliser is known before.
//
// Legend: T tokens, Ts this rank's part, H hidden, V local vocabulary, C tokens of a chunk.
#pragma once

#include <functional>

#include "parallel/exec/tp_region.h"
#include "runtime/nn/batch.h"

namespace r1::nn {

struct LmHeadScratch {
  Tensor norm;       ///< [Ts, H]
  Tensor rstd;       ///< [Ts] fp32
  Tensor gathered;   ///< [T, H], tp > 1
  Tensor partial;    ///< [T, H]
  Tensor logits;     ///< [C, V]
  Tensor stats;      ///< [3, C] fp32
  Tensor all_stats;  ///< [tp, 3, C] fp32
  Tensor lse;        ///< [C] fp32
  Tensor loss;       ///< [T] fp32
};

/// Sees each chunk's local logits before the gradient overwrites them: first token, logits [C, V].
using LogitsSink = std::function<void(int64_t first_token, const Tensor& logits)>;

class LmHead {
 public:
  struct Weights {
    Tensor norm;  ///< [H]
    Tensor head;  ///< [V, H]
  };
  LmHead(Weights weights, Weights gradients, int64_t vocab_begin, float rms_eps, const parallel::TpRegion& region,
         LmHeadScratch scratch)
      : w_(weights), g_(gradients), vocab_begin_(vocab_begin), eps_(rms_eps), region_(region), t_(std::move(scratch)) {}

  /// loss_words += sum of the token losses (kernels::sum_into). With `train`: writes the gradient of scale * (that sum) with
  /// respect to x into `gradient` [Ts, H] (a rank may hold no tokens: Ts = 0), accumulates the norm's gradient, and writes
  /// (`accumulate`: adds to) the matrix's. The token losses stay in the scratch tensor `loss`. Chunks without a trained token
  /// are skipped unless `sink` wants them. Collective over tp.
  void forward(const Tensor& x, const Batch& batch, float scale, const Tensor& loss_words, bool train,
               const Tensor& gradient, bool accumulate, const LogitsSink& sink, const Stream& s) const;

 private:
  Weights w_, g_;
  int64_t vocab_begin_;
  float eps_;
  const parallel::TpRegion& region_;
  LmHeadScratch t_;
};

}  // namespace r1::nn
