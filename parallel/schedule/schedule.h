// Pipeline schedules as data: generated, checked, simulated, printed, and executed elsewhere by one loop.
//
// Stages are virtual: stage s of pp*v lives on pipeline rank s % pp (chunk s / pp). Micro-batches count from 0.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace r1::parallel {

enum class ActionKind : uint8_t {
  kForward,        ///< F
  kBackward,       ///< B = input gradient and weight gradient
  kBackwardInput,  ///< I
  kBackwardWeight, ///< W
  kSendForward,    ///< activation of `stage` to stage + 1
  kRecvForward,    ///< activation into `stage` from stage - 1
  kSendBackward,   ///< gradient of `stage`'s input to stage - 1
  kRecvBackward,   ///< gradient of `stage`'s output from stage + 1
};

struct Action {
  int stage = 0;
  ActionKind kind = ActionKind::kForward;
  int microbatch = 0;
  /// "2F0", "2B0", "2I0", "2W0", "2SF0", "2RF0", "2SB0", "2RB0".
  [[nodiscard]] std::string str() const;
  friend bool operator==(const Action&, const Action&) = default;
};
/// Inverse of Action::str; throws UsageError naming the text.
[[nodiscard]] Action parse_action(std::string_view text);

/// One list of actions per pipeline rank.
struct Schedule {
  std::string name;
  int pp = 1, virtual_stages = 1, microbatches = 1;
  std::vector<std::vector<Action>> ranks;
  [[nodiscard]] int stages() const { return pp * virtual_stages; }
};

/// Text form, one line a rank ("0: 0F0 0F1 0B0 0B1"), and back: all but the name, which is then "text". Empty lines and
/// those that begin with # are skipped. Throws UsageError naming the line; what it reads is not validated.
[[nodiscard]] std::string print(const Schedule& s);
[[nodiscard]] Schedule parse_schedule(std::string_view text, int virtual_stages);

/// The table of generators; `virtual_stages_allowed` says whether v > 1 makes sense.
struct ScheduleKind {
  std::string_view name;  ///< as in --schedule: "gpipe", "1f1b", "interleaved", "zb-h1"
  bool virtual_stages_allowed;
  bool splits_backward;
  Schedule (*generate)(int pp, int virtual_stages, int microbatches);  ///< compute actions only
};
[[nodiscard]] const std::vector<ScheduleKind>& schedule_kinds();

/// Generates by name and adds the transfers. Throws UsageError naming --schedule/--virtual-stages and what is allowed.
[[nodiscard]] Schedule make_schedule(std::string_view name, int pp, int virtual_stages, int microbatches);

/// Inserts a send right after the compute action that makes the data and a receive before the one that needs it. Meant
/// for sends that return at once (buffered until waited for) and receives that block: then nothing can wait in a circle
/// that did not do so before. Messages between two ranks match in order, without tags; where the receiver would need them in
/// another order than they are sent (pp == 2 with virtual stages), it receives early what was sent before.
/// Transfers between chunks of one rank (pp == 1) are left out.
[[nodiscard]] Schedule with_transfers(const Schedule& compute_only);

/// Rank of the other side of a transfer: where a send goes to, where a receive comes from.
[[nodiscard]] int peer_of(const Action& transfer, int pp);
[[nodiscard]] bool is_transfer(ActionKind kind);

/// Checks that every stage runs every micro-batch once (F, then B or I then W), in an order that dependencies allow.
/// A schedule with transfers must have exactly those that are needed, matching in order between each pair of ranks.
/// Throws InternalError with the grid printed and the spot marked (">2F0<").
void validate(const Schedule& s);

/// Seconds (any unit) of each action kind per stage; a missing entry repeats the last. transfer: per message.
struct ScheduleCosts {
  std::vector<double> forward{1.0}, backward_input{1.0}, backward_weight{1.0};
  double transfer = 0.0;
};
struct SimulatedAction {
  Action action;
  double start = 0, end = 0;
};
struct Simulation {
  double makespan = 0;          ///< finish time of the slowest rank
  double bubble_fraction = 0;   ///< idle share of pp * makespan
  std::vector<std::vector<SimulatedAction>> ranks;
  /// Per virtual stage: micro-batches whose activations are held at once, from the receive of the input (F where there is
  /// none) to the end of B, or of W where the backward is split.
  std::vector<int> peak_in_flight;
  std::vector<int> peak_stash;  ///< per virtual stage: micro-batches between the start of I and the end of W at once
};
/// Runs the schedule on paper. Throws InternalError on a deadlock, naming the waiting actions.
[[nodiscard]] Simulation simulate(const Schedule& s, const ScheduleCosts& costs);

/// SVG Gantt chart of a simulation (legible for 2..16 ranks), self-contained.
[[nodiscard]] std::string gantt_svg(const Schedule& s, const Simulation& sim);

}  // namespace r1::parallel
