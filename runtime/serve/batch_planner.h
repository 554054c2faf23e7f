// Continuous batching: which tokens of which sequences the next pass computes. Pure bookkeeping on plain data, the same
// on every rank of a replica, so that no plan is ever sent.
//
// A sequence is computed from its first token to its last known one in pieces; the pass that reaches the last known
// token yields the next. A sequence whose blocks are taken away (the cache is full) starts over: its tokens are known,
// only keys and values are computed again.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "runtime/serve/block_manager.h"

namespace r1::serve {

struct PlannerLimits {
  int64_t sequences = 32;       ///< at work together
  int64_t pass_tokens = 256;    ///< of one pass
  int64_t prefill_chunk = 256;  ///< tokens of a prompt computed together, from multiples of it on
  int64_t block_size = 16;
  int64_t blocks = 0;
  int depth = 1;  ///< passes under way together: pipeline stages
  /// Exact: the bits of a completion do not depend on what else is computed. A piece of a prompt has a pass of its own,
  /// decoding passes (and generated tokens computed again) take `exact_rows` tokens at most: the CPU's product for few
  /// rows gives a row the same bits whatever the others are.
  bool exact = true;
  int64_t exact_rows = 32;
};

/// Tokens [begin, begin + count) of a sequence.
struct Piece {
  int64_t sequence = 0;
  int64_t begin = 0, count = 0;
  bool sample = false;  ///< reaches the last known token: its logits give the next
  friend bool operator==(const Piece&, const Piece&) = default;
};

struct Pass {
  std::vector<Piece> pieces;
  [[nodiscard]] bool empty() const { return pieces.empty(); }
  [[nodiscard]] int64_t tokens() const;
};

class BatchPlanner {
 public:
  explicit BatchPlanner(const PlannerLimits& limits);

  /// A sequence with `prompt` tokens known, in the order of arrival. `longest` tokens at most in the end. Returns its
  /// number. Throws InternalError when its blocks do not fit even alone (the caller has checked and told the user).
  int64_t add(int64_t prompt, int64_t longest);
  /// The next pass; its sequences are under way until commit(). Empty: nothing can start before a pass under way is
  /// committed, or idle().
  [[nodiscard]] Pass next();
  /// The pass has been computed; sampled sequences have one more known token. In the order of next().
  void commit(const Pass& pass);
  /// The sequence is complete: its blocks are free. Not while it is under way.
  void finish(int64_t sequence);

  [[nodiscard]] bool idle() const { return sequences_.empty(); }
  /// Cache blocks of a running sequence.
  [[nodiscard]] const std::vector<int32_t>& blocks(int64_t sequence) const;
  [[nodiscard]] int64_t running() const { return static_cast<int64_t>(running_.size()); }
  [[nodiscard]] int64_t preemptions() const { return preemptions_; }
  [[nodiscard]] int64_t free_blocks() const { return blocks_.free_blocks(); }

 private:
  struct Sequence {
    int64_t prompt = 0, known = 0;
    int64_t planned = 0;    ///< tokens that are computed, or in a pass under way
    int64_t under_way = 0;  ///< pieces; several only of a prompt (passes keep their order through all stages)
    std::vector<int32_t> blocks;
  };
  [[nodiscard]] Sequence& at(int64_t id) { return sequences_.at(id); }
  [[nodiscard]] int64_t blocks_of(int64_t tokens) const {
    return (tokens + limits_.block_size - 1) / limits_.block_size;
  }
  [[nodiscard]] bool decoding(const Sequence& s) const { return s.planned + 1 == s.known; }
  void admit();
  [[nodiscard]] int64_t piece_length(const Sequence& s, int64_t room) const;
  [[nodiscard]] bool reserve(int64_t id, int64_t tokens);
  void take(int64_t id, int64_t count, Pass& pass);
  void plan_prefill(Pass& pass);
  void plan_decode(Pass& pass);

  PlannerLimits limits_;
  BlockManager blocks_;
  std::map<int64_t, Sequence> sequences_;
  std::deque<int64_t> waiting_;
  std::vector<int64_t> running_;  ///< in the order of admission
  std::deque<int64_t> turn_;      ///< running ones, those longest without a pass first
  int64_t next_id_ = 0, preemptions_ = 0;
};

}  // namespace r1::serve
