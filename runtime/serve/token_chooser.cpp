#include "runtime/serve/token_chooser.h"

#include <algorithm>
#include <cmath>

#include "runtime/kernels/ops.h"

namespace r1::serve {

namespace {

/// The front of a planned tensor under another shape.
Tensor front(Tensor t, Shape shape) {
  R1_CHECK(shape.numel() <= t.numel(), "{} of {}", shape.str(), t.shape.str());
  t.shape = shape;
  return t;
}

bool plain(const RowToChoose& r) { return r.params->greedy() && r.params->repetition_penalty == 1; }

}  // namespace

TokenChooser::TokenChooser(models::PagedModel& model, parallel::ProcessGroups& groups, bool logprobs)
    : model_(model), groups_(groups), logprobs_(logprobs) {
  const parallel::ModelSpec& spec = model.spec();
  for (int r = 0; r < spec.tp(); ++r) vocab_begin_.push_back(spec.local(r).vocab.begin);
  vocab_begin_.push_back(spec.config().vocab);
}

std::vector<ChosenToken> TokenChooser::choose(std::span<const RowToChoose> rows) {
  std::vector<ChosenToken> out(rows.size());
  std::vector<int64_t> wanted;
  for (const RowToChoose& r : rows) wanted.push_back(r.row);
  model_.logits(wanted, [&](int64_t first, const Tensor& logits) {
    const auto begin = static_cast<size_t>(first), count = static_cast<size_t>(logits.dim(0));
    choose_chunk(rows.subspan(begin, count), logits, std::span(out).subspan(begin, count));
  });
  return out;
}

void TokenChooser::choose_chunk(std::span<const RowToChoose> rows, const Tensor& logits, std::span<ChosenToken> out) {
  if (std::any_of(rows.begin(), rows.end(), plain)) greedy(logits, out);
  if (!std::all_of(rows.begin(), rows.end(), plain)) sampled(rows, logits, out);
  if (logprobs_) add_logprobs(logits, out);
}

void TokenChooser::greedy(const Tensor& logits, std::span<ChosenToken> out) {
  const Stream& s = model_.stream();
  const int64_t c = logits.dim(0);
  const int tp = groups_.tp().size();
  const Tensor best = front(model_.scratch("best"), {2, c}), all = front(model_.scratch("all best"), {tp, 2, c});
  kernels::argmax(logits, vocab_begin_[static_cast<size_t>(groups_.tp().rank())], best, s);
  groups_.tp().all_gather(best, all, std::vector<int64_t>(static_cast<size_t>(tp), 2 * c), s);
  const std::vector<float> host = models::host_floats(all, s);
  for (int64_t i = 0; i < c; ++i) {
    float value = 0;
    int32_t id = -1;
    for (int r = 0; r < tp;
         ++r) {  // ranks hold rising parts of the vocabulary: the first of equals has the smallest id
      const float v = host[static_cast<size_t>(r * 2 * c + i)];
      if (std::isnan(v)) {
        id = -1;
        break;
      }
      if (id < 0 || v > value) {
        value = v;
        id = static_cast<int32_t>(host[static_cast<size_t>(r * 2 * c + c + i)]);
      }
    }
    out[static_cast<size_t>(i)].token = std::isinf(value) ? -1 : id;
  }
}

void TokenChooser::sampled(std::span<const RowToChoose> rows, const Tensor& logits, std::span<ChosenToken> out) {
  const Stream& s = model_.stream();
  const int64_t c = logits.dim(0), vocab = vocab_begin_.back();
  const auto tp = static_cast<size_t>(groups_.tp().size());
  Tensor all = logits;
  if (tp > 1) {
    std::vector<int64_t> counts;
    for (size_t r = 0; r < tp; ++r) counts.push_back(c * (vocab_begin_[r + 1] - vocab_begin_[r]));
    all = front(model_.scratch("all logits"), {c * vocab});
    groups_.tp().all_gather(logits.view({logits.numel()}), all, counts, s);
  }
  std::vector<int32_t> tokens(static_cast<size_t>(c), -1);
  if (groups_.tp().rank() == 0) {
    host_ = models::host_floats(all, s);
    row_.resize(static_cast<size_t>(vocab));
    for (size_t i = 0; i < rows.size(); ++i) {
      if (plain(rows[i])) {
        tokens[i] = out[i].token;
        continue;
      }
      for (size_t r = 0; r < tp; ++r) {  // parts of all ranks one after the other, each [C, its vocabulary]
        const int64_t begin = vocab_begin_[r], width = vocab_begin_[r + 1] - begin;
        std::copy_n(host_.begin() + c * begin + static_cast<int64_t>(i) * width, width, row_.begin() + begin);
      }
      tokens[i] = sample_token(row_, *rows[i].params, rows[i].seen, rows[i].key, scratch_);
    }
  }
  groups_.tp().broadcast({.data = tokens.data(), .dtype = DType::kI32, .shape = {c}, .device = {}}, 0, s);
  for (size_t i = 0; i < rows.size(); ++i) out[i].token = tokens[i];
}

void TokenChooser::add_logprobs(const Tensor& logits, std::span<ChosenToken> out) {
  const Stream& s = model_.stream();
  const int64_t c = logits.dim(0);
  const int tp = groups_.tp().size();
  std::vector<int32_t> ids;
  for (const ChosenToken& t : out) ids.push_back(t.token);
  const Tensor targets = front(model_.scratch("targets"), {c}), stats = front(model_.scratch("stats"), {3, c});
  const Tensor all = front(model_.scratch("all stats"), {tp, 3, c}), lse = front(model_.scratch("lse"), {c});
  const Tensor loss = front(model_.scratch("token loss"), {c});
  DeviceBackend& backend = backend_of(s.device.kind);
  backend.copy(targets.data, ids.data(), targets.bytes(), s);
  kernels::cross_entropy_stats(logits, targets, vocab_begin_[static_cast<size_t>(groups_.tp().rank())], stats, s);
  groups_.tp().all_gather(stats, all, std::vector<int64_t>(static_cast<size_t>(tp), 3 * c), s);
  kernels::cross_entropy_combine(all, targets, lse, loss, s);
  const std::vector<float> host = models::host_floats(loss, s);
  for (int64_t i = 0; i < c; ++i) out[static_cast<size_t>(i)].logprob = -host[static_cast<size_t>(i)];
}

}  // namespace r1::serve
