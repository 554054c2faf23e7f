// Sharded sums and gathers built from the blocking collectives: what a backend without better ones gets.
#include "comm/arguments.h"
#include "comm/communicator.h"
#include "comm/reduce.h"
#include "runtime/device/device.h"

namespace r1::comm {
namespace {

class Done final : public Pending {
 public:
  void wait() override {}
};

/// parts[rank] = the tree's sum, formed on the host: for groups whose own sums come in another order.
void sum_on_host(Communicator& c, const ShardedTensor& x, const Stream& s) {
  const int n = c.size(), own = c.rank();
  const Tensor& mine = x.parts[static_cast<size_t>(own)];
  std::vector<Buffer> received(static_cast<size_t>(n));
  std::vector<Transfer> transfers;
  for (int r = 0; r < n; ++r) {
    if (r == own) continue;
    if (mine.numel() != 0) {
      received[static_cast<size_t>(r)] = Buffer(mine.device, mine.bytes());
      Tensor t = mine;
      t.data = received[static_cast<size_t>(r)].data();
      transfers.push_back({Transfer::Kind::kRecv, t, r});
    }
    if (const Tensor& part = x.parts[static_cast<size_t>(r)]; part.numel() != 0)
      transfers.push_back({Transfer::Kind::kSend, part, r});
  }
  c.start(transfers, s)->wait();
  if (mine.numel() == 0) return;
  DeviceBackend& backend = backend_of(mine.device.kind);
  std::vector<std::vector<char>> host(static_cast<size_t>(n), std::vector<char>(mine.bytes()));
  std::vector<const void*> sources;
  for (int r = 0; r < n; ++r) {
    std::vector<char>& to = host[static_cast<size_t>(r)];
    backend.copy(to.data(), r == own ? mine.data : received[static_cast<size_t>(r)].data(), mine.bytes(), s);
    sources.push_back(to.data());
  }
  backend.synchronize(s);
  sum_in_tree(mine.dtype, sources, host.front().data(), mine.numel());
  backend.copy(mine.data, host.front().data(), mine.bytes(), s);
  backend.synchronize(s);
}

}  // namespace

int64_t Communicator::expect_messages(std::span<const ExpectedMessage>) { return 0; }

std::unique_ptr<Pending> Communicator::start_reduce_scatter(std::span<const ShardedTensor> xs, SumOrder order, const Stream& s) {
  for (const ShardedTensor& x : xs) {
    check_sharded(*this, "start_reduce_scatter", x);
    if (size() == 1) continue;
    if (order == SumOrder::kTree && size() > 2) {  // two are summed alike
      sum_on_host(*this, x, s);
      continue;
    }
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
