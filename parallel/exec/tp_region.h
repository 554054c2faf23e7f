// The tensor-parallel regions with sequence parallelism: between blocks each tp rank holds a part of the tokens, inside
// a block all tokens and a part of the features (Korthikanti et al. 2022, "Reducing Activation Recomputation").
//
// The two regions are each other's conjugate: the backward of gather is scatter_sum and the other way round.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/communicator.h"
#include "runtime/device/tensor.h"

namespace r1::parallel {

class TpRegion {
 public:
  /// tokens: T of a micro-batch; parts of tokens are uneven when T does not divide. width: H.
  TpRegion(comm::Communicator& tp, int64_t tokens, int64_t width);

  /// local [Ts, H] of every rank -> all tokens [T, H], in `scratch`. A group of one returns `local` itself.
  [[nodiscard]] Tensor gather(const Tensor& local, const Tensor& scratch, const Stream& s) const;
  /// Sums full [T, H] over the ranks and keeps this rank's tokens in `out` [Ts, H].
  void scatter_sum(const Tensor& full, const Tensor& out, const Stream& s) const;
  /// Where a row-parallel product writes, so that a group of one needs no copy: `out` for one rank, else `scratch`.
  [[nodiscard]] Tensor partial(const Tensor& scratch, const Tensor& out) const;

  [[nodiscard]] comm::Communicator& group() const { return tp_; }

 private:
  comm::Communicator& tp_;
  std::vector<int64_t> counts_;  ///< elements of each rank's part
};

}  // namespace r1::parallel
