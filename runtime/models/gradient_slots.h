// Weight gradients of a stage summed row by row in a fixed tree (--deterministic): a row's own gradient goes to a slot, and
// slots are added up as parallel::RowTree says. Without a tree there is one slot that everything is accumulated in.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "parallel/spec/row_tree.h"
#include "runtime/models/parameters.h"

namespace r1::models {

/// The gradients that one part of a backward makes: those of norms come with the input gradient, those of matrices and their
/// biases with the weight gradient.
enum class GradientGroup : uint8_t { kNorms, kMatrices, kAll };

class GradientSlots {
 public:
  /// Micro-batch i holds row i of this rank; those beyond the tree's rows are filling and do not count.
  GradientSlots(const StageParameters& params, std::optional<parallel::RowTree> tree);
  /// Before a step's first gradients of the stage: zeroes what its micro-batches accumulate from the first on. Without a tree those are norms,
  /// biases and the embedding; the first micro-batch writes the others (nn::MatrixGradients).
  void clear(const Stream& s) const;
  /// Whether a micro-batch writes the gradients of matrices: the first one of a step, without a tree. A stage runs its
  /// micro-batches in order.
  [[nodiscard]] bool writes(int microbatch) const { return microbatch == 0 && !tree_; }
  /// Where the gradients of a micro-batch go: index of StageParameters::gradient_slot.
  [[nodiscard]] size_t slot(int microbatch) const;
  /// Before a micro-batch's gradients of a layer's group are accumulated (-1 embedding, the number of layers: norm and head).
  void begin(int64_t layer, GradientGroup group, int microbatch, const Stream& s) const;
  /// After it; each group sees the micro-batches in order.
  void end(int64_t layer, GradientGroup group, int microbatch, const Stream& s) const;

 private:
  struct Range {
    int64_t layer = 0;
    bool norm = false;
    int64_t begin = 0, end = 0;  ///< elements of the flat block
  };
  /// Calls work(range of slot k) for each range of the group, and for a tied head's buffer.
  template <class Work>
  void each(int64_t layer, GradientGroup group, const Work& work) const;

  const StageParameters& params_;
  std::optional<parallel::RowTree> tree_;
  std::vector<Range> ranges_;
  std::vector<Tensor> cleared_;  ///< by clear()
  int64_t head_layer_ = -2;  ///< layer whose head has a buffer of its own
};

}  // namespace r1::models
