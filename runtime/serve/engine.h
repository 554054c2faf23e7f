// The generation engine of one rank: requests in, tokens out, by continuous batching over a paged cache on any pp x tp
// layout.
//
// Every rank of a replica makes the same plans from the same tokens. The last stage chooses tokens and sends them to
// the other stages; with pp stages up to pp passes (of different sequences) are under way.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "runtime/models/paged_model.h"
#include "runtime/serve/batch_planner.h"
#include "runtime/serve/request.h"
#include "runtime/serve/token_chooser.h"

namespace r1::serve {

struct EngineOptions {
  PlannerLimits limits;
  std::vector<int32_t> eos_ids;
  bool logprobs = false;  ///< TokenEvent::logprob is wanted
};

/// Counts and times of a run.
struct EngineStats {
  int64_t prompt_tokens = 0;  ///< computed, those computed again after a preemption included
  int64_t generated_tokens = 0;
  int64_t passes = 0, preemptions = 0;
  double prefill_seconds =
      0;  ///< in passes that held a piece of a prompt (with several stages: until they were collected)
  double decode_seconds = 0;
};

class Engine {
 public:
  /// `model` and `groups` must outlive the engine.
  Engine(models::PagedModel& model, parallel::ProcessGroups& groups, EngineOptions options);
  ~Engine();

  /// Adds a request; the same on every rank of the replica. Returns its index (0, 1, ...). Throws UsageError when the
  /// prompt is empty, holds an id outside the vocabulary or leaves no room in the context.
  int64_t add(Request request);
  /// Called with each token on every rank of the replica, in the same order. True: the caller ends this completion (a
  /// stop string); every rank must answer the same.
  using OnToken = std::function<bool(const TokenEvent&)>;
  /// Runs until all requests are complete. `check` is called between passes (signals). Collective over the replica.
  void run(const OnToken& on_token, const std::function<void()>& check);

  [[nodiscard]] const Request& request(int64_t index) const { return states_.at(static_cast<size_t>(index)).request; }
  [[nodiscard]] const EngineStats& stats() const { return stats_; }

 private:
  struct State {
    Request request;
    std::vector<int32_t> tokens;  ///< prompt and completion
    std::vector<uint32_t> seen;   ///< bits of the ids of `tokens` (kernels::sample), kept where a penalty needs them
    int64_t sequence = -1;
  };
  struct UnderWay {
    Pass pass;
    std::vector<ChosenToken> chosen;  ///< last stage only: in the order of the pieces that sample
  };
  [[nodiscard]] models::HostPass host_pass(const Pass& pass) const;
  void start(Pass pass);
  void collect(const OnToken& on_token);
  void send_tokens(const std::vector<ChosenToken>& chosen);
  [[nodiscard]] std::vector<ChosenToken> receive_tokens(size_t count);
  void accept(State& state, const ChosenToken& token, const OnToken& on_token);
  void note_seen(State& state, int32_t token);
  [[nodiscard]] bool last_stage() const;

  models::PagedModel& model_;
  parallel::ProcessGroups& groups_;
  EngineOptions options_;
  BatchPlanner planner_;
  TokenChooser chooser_;
  std::vector<State> states_;
  std::vector<int64_t> state_of_;  ///< sequence -> index in states_
  std::deque<UnderWay> under_way_;
  struct Sent {
    std::vector<int32_t> words;
    std::unique_ptr<comm::Pending> pending;
  };
  std::deque<Sent> sent_;
  EngineStats stats_;
};

}  // namespace r1::serve
