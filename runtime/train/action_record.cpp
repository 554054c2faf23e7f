#include "runtime/train/action_record.h"

#include <fmt/format.h>

namespace r1::train {

std::string phase_of(const parallel::Action& a) {
  const char* what = "";
  switch (a.kind) {
    case parallel::ActionKind::kForward: what = "forward"; break;
    case parallel::ActionKind::kBackward: what = "backward"; break;
    case parallel::ActionKind::kBackwardInput: what = "input gradient"; break;
    case parallel::ActionKind::kBackwardWeight: what = "weight gradient"; break;
    case parallel::ActionKind::kSendForward: what = "sending activations,"; break;
    case parallel::ActionKind::kRecvForward: what = "receiving activations,"; break;
    case parallel::ActionKind::kSendBackward: what = "sending gradients,"; break;
    case parallel::ActionKind::kRecvBackward: what = "receiving gradients,"; break;
  }
  return fmt::format("{} stage {} micro-batch {}", what, a.stage, a.microbatch);
}

void record_action(FlightRecorder& flight, const parallel::Action& a) {
  switch (a.kind) {
    case parallel::ActionKind::kForward: return flight.action(Operation::kForward, a.stage, a.microbatch);
    case parallel::ActionKind::kBackward: return flight.action(Operation::kBackward, a.stage, a.microbatch);
    case parallel::ActionKind::kBackwardInput: return flight.action(Operation::kBackwardInput, a.stage, a.microbatch);
    case parallel::ActionKind::kBackwardWeight: return flight.action(Operation::kBackwardWeight, a.stage, a.microbatch);
    case parallel::ActionKind::kSendForward:
    case parallel::ActionKind::kRecvForward:
    case parallel::ActionKind::kSendBackward:
    case parallel::ActionKind::kRecvBackward: return flight.end_action();  // the transfer records itself
  }
}

}  // namespace r1::train
