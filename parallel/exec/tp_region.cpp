#include "parallel/exec/tp_region.h"

#include "parallel/spec/model_spec.h"

namespace r1::parallel {

TpRegion::TpRegion(comm::Communicator& tp, int64_t tokens, int64_t width) : tp_(tp) {
  for (int r = 0; r < tp.size(); ++r) counts_.push_back(token_part(tokens, r, tp.size()).size() * width);
}

Tensor TpRegion::gather(const Tensor& local, const Tensor& scratch, const Stream& s) const {
  if (tp_.size() == 1) return local;
  tp_.all_gather(local, scratch, counts_, s);
  return scratch;
}

void TpRegion::scatter_sum(const Tensor& full, const Tensor& out, const Stream& s) const {
  if (tp_.size() == 1 && full.data == out.data) return;
  tp_.reduce_scatter(full, out, counts_, s);
}

Tensor TpRegion::partial(const Tensor& scratch, const Tensor& out) const { return tp_.size() == 1 ? out : scratch; }

}  // namespace r1::parallel
