#include "runtime/nn/lm_head.h"

#include <algorithm>

#include "runtime/device/device.h"
#include "runtime/kernels/ops.h"

namespace r1::nn {

namespace k = r1::kernels;

void LmHead::forward(const Tensor& x, const Batch& batch, float scale, const Tensor& loss_words, bool train,
                     const Tensor& gradient, bool accumulate, const LogitsSink& sink, const Stream& s) const {
  DeviceBackend& backend = backend_of(s.device.kind);
  comm::Communicator& tp = region_.group();
  const int64_t tokens = batch.tokens, chunk = t_.logits.dim(0);

  k::rmsnorm_forward(x, w_.norm, eps_, t_.norm, t_.rstd, s);
  const Tensor n = region_.gather(t_.norm, t_.gathered, s);       // [T, H]
  const Tensor& dn = t_.partial;                                  // [T, H], summed over tp below
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t end = std::min(begin + chunk, tokens), c = end - begin;
    const bool trained = std::any_of(batch.host_targets.begin() + begin, batch.host_targets.begin() + end,
                                     [](int32_t t) { return t >= 0; });
    const Tensor loss = t_.loss.rows(begin, end);
    if (!trained && !sink) {
      backend.fill_zero(loss.data, loss.bytes(), s);
      if (train) backend.fill_zero(dn.rows(begin, end).data, dn.rows(begin, end).bytes(), s);
      continue;
    }
    const Tensor targets = batch.targets.rows(begin, end);
    const Tensor logits = t_.logits.rows(0, c);
    // A short last chunk uses the front of the statistics' memory with its own stride.
    const auto front = [&](const Tensor& t, Shape shape) {
      Tensor v = t;
      v.shape = shape;
      return v;
    };
    const Tensor stats = front(t_.stats, {3, c}), all = front(t_.all_stats, {tp.size(), 3, c});
    const Tensor lse = front(t_.lse, {c});
    k::linear_forward(n.rows(begin, end), w_.head, {}, logits, s);
    if (sink) sink(begin, logits);
    k::cross_entropy_stats(logits, targets, vocab_begin_, stats, s);
    const std::vector<int64_t> counts(static_cast<size_t>(tp.size()), 3 * c);
    tp.all_gather(stats, all, counts, s);
    k::cross_entropy_combine(all, targets, lse, loss, s);
    if (train) {
      k::cross_entropy_backward(logits, targets, vocab_begin_, lse, scale, s);
      k::linear_backward_input(logits, w_.head, dn.rows(begin, end), false, s);
      k::linear_backward_weight(logits, n.rows(begin, end), g_.head, accumulate, s);
      accumulate = true;
    }
  }
  k::sum_into(t_.loss, loss_words, s);
  if (!train) return;
  if (!accumulate) backend.fill_zero(g_.head.data, g_.head.bytes(), s);  // no chunk wrote it
  // The normalised activations are not needed any more: their memory takes the summed gradient.
  region_.scatter_sum(dn, t_.norm, s);
  k::rmsnorm_backward(t_.norm, x, w_.norm, t_.rstd, {}, gradient, g_.norm, s);
}

}  // namespace r1::nn
