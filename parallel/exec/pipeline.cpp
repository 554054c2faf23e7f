#include "parallel/exec/pipeline.h"

#include "runtime/core/error.h"
#include "runtime/device/device.h"

namespace r1::parallel {

PipelineExecutor::PipelineExecutor(comm::Communicator& pp, const Schedule& schedule, int gradient_ring)
    : pp_(pp), schedule_(schedule), gradient_ring_(static_cast<size_t>(gradient_ring)) {}

void PipelineExecutor::settle(std::deque<std::unique_ptr<comm::Pending>>& sends, size_t keep) {
  while (sends.size() > keep) {
    sends.front()->wait();
    sends.pop_front();
  }
}

void PipelineExecutor::run(StageRunner& runner, const Stream& s, bool forward_only, const ActionObserver& observe) {
  for (const Action& a : schedule_.ranks.at(static_cast<size_t>(pp_.rank()))) {
    if (forward_only && a.kind != ActionKind::kForward && a.kind != ActionKind::kSendForward &&
        a.kind != ActionKind::kRecvForward)
      continue;
    if (observe) observe(a);
    const ProfilerRange range(backend_of(s.device.kind), a.str().c_str());
    run_action(a, runner, s, forward_only);
  }
  settle(gradient_sends_, 0);
  for (auto& [key, pending] : activation_sends_) {
    pending->wait();
    if (forward_only) runner.release(key.first, key.second);
  }
  activation_sends_.clear();
}

void PipelineExecutor::run_action(const Action& a, StageRunner& runner, const Stream& s, bool forward_only) {
  const int last_stage = schedule_.stages() - 1;
  const auto rank_of_stage = [&](int stage) { return stage % schedule_.pp; };
  const bool here_before = a.stage > 0 && rank_of_stage(a.stage - 1) == pp_.rank();
  const auto copy = [&](const Tensor& from, const Tensor& to) {
    backend_of(s.device.kind).copy(to.data, from.data, from.bytes(), s);
  };
  switch (a.kind) {
    case ActionKind::kRecvForward:
      runner.acquire(a.stage, a.microbatch);
      pp_.recv(runner.input(a.stage, a.microbatch), rank_of_stage(a.stage - 1), s);
      return;
    case ActionKind::kForward:
      if (a.stage == 0 || here_before) runner.acquire(a.stage, a.microbatch);
      if (here_before) {
        copy(runner.output(a.stage - 1, a.microbatch), runner.input(a.stage, a.microbatch));
        if (forward_only) runner.release(a.stage - 1, a.microbatch);
      }
      runner.forward(a.stage, a.microbatch);
      if (forward_only && a.stage == last_stage) runner.release(a.stage, a.microbatch);
      return;
    case ActionKind::kSendForward: {
      // In evaluation a slot lives until its send is over; bound how many wait.
      if (forward_only)
        for (auto it = activation_sends_.begin(); it != activation_sends_.end(); it = activation_sends_.erase(it)) {
          it->second->wait();
          runner.release(it->first.first, it->first.second);
        }
      const comm::Transfer t{comm::Transfer::Kind::kSend, runner.output(a.stage, a.microbatch), rank_of_stage(a.stage + 1)};
      activation_sends_[{a.stage, a.microbatch}] = pp_.start({&t, 1}, s);
      return;
    }
    case ActionKind::kRecvBackward:
      pp_.recv(runner.output_gradient(a.stage, a.microbatch), rank_of_stage(a.stage + 1), s);
      return;
    case ActionKind::kSendBackward: {
      const comm::Transfer t{comm::Transfer::Kind::kSend, runner.input_gradient(a.stage, a.microbatch),
                             rank_of_stage(a.stage - 1)};
      gradient_sends_.push_back(pp_.start({&t, 1}, s));
      return;
    }
    case ActionKind::kBackward:
    case ActionKind::kBackwardInput:
      settle(gradient_sends_, gradient_ring_ - 1);
      runner.backward(a.stage, a.microbatch, a.kind);
      if (here_before) copy(runner.input_gradient(a.stage, a.microbatch), runner.output_gradient(a.stage - 1, a.microbatch));
      break;
    case ActionKind::kBackwardWeight:
      runner.backward(a.stage, a.microbatch, a.kind);
      break;
  }
  if (a.kind == ActionKind::kBackward || a.kind == ActionKind::kBackwardWeight) {
    if (const auto it = activation_sends_.find({a.stage, a.microbatch}); it != activation_sends_.end()) {
      it->second->wait();
      activation_sends_.erase(it);
    }
    runner.release(a.stage, a.microbatch);
  }
}

}  // namespace r1::parallel
