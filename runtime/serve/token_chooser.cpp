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

bool plain(const RowToChoose& r) { return r.params->plain(); }

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
  std::vector<kernels::SampleRow> wanted;
  std::vector<size_t> index;  // of each of them among `rows`
  seen_.clear();
  const int64_t words = kernels::seen_words(vocab);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (plain(rows[i])) continue;
    const SamplingParams& p = *rows[i].params;
    kernels::SampleRow r{.row = static_cast<int64_t>(i),
                         .temperature = p.temperature,
                         .top_k = p.top_k,
                         .top_p = p.top_p,
                         .min_p = p.min_p,
                         .repetition_penalty = p.repetition_penalty,
                         .seed = p.seed,
                         .request = rows[i].request,
                         .position = rows[i].position};
    if (p.repetition_penalty != 1) {
      R1_CHECK(static_cast<int64_t>(rows[i].seen.size()) == words, "{} words of tokens seen", rows[i].seen.size());
      r.seen = static_cast<int64_t>(seen_.size()) / words;
      seen_.insert(seen_.end(), rows[i].seen.begin(), rows[i].seen.end());
    }
    wanted.push_back(r);
    index.push_back(i);
  }
  const auto n = static_cast<int64_t>(wanted.size());
  std::vector<int32_t> tokens(wanted.size());
  if (groups_.tp().rank() == 0) {
    DeviceBackend& backend = backend_of(s.device.kind);
    const Tensor seen = front(model_.scratch("seen"), {static_cast<int64_t>(seen_.size()) / words, words});
    const Tensor chosen = front(model_.scratch("sampled"), {n});
    backend.copy(seen.data, seen_.data(), seen.bytes(), s);
    kernels::sample(all.view({all.numel()}), vocab_begin_, wanted, seen, chosen, s);
    backend.copy(tokens.data(), chosen.data, chosen.bytes(), s);
    backend.synchronize(s);
  }
  groups_.tp().broadcast({.data = tokens.data(), .dtype = DType::kI32, .shape = {n}, .device = {}}, 0, s);
  for (size_t i = 0; i < index.size(); ++i) out[index[i]].token = tokens[i];
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
