// The pipeline executor: one loop over a rank's actions.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "parallel/schedule/schedule.h"

namespace r1::parallel {

/// What the executor moves and calls: the virtual stages of one rank. Tensors stay valid from the call that names them
/// until release (activations) or until the gradient ring comes round (input_gradient).
class StageRunner {
 public:
  virtual ~StageRunner() = default;
  /// Takes an activation slot for (stage, mb); called before the stage's input is received or computed.
  virtual void acquire(int stage, int microbatch) = 0;
  virtual void release(int stage, int microbatch) = 0;
  [[nodiscard]] virtual Tensor input(int stage, int microbatch) = 0;            ///< [Ts, H], to be filled
  [[nodiscard]] virtual Tensor output(int stage, int microbatch) = 0;           ///< [Ts, H], after forward
  [[nodiscard]] virtual Tensor output_gradient(int stage, int microbatch) = 0;  ///< [Ts, H], to be filled
  [[nodiscard]] virtual Tensor input_gradient(int stage, int microbatch) = 0;   ///< [Ts, H], after backward
  virtual void forward(int stage, int microbatch) = 0;
  /// kind: kBackward, kBackwardInput or kBackwardWeight.
  virtual void backward(int stage, int microbatch, ActionKind kind) = 0;
};

/// Called with each action before it runs: progress record, profiler range.
using ActionObserver = std::function<void(const Action&)>;

/// Runs a rank's list of actions. Collective over the pipeline group (`pp`): every rank runs its own list of the same
/// schedule. The observer's last action says where an error came
/// from.
class PipelineExecutor {
 public:
  PipelineExecutor(comm::Communicator& pp, const Schedule& schedule, int gradient_ring);
  /// forward_only: F and its transfers alone (evaluation), slots released at once.
  void run(StageRunner& runner, const Stream& s, bool forward_only, const ActionObserver& observe);

 private:
  void run_action(const Action& a, StageRunner& runner, const Stream& s, bool forward_only);
  void settle(std::deque<std::unique_ptr<comm::Pending>>& sends, size_t keep);

  comm::Communicator& pp_;
  const Schedule& schedule_;
  size_t gradient_ring_;
  std::deque<std::unique_ptr<comm::Pending>> gradient_sends_;
  /// Activation sends under way: the slot must not be released before its send is over.
  std::map<std::pair<int, int>, std::unique_ptr<comm::Pending>> activation_sends_;
};

}  // namespace r1::parallel
