#include "runtime/models/gradient_slots.h"

#include <algorithm>

#include "runtime/kernels/ops.h"

namespace r1::models {

using parallel::ParamRole;

namespace {

bool is_norm_of_layer(ParamRole role) {
  return role == ParamRole::kInputNorm || role == ParamRole::kPostNorm || role == ParamRole::kQNorm || role == ParamRole::kKNorm;
}

/// A matrix whose gradient is a product, which can be written as well as added.
bool is_product(const StageParameters& params, const parallel::ParamSpec& p) {
  switch (p.role) {
    case ParamRole::kInputNorm: case ParamRole::kPostNorm: case ParamRole::kFinalNorm: case ParamRole::kQNorm: case ParamRole::kKNorm:
    case ParamRole::kQBias: case ParamRole::kKBias: case ParamRole::kVBias: return false;
    // A tied head that has no gradient of its own writes the embedding's before anything is added to it.
    case ParamRole::kEmbedding: {
      const auto has = [&](ParamRole role) { return std::ranges::any_of(params.specs(), [&](const auto& q) { return q.role == role; }); };
      return has(ParamRole::kFinalNorm) && !has(ParamRole::kHead) && params.tied_head_gradient(0).data == nullptr;
    }
    default: return true;
  }
}

}  // namespace

GradientSlots::GradientSlots(const StageParameters& params, std::optional<parallel::RowTree> tree)
    : params_(params), tree_(std::move(tree)) {
  if (params.gradient_slots() == 0) return;
  const Tensor sums = params.gradient_slot(0);
  if (!tree_) {
    for (size_t i = 0; i < params.specs().size(); ++i)
      if (!is_product(params, params.specs()[i])) cleared_.push_back(params.part(sums, i));
    return;
  }
  cleared_ = {sums};
  if (const Tensor head = params.tied_head_gradient(0); head.data != nullptr) cleared_.push_back(head);
  for (size_t i = 0; i < params.specs().size(); ++i) {
    const parallel::ParamSpec& p = params.specs()[i];
    const int64_t begin = params.layout().offsets[i];
    const Range r{.layer = p.layer, .norm = is_norm_of_layer(p.role), .begin = begin,
                  .end = begin + p.shard.local_elems(params.tp_rank())};
    // Gaps between parameters hold zeros: a range may run across them.
    if (!ranges_.empty() && ranges_.back().layer == r.layer && ranges_.back().norm == r.norm) ranges_.back().end = r.end;
    else ranges_.push_back(r);
    if (p.role == ParamRole::kFinalNorm && params.tied_head_gradient(0).data != nullptr) head_layer_ = p.layer;
  }
}

void GradientSlots::clear(const Stream& s) const {
  for (const Tensor& t : cleared_) backend_of(s.device.kind).fill_zero(t.data, t.bytes(), s);
}

size_t GradientSlots::slot(int microbatch) const {
  if (!tree_) return 0;
  const auto m = static_cast<size_t>(microbatch);
  return m < tree_->steps.size() ? static_cast<size_t>(tree_->steps[m].slot) : params_.gradient_slots() - 1;
}

template <class Work>
void GradientSlots::each(int64_t layer, GradientGroup group, const Work& work) const {
  for (const Range& r : ranges_)
    if (r.layer == layer && (group == GradientGroup::kAll || r.norm == (group == GradientGroup::kNorms)))
      work([&](size_t slot) { return params_.gradient_slot(slot).rows(r.begin, r.end); });
  if (layer == head_layer_)
    work([&](size_t slot) {
      const Tensor t = params_.tied_head_gradient(slot);
      return t.view({t.numel()});
    });
}

void GradientSlots::begin(int64_t layer, GradientGroup group, int microbatch, const Stream& s) const {
  const size_t k = slot(microbatch);
  if (k == 0) return;  // zeroed with the step
  each(layer, group, [&](const auto& range) {
    const Tensor t = range(k);
    backend_of(s.device.kind).fill_zero(t.data, t.bytes(), s);
  });
}

void GradientSlots::end(int64_t layer, GradientGroup group, int microbatch, const Stream& s) const {
  if (!tree_ || static_cast<size_t>(microbatch) >= tree_->steps.size()) return;
  const parallel::RowTree::Step& step = tree_->steps[static_cast<size_t>(microbatch)];
  each(layer, group, [&](const auto& range) {
    for (int k = step.slot; k > step.slot - step.merges; --k)
      kernels::add_into(range(static_cast<size_t>(k - 1)), range(static_cast<size_t>(k)), s);
  });
}

}  // namespace r1::models
