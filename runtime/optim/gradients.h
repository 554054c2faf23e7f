// What data parallelism does to gradients and weights of one rank: sums over everything that holds the same element, the
// global norm, and (ZeRO-1) the exchange of shards.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "parallel/exec/process_groups.h"
#include "parallel/spec/communicator_memory.h"
#include "parallel/spec/model_spec.h"
#include "runtime/device/device.h"

namespace r1::optim {

/// Flat blocks of one virtual stage (see models::StageParameters).
struct ParamBlock {
  int stage = 0;
  const std::vector<parallel::ParamSpec>* specs = nullptr;
  const parallel::ParamLayout* layout = nullptr;
  const parallel::StateLayout* state = nullptr;
  int tp_rank = 0, shards = 1;  ///< shards: 1, or dp when the optimizer state is cut
  Tensor weights, gradients;                ///< [layout->elems] each
  Tensor master, exp_avg, exp_avg_sq;       ///< [state->elems] each; master may be empty
  Tensor tied_head_gradients;               ///< a tied head's own gradient, like the embedding's, where the block is both ends; or empty

  /// Parameter i's local part of weights or gradients, flat.
  [[nodiscard]] Tensor part(const Tensor& block, size_t i) const;
  /// This rank's shard of parameter i: its rows in weights or gradients [rows, row elements].
  [[nodiscard]] Tensor shard(const Tensor& block, size_t i) const;
};

/// Parameters [first, last) of a block that become final together: the embedding (layer -1), a decoder layer, or the head.
struct Unit {
  size_t block = 0, first = 0, last = 0;
  int64_t layer = 0;
};
[[nodiscard]] std::vector<Unit> units_of(const std::vector<ParamBlock>& blocks);

/// Exchanges that follow each other on the dp group, some of them under way: at most kInFlight buckets of about bucket_bytes().
class ShardExchange {
 public:
  static constexpr size_t kInFlight = 4;
  /// 8 MiB in host memory; on a GPU 64 MiB, since a call costs 20 us and a link moves 4 MiB in that time.
  [[nodiscard]] static int64_t bucket_bytes(const Device& device) { return device.kind == DeviceKind::kCpu ? int64_t{8} << 20 : parallel::kExchangeBytes; }
  using Bucket = std::vector<comm::ShardedTensor>;

  explicit ShardExchange(comm::Communicator& dp) : dp_(dp) {}
  /// The parameters of a unit in `block` (weights or gradients), cut over dp, in buckets; a large parameter fills several.
  [[nodiscard]] static std::vector<Bucket> buckets(const ParamBlock& b, const Tensor& block, const Unit& unit, int dp);
  /// Adds one parameter's local part `whole` (flat), which may lie outside of the block.
  static void add(std::vector<Bucket>& buckets, const parallel::ParamSpec& p, int tp_rank, const Tensor& whole, int dp);
  void reduce_scatter(const std::vector<Bucket>& buckets, comm::SumOrder order, const Stream& s);
  void all_gather(const std::vector<Bucket>& buckets, const Stream& s);
  /// Waits for what is under way, but for the newest `keep` buckets.
  void finish(size_t keep = 0);

 private:
  comm::Communicator& dp_;
  std::deque<std::unique_ptr<comm::Pending>> pending_;
};

/// Sums gradients over everything that holds the same element: first dp replicas, then tp ranks that share it (norms, replicated
/// kv heads, with each rank's own partial gradient) and the two ends of a tied embedding. Always in this order, so that what
/// dp does is one tree of its own. With shards, a rank ends with the sums of its own rows only.
class GradientSync {
 public:
  /// `packed`: scratch of parallel::shared_gradient_elems for the largest block. `order`: how sums over dp are formed.
  GradientSync(std::vector<ParamBlock> blocks, parallel::ProcessGroups& groups, Tensor packed, comm::SumOrder order);
  /// The gradients of a unit are complete on this rank: starts their sum over dp, while the backward goes on. Every rank of the
  /// group calls it for the same units in the same order, or not at all. Collective over dp.
  void ready(int stage, int64_t layer, const Stream& s);
  /// The rest. Collective over dp, tp and ends.
  void finish(const Stream& s);

 private:
  struct SharedRun {
    int64_t packed = 0;  ///< element offset in the packed buffer: the same on every tp rank
    int64_t offset = 0;  ///< element offset in the block
    int64_t count = 0;
  };
  /// What the tp ranks of a block hold in common.
  struct Shared {
    std::vector<SharedRun> runs;
    int64_t packed_elems = 0;
    std::vector<ShardExchange::Bucket> buckets;  ///< of the parameters that have any
  };
  struct Part : Unit {
    bool done = false;
    std::vector<ShardExchange::Bucket> buckets;
  };
  [[nodiscard]] Shared shared_of(const ParamBlock& b) const;
  void sum_over_tp(const Stream& s);
  void add_tied_ends(const Stream& s) const;

  std::vector<ParamBlock> blocks_;
  parallel::ProcessGroups& groups_;
  Tensor packed_;
  comm::SumOrder order_;
  std::vector<Part> parts_;
  std::vector<Shared> shared_;  ///< per block
  ShardExchange exchange_;
};

/// Sum of squares of all gradients of the model, each element counted once and the rows' sums added without rounding
/// (kernels/exact_sum.h): the same for every pp and dp, sharded or not.
class GradientNorm {
 public:
  GradientNorm(const std::vector<ParamBlock>& blocks, parallel::ProcessGroups& groups, Device device);
  /// sum_squares [1] fp64 = the global sum of squares; NaN or infinite where a gradient is. Collective over the world with shards,
  /// else over the replica group.
  void run(const Tensor& sum_squares, const Stream& s) const;

 private:
  std::vector<Tensor> owned_;  ///< the rows of gradients this rank counts, [rows, row elements] each
  comm::Communicator& group_;
  Buffer words_;
};

}  // namespace r1::optim
