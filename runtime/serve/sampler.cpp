#include "runtime/serve/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/core/rng.h"

namespace r1::serve {

namespace {

using Candidate = SampleScratch::Candidate;

/// The more likely first; of equals the smaller id.
bool before(const Candidate& a, const Candidate& b) { return a.z != b.z ? a.z > b.z : a.id < b.id; }

/// The penalty of Keskar et al. (2019), section 4.1, as transformers applies it: once for each distinct token.
std::span<const float> penalised(std::span<const float> logits, double penalty, std::span<const int32_t> seen,
                                 SampleScratch& scratch) {
  if (penalty == 1 || seen.empty()) return logits;
  scratch.logits.assign(logits.begin(), logits.end());
  for (const int32_t id : seen) {
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) continue;
    const auto i = static_cast<size_t>(id);
    const double l = static_cast<double>(logits[i]);  // from the original: a token seen twice is not punished twice
    scratch.logits[i] = static_cast<float>(l > 0 ? l / penalty : l * penalty);
  }
  return scratch.logits;
}

/// Keeps the k most likely.
void keep_top_k(std::vector<Candidate>& c, int64_t k) {
  if (k <= 0 || k >= static_cast<int64_t>(c.size())) return;
  std::nth_element(c.begin(), c.begin() + k, c.end(), before);
  c.resize(static_cast<size_t>(k));
}

/// Keeps the fewest most likely ones that reach probability p together; sorts as many as it needs.
void keep_top_p(std::vector<Candidate>& c, double p) {
  if (p >= 1) return;
  double total = 0;
  for (const Candidate& x : c) total += std::exp(x.z);
  double sum = 0;
  size_t done = 0;
  for (size_t sorted = 64; done < c.size(); sorted *= 4) {
    sorted = std::min(sorted, c.size());
    const auto begin = c.begin() + static_cast<std::ptrdiff_t>(done),
               end = c.begin() + static_cast<std::ptrdiff_t>(sorted);
    if (sorted < c.size()) std::nth_element(begin, end, c.end(), before);
    std::sort(begin, end, before);
    for (; done < sorted; ++done) {
      sum += std::exp(c[done].z);
      if (sum >= p * total) {
        c.resize(done + 1);
        return;
      }
    }
  }
}

int32_t draw(const std::vector<Candidate>& c, const DrawKey& key) {
  // A 32-bit u leaves no Gumbel value above this: tokens too far below the best so far are passed over.
  constexpr double kMostGumbel = 22.9;
  double best = -std::numeric_limits<double>::infinity();
  int32_t token = -1;
  for (const Candidate& x : c) {
    if (x.z + kMostGumbel < best) continue;
    const double score = x.z - std::log(exponential_variate(key, x.id));
    if (score > best || (score == best && x.id < token)) {
      best = score;
      token = x.id;
    }
  }
  return token;
}

}  // namespace

double exponential_variate(const DrawKey& key, int32_t token) {
  const auto id = static_cast<uint32_t>(token);
  const auto words = philox4x32({id / 4, static_cast<uint32_t>(key.position), static_cast<uint32_t>(key.request),
                                 static_cast<uint32_t>(key.request >> 32)},
                                key.seed ^ hash_name("sample"));
  return -std::log((static_cast<double>(words[id % 4]) + 0.5) * 0x1p-32);
}

int32_t sample_token(std::span<const float> raw, const SamplingParams& params, std::span<const int32_t> seen,
                     const DrawKey& key, SampleScratch& scratch) {
  const std::span<const float> logits = penalised(raw, params.repetition_penalty, seen, scratch);
  float largest = -std::numeric_limits<float>::infinity();
  int32_t best = -1;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) return -1;
    if (logits[i] > largest) {
      largest = logits[i];
      best = static_cast<int32_t>(i);
    }
  }
  if (params.greedy() || best < 0 || std::isinf(largest)) return std::isinf(largest) ? -1 : best;

  // Below e^-60 of the largest nothing is ever drawn, nor seen in a sum.
  constexpr double kLowest = -60;
  std::vector<Candidate>& c = scratch.candidates;
  c.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    const double z = (static_cast<double>(logits[i]) - static_cast<double>(largest)) / params.temperature;
    if (z >= kLowest) c.push_back({z, static_cast<int32_t>(i)});
  }
  keep_top_k(c, params.top_k);
  keep_top_p(c, params.top_p);
  if (params.min_p > 0) std::erase_if(c, [least = std::log(params.min_p)](const Candidate& x) { return x.z < least; });
  return draw(c, key);
}

}  // namespace r1::serve
