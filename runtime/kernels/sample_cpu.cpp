#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/cpu_kernels.h"
#include "runtime/kernels/sample.h"

namespace r1::kernels::cpu {
namespace {

struct Candidate {
  double z;
  uint64_t order;  // sample_order
};

bool before(const Candidate& a, const Candidate& b) { return a.order > b.order; }

/// The logits of one row by id, penalised where that is asked for.
std::vector<float> row_logits(const Tensor& logits, std::span<const int64_t> vocab_begin, const SampleRow& r,
                              const Tensor& seen) {
  const int64_t vocab = vocab_begin.back(), rows = logits.numel() / vocab;
  std::vector<float> out(static_cast<size_t>(vocab));
  for (size_t p = 0; p + 1 < vocab_begin.size(); ++p) {
    const int64_t begin = vocab_begin[p], width = vocab_begin[p + 1] - begin;
    std::copy_n(logits.ptr<float>() + rows * begin + r.row * width, width, out.begin() + begin);
  }
  if (r.seen < 0) return out;
  const uint32_t* bits = seen.ptr<uint32_t>() + r.seen * seen_words(vocab);
  for (size_t i = 0; i < out.size(); ++i)
    if ((bits[i / 32] >> (i % 32) & 1) != 0) out[i] = penalised(out[i], r.repetition_penalty);
  return out;
}

void keep_top_k(std::vector<Candidate>& c, int64_t k) {
  if (k <= 0 || k >= static_cast<int64_t>(c.size())) return;
  std::nth_element(c.begin(), c.begin() + k, c.end(), before);
  c.resize(static_cast<size_t>(k));
}

/// Keeps the fewest most likely ones that reach probability p together; sorts as many as it needs.
void keep_top_p(std::vector<Candidate>& c, double p) {
  if (p >= 1) return;
  uint64_t total = 0, sum = 0;
  for (const Candidate& x : c) total += sample_mass(std::exp(x.z));
  const uint64_t enough = mass_to_reach(p, total);
  size_t done = 0;
  for (size_t sorted = 64; done < c.size(); sorted *= 4) {
    sorted = std::min(sorted, c.size());
    const auto begin = c.begin() + static_cast<std::ptrdiff_t>(done),
               end = c.begin() + static_cast<std::ptrdiff_t>(sorted);
    if (sorted < c.size()) std::nth_element(begin, end, c.end(), before);
    std::sort(begin, end, before);
    for (; done < sorted; ++done) {
      sum += sample_mass(std::exp(c[done].z));
      if (sum >= enough) {
        c.resize(done + 1);
        return;
      }
    }
  }
}

int32_t draw(const std::vector<Candidate>& c, const SampleRow& r) {
  double best = -std::numeric_limits<double>::infinity();
  int32_t token = -1;
  for (const Candidate& x : c) {
    if (x.z + kLargestGumbel < best) continue;
    const int32_t id = ordered_id(x.order);
    const double u = draw_uniform(draw_word(draw_key(r.seed), r.request, r.position, id));
    const double score = x.z - std::log(-std::log(u));
    if (score > best || (score == best && id < token)) {
      best = score;
      token = id;
    }
  }
  return token;
}

int32_t choose(const std::vector<float>& logits, const SampleRow& r) {
  float largest = -std::numeric_limits<float>::infinity();
  int32_t best = -1;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) return -1;
    if (logits[i] > largest) {
      largest = logits[i];
      best = static_cast<int32_t>(i);
    }
  }
  if (std::isinf(largest)) return -1;
  if (r.temperature == 0) return best;

  std::vector<Candidate> c;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double z = (static_cast<double>(logits[i]) - static_cast<double>(largest)) / r.temperature;
    if (z >= kLowestZ) c.push_back({z, sample_order(logits[i], static_cast<int32_t>(i))});
  }
  keep_top_k(c, r.top_k);
  keep_top_p(c, r.top_p);
  if (r.min_p > 0) std::erase_if(c, [least = std::log(r.min_p)](const Candidate& x) { return x.z < least; });
  return draw(c, r);
}

}  // namespace

void sample(const Tensor& logits, std::span<const int64_t> vocab_begin, std::span<const SampleRow> rows,
            const Tensor& seen, const Tensor& tokens, const Stream&) {
  parallel_for(static_cast<int64_t>(rows.size()), [&](int64_t i) {
    const SampleRow& r = rows[static_cast<size_t>(i)];
    tokens.ptr<int32_t>()[i] = choose(row_logits(logits, vocab_begin, r, seen), r);
  });
}

}  // namespace r1::kernels::cpu
