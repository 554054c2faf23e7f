#include "runtime/serve/batch_planner.h"

#include <algorithm>

#include "runtime/core/error.h"

namespace r1::serve {

int64_t Pass::tokens() const {
  int64_t n = 0;
  for (const Piece& p : pieces) n += p.count;
  return n;
}

BatchPlanner::BatchPlanner(const PlannerLimits& limits) : limits_(limits), blocks_(limits.blocks) {
  R1_CHECK(limits.sequences > 0 && limits.pass_tokens > 0 && limits.prefill_chunk > 0 && limits.block_size > 0 &&
               limits.depth > 0 && limits.exact_rows > 0 &&
               (!limits.exact || limits.pass_tokens >= std::max(limits.prefill_chunk, limits.exact_rows)),
           "limits of the batch planner");
}

int64_t BatchPlanner::add(int64_t prompt, int64_t longest) {
  R1_CHECK(prompt > 0 && longest >= prompt && blocks_of(longest) <= limits_.blocks,
           "a sequence of {} to {} tokens in {} blocks of {}", prompt, longest, limits_.blocks, limits_.block_size);
  const int64_t id = next_id_++;
  sequences_[id] = {.prompt = prompt, .known = prompt, .blocks = {}};
  waiting_.push_back(id);
  return id;
}

const std::vector<int32_t>& BatchPlanner::blocks(int64_t sequence) const { return sequences_.at(sequence).blocks; }

/// Lets waiting sequences in, in order, while there is room for all their known tokens and a reserve: one block for
/// each that runs, so that a new one does not push out an old one at once.
void BatchPlanner::admit() {
  while (!waiting_.empty() && running() < limits_.sequences) {
    const int64_t id = waiting_.front();
    // A sequence alone always fits (add() checked it).
    if (!running_.empty() && blocks_of(at(id).known + 1) + running() > blocks_.free_blocks()) return;
    waiting_.pop_front();
    running_.push_back(id);
    turn_.push_back(id);
    // All blocks of the known tokens at once: another one's admission must not count them again.
    R1_CHECK(blocks_.grow(at(id).blocks, blocks_of(at(id).known)), "blocks of sequence {}", id);
  }
}

/// How many tokens of `s` its next piece takes where `room` are left in the pass. Prompts are cut at multiples of the
/// chunk.
int64_t BatchPlanner::piece_length(const Sequence& s, int64_t room) const {
  int64_t end = s.known;
  if (s.planned < s.prompt) {
    end = std::min(s.prompt, (s.planned / limits_.prefill_chunk + 1) * limits_.prefill_chunk);
    if (!limits_.exact && end == s.prompt)
      end = std::min(s.known, (s.planned / limits_.prefill_chunk + 1) * limits_.prefill_chunk);
  } else if (limits_.exact) {
    end = std::min(end, s.planned + limits_.exact_rows);
  }
  return std::min(end - s.planned, room);
}

/// Blocks for the first `tokens` of a sequence, taken from the youngest others that are not under way when none are
/// free.
bool BatchPlanner::reserve(int64_t id, int64_t tokens) {
  while (!blocks_.grow(at(id).blocks, blocks_of(tokens))) {
    const auto victim =
        std::find_if(running_.rbegin(), running_.rend(), [&](int64_t r) { return at(r).under_way == 0; });
    if (victim == running_.rend() || *victim == id) return false;  // it is the youngest itself: it waits
    Sequence& v = at(*victim);
    blocks_.release(v.blocks);
    v.planned = 0;
    ++preemptions_;
    waiting_.push_front(*victim);
    std::erase(turn_, *victim);
    running_.erase(std::next(victim).base());
  }
  return true;
}

void BatchPlanner::take(int64_t id, int64_t count, Pass& pass) {
  Sequence& s = at(id);
  pass.pieces.push_back({id, s.planned, count, s.planned + count == s.known});
  s.planned += count;
  ++s.under_way;
  std::erase(turn_, id);
  turn_.push_back(id);
}

void BatchPlanner::plan_prefill(Pass& pass) {
  const std::vector<int64_t> order(turn_.begin(), turn_.end());
  for (const int64_t id : order) {
    const int64_t room = limits_.pass_tokens - pass.tokens();
    if (room == 0) return;
    const Sequence& s = at(id);
    if (s.planned == s.known || decoding(s)) continue;
    const int64_t count = piece_length(s, room);
    take(id, count, pass);
    if (limits_.exact) return;
  }
}

void BatchPlanner::plan_decode(Pass& pass) {
  int64_t ready = 0;  // of all that decode, also those under way: each of `depth` passes takes its share
  for (const int64_t id : running_) ready += at(id).planned + 1 >= at(id).known ? 1 : 0;
  int64_t most = std::min((ready + limits_.depth - 1) / limits_.depth, limits_.pass_tokens);
  if (limits_.exact) most = std::min(most, limits_.exact_rows);
  const std::vector<int64_t> order(turn_.begin(), turn_.end());
  for (const int64_t id : order) {
    if (static_cast<int64_t>(pass.pieces.size()) >= most) return;
    // An earlier one of this loop may have pushed it out.
    if (std::find(running_.begin(), running_.end(), id) == running_.end()) continue;
    const Sequence& s = at(id);
    if (!decoding(s)) continue;
    if (reserve(id, s.known)) take(id, 1, pass);
  }
}

Pass BatchPlanner::next() {
  Pass pass;
  admit();
  // Prompts first: the sooner a sequence decodes, the fuller are the decoding passes.
  if (limits_.exact) {
    plan_prefill(pass);
    if (pass.empty()) plan_decode(pass);
  } else {
    plan_decode(pass);
    plan_prefill(pass);
  }
  return pass;
}

void BatchPlanner::commit(const Pass& pass) {
  for (const Piece& p : pass.pieces) {
    Sequence& s = at(p.sequence);
    R1_CHECK(s.under_way > 0 && p.begin + p.count <= s.planned, "sequence {} is not under way from token {}",
             p.sequence, p.begin);
    --s.under_way;
    if (p.sample) ++s.known;
  }
}

void BatchPlanner::finish(int64_t sequence) {
  Sequence& s = at(sequence);
  R1_CHECK(s.under_way == 0, "sequence {} is under way", sequence);
  blocks_.release(s.blocks);
  std::erase(running_, sequence);
  std::erase(turn_, sequence);
  std::erase(waiting_, sequence);
  sequences_.erase(sequence);
}

}  // namespace r1::serve
