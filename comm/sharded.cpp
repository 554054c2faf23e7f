// Sharded sums and gathers built from the blocking collectives: what a backend without better ones gets.
#include "comm/arguments.h"
#include "comm/communicator.h"
#include "runtime/core/error.h"

namespace r1::comm {
namespace {

class Done final : public Pending {
 public:
  void wait() override {}
};

}  // namespace

std::unique_ptr<Pending> Communicator::start_reduce_scatter(std::span<const ShardedTensor> xs, SumOrder order, const Stream& s) {
  if (order == SumOrder::kTree && size() > 2)  // two are summed alike
    throw UsageError("--deterministic over more than two replicas is not available on {}: use --comm mpi", name());
  for (const ShardedTensor& x : xs) {
    check_sharded(*this, "start_reduce_scatter", x);
    if (size() == 1) continue;
    for (const Tensor& part : x.parts)
      if (part.numel() != 0) all_reduce(part, ReduceOp::kSum, s);
  }
  return std::make_unique<Done>();
}

std::unique_ptr<Pending> Communicator::start_all_gather(std::span<const ShardedTensor> xs, const Stream& s) {
  for (const ShardedTensor& x : xs) {
    check_sharded(*this, "start_all_gather", x);
    if (size() == 1) continue;
    for (int r = 0; r < size(); ++r)
      if (const Tensor& part = x.parts[static_cast<size_t>(r)]; part.numel() != 0) broadcast(part, r, s);
  }
  return std::make_unique<Done>();
}

}  // namespace r1::comm
