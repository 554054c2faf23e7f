#include "runtime/serve/engine.h"

#include <algorithm>
#include <bit>

#include "runtime/core/error.h"
#include "runtime/core/host.h"
#include "runtime/kernels/ops.h"

namespace r1::serve {

namespace {

Tensor words_tensor(std::vector<int32_t>& words) {
  return {.data = words.data(), .dtype = DType::kI32, .shape = {static_cast<int64_t>(words.size())}, .device = {}};
}

}  // namespace

Engine::Engine(models::PagedModel& model, parallel::ProcessGroups& groups, EngineOptions options)
    : model_(model),
      groups_(groups),
      options_(std::move(options)),
      planner_(options_.limits),
      chooser_(model, groups, options_.logprobs) {
  const parallel::InferenceShape& shape = model.plan().shape;
  R1_CHECK(options_.limits.pass_tokens <= shape.pass_tokens && options_.limits.sequences <= shape.sequences &&
               options_.limits.blocks == shape.blocks && options_.limits.block_size == shape.block_size,
           "limits of the batch planner and of the model's plan");
}

Engine::~Engine() = default;

bool Engine::last_stage() const { return groups_.coord().pp == groups_.mesh().pp - 1; }

int64_t Engine::add(Request request) {
  const int64_t vocab = model_.spec().config().vocab, context = model_.plan().shape.context;
  const auto length = static_cast<int64_t>(request.prompt.size());
  if (length == 0) throw UsageError("request {}: the prompt has no tokens", request.number);
  for (const int32_t id : request.prompt)
    if (id < 0 || id >= vocab)
      throw UsageError("request {}: the prompt holds token id {}, the model has ids 0 to {}", request.number, id,
                       vocab - 1);
  if (length >= context)
    throw UsageError(
        "request {}: the prompt has {} tokens, which leaves no room for an answer in a context of {} (--context)",
        request.number, length, context);
  R1_CHECK(request.max_new_tokens >= 1, "request {}: max_new_tokens {}", request.number, request.max_new_tokens);
  request.max_new_tokens = std::min(request.max_new_tokens, context - length);
  State state{.tokens = request.prompt, .seen = {}};
  state.request = std::move(request);
  if (state.request.sampling.repetition_penalty != 1) {
    state.seen.assign(static_cast<size_t>(kernels::seen_words(vocab)), 0);
    for (const int32_t id : state.tokens) note_seen(state, id);
  }
  state.sequence = planner_.add(length, length + state.request.max_new_tokens - 1);  // the last token is never computed
  R1_CHECK(state.sequence == static_cast<int64_t>(state_of_.size()), "sequence {}", state.sequence);
  state_of_.push_back(static_cast<int64_t>(states_.size()));
  states_.push_back(std::move(state));
  return static_cast<int64_t>(states_.size()) - 1;
}

void Engine::note_seen(State& state, int32_t token) {
  if (!state.seen.empty()) state.seen[static_cast<size_t>(token) / 32] |= 1U << (token % 32);
}

models::HostPass Engine::host_pass(const Pass& pass) const {
  models::HostPass h;
  const int64_t block = options_.limits.block_size;
  for (const Piece& p : pass.pieces)
    h.table_width = std::max(h.table_width, static_cast<int64_t>(planner_.blocks(p.sequence).size()));
  for (const Piece& p : pass.pieces) {
    const State& state = states_[static_cast<size_t>(state_of_[static_cast<size_t>(p.sequence)])];
    const std::vector<int32_t>& blocks = planner_.blocks(p.sequence);
    for (int64_t t = p.begin; t < p.begin + p.count; ++t) {
      h.ids.push_back(state.tokens[static_cast<size_t>(t)]);
      h.positions.push_back(static_cast<int32_t>(t));
      h.context_lens.push_back(static_cast<int32_t>(t + 1));
      h.slots.push_back(int64_t{blocks[static_cast<size_t>(t / block)]} * block + t % block);
      h.block_table.insert(h.block_table.end(), blocks.begin(), blocks.end());
      h.block_table.resize(h.ids.size() * static_cast<size_t>(h.table_width), 0);
    }
  }
  return h;
}

void Engine::start(Pass pass) {
  model_.forward(host_pass(pass));
  UnderWay u;
  if (last_stage()) {
    std::vector<RowToChoose> rows;
    int64_t row = 0;
    for (const Piece& p : pass.pieces) {
      row += p.count;
      if (!p.sample) continue;
      const State& state = states_[static_cast<size_t>(state_of_[static_cast<size_t>(p.sequence)])];
      const Request& r = state.request;
      rows.push_back({.row = row - 1,
                      .params = &r.sampling,
                      .seen = state.seen,
                      .request = r.number,
                      .position = p.begin + p.count});
    }
    u.chosen = chooser_.choose(rows);
    send_tokens(u.chosen);
  }
  u.pass = std::move(pass);
  under_way_.push_back(std::move(u));
  ++stats_.passes;
}

void Engine::send_tokens(const std::vector<ChosenToken>& chosen) {
  const int pp = groups_.mesh().pp;
  if (pp == 1 || chosen.empty()) return;
  // Those of a pass collected long ago have arrived.
  while (static_cast<int>(sent_.size()) > pp) {
    sent_.front().pending->wait();
    sent_.pop_front();
  }
  Sent sent;
  for (const ChosenToken& t : chosen) {
    sent.words.push_back(t.token);
    sent.words.push_back(std::bit_cast<int32_t>(t.logprob));
  }
  sent_.push_back(std::move(sent));
  std::vector<comm::Transfer> transfers;
  for (int stage = 0; stage < pp - 1; ++stage)
    transfers.push_back(
        {.kind = comm::Transfer::Kind::kSend, .tensor = words_tensor(sent_.back().words), .peer = stage});
  sent_.back().pending = groups_.pp().start(transfers, model_.stream());
}

std::vector<ChosenToken> Engine::receive_tokens(size_t count) {
  std::vector<int32_t> words(2 * count);
  groups_.pp().recv(words_tensor(words), groups_.mesh().pp - 1, model_.stream());
  std::vector<ChosenToken> out;
  for (size_t i = 0; i < count; ++i) out.push_back({words[2 * i], std::bit_cast<float>(words[2 * i + 1])});
  return out;
}

void Engine::accept(State& state, const ChosenToken& chosen, const OnToken& on_token) {
  const Request& r = state.request;
  if (chosen.token < 0)
    throw DataError(
        "request {}: the logits of token {} are not finite: the weights hold NaN or infinity, or overflow in this "
        "dtype",
        r.number, state.tokens.size());
  state.tokens.push_back(chosen.token);
  note_seen(state, chosen.token);
  ++stats_.generated_tokens;
  TokenEvent event{.request = &state - states_.data(), .token = chosen.token, .logprob = chosen.logprob};
  const auto made = static_cast<int64_t>(state.tokens.size() - r.prompt.size());
  const std::vector<int32_t>& eos = options_.eos_ids;
  if (!r.ignore_eos && std::find(eos.begin(), eos.end(), chosen.token) != eos.end())
    event.finish = FinishReason::kStop;
  else if (made >= r.max_new_tokens)
    event.finish = FinishReason::kLength;
  const bool stop = on_token(event);
  if (stop || event.finish != FinishReason::kNone) planner_.finish(state.sequence);
}

void Engine::collect(const OnToken& on_token) {
  UnderWay u = std::move(under_way_.front());
  under_way_.pop_front();
  const auto samples = static_cast<size_t>(
      std::count_if(u.pass.pieces.begin(), u.pass.pieces.end(), [](const Piece& p) { return p.sample; }));
  if (!last_stage() && samples > 0) u.chosen = receive_tokens(samples);
  planner_.commit(u.pass);
  size_t i = 0;
  for (const Piece& p : u.pass.pieces)
    if (p.sample)
      accept(states_[static_cast<size_t>(state_of_[static_cast<size_t>(p.sequence)])], u.chosen[i++], on_token);
}

void Engine::run(const OnToken& on_token, const std::function<void()>& check) {
  while (!planner_.idle()) {
    check();
    const double begin = monotonic_s();
    Pass pass = planner_.next();
    const bool none = pass.empty();
    R1_CHECK(!none || !under_way_.empty(), "nothing can be computed and nothing is under way");
    int64_t prompt = 0;
    for (const Piece& p : pass.pieces)
      if (p.count > 1 || !p.sample) prompt += p.count;
    stats_.prompt_tokens += prompt;
    if (!none) start(std::move(pass));
    if (none || static_cast<int>(under_way_.size()) >= options_.limits.depth) collect(on_token);
    (prompt > 0 ? stats_.prefill_seconds : stats_.decode_seconds) += monotonic_s() - begin;
  }
  R1_CHECK(under_way_.empty(), "{} passes are still under way", under_way_.size());
  model_.drain();
  for (Sent& s : sent_) s.pending->wait();
  sent_.clear();
  stats_.preemptions = planner_.preemptions();
}

}  // namespace r1::serve
