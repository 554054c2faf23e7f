#include "tests/runtime/kernels/support.h"

namespace r1::kernels::test {
namespace {

struct Dims {
  int64_t tokens, vocab, hidden, begin;
};
void PrintTo(const Dims& d, std::ostream* os) {
  *os << d.tokens << "x" << d.vocab << "x" << d.hidden << "@" << d.begin;
}

class Embedding : public testing::TestWithParam<Dims> {};
INSTANTIATE_TEST_SUITE_P(Shapes, Embedding,
                         testing::Values(Dims{0, 5, 4, 0}, Dims{9, 0, 4, 3}, Dims{9, 5, 0, 0},
                                         Dims{1, 1, 1, 0}, Dims{40, 7, 13, 0}, Dims{40, 7, 13, 5},
                                         Dims{300, 64, 96, 32}));

// Ids on both sides of the part, repeated often, and one that is no id.
Ints make_ids(const Dims& d) {
  const Rng rng(7, "ids");
  Ints ids({d.tokens});
  for (int64_t t = 0; t < d.tokens; ++t)
    ids[t] = static_cast<int32_t>(
        rng.below(static_cast<uint64_t>(t), static_cast<uint64_t>(d.begin + d.vocab + 4)));
  if (d.tokens > 3) ids[3] = -1;
  return ids;
}

TEST_P(Embedding, ForwardTakesRowsOfThisPartAndZerosElsewhere) {
  const Dims d = GetParam();
  const Ints ids = make_ids(d);
  const Floats w = normal("w", {d.vocab, d.hidden});
  Floats y({d.tokens, d.hidden});
  embedding_forward(ids, w, d.begin, y, {});
  for (int64_t t = 0; t < d.tokens; ++t) {
    const int64_t local = ids[t] - d.begin;
    for (int64_t i = 0; i < d.hidden; ++i)
      ASSERT_EQ(y[t * d.hidden + i], local >= 0 && local < d.vocab ? w[local * d.hidden + i] : 0.0F)
          << t << " " << i;
  }
}

TEST_P(Embedding, BackwardAddsEachTokenToItsRow) {
  const Dims d = GetParam();
  const Ints ids = make_ids(d);
  const Floats dy = normal("dy", {d.tokens, d.hidden});
  Floats dw = normal("dw", {d.vocab, d.hidden});
  std::vector<double> want = dw.doubles();
  for (int64_t t = 0; t < d.tokens; ++t) {
    const int64_t local = ids[t] - d.begin;
    if (local < 0 || local >= d.vocab) continue;
    for (int64_t i = 0; i < d.hidden; ++i)
      want[static_cast<size_t>(local * d.hidden + i)] += static_cast<double>(dy[t * d.hidden + i]);
  }
  embedding_backward(ids, dy, d.begin, dw, {});
  expect_close(dw, want, "dw");
}

TEST(EmbeddingThreads, ResultsDoNotDependOnTheirNumber) {
  const Dims d{500, 20, 48, 2};
  const Ints ids = make_ids(d);
  const Floats dy = normal("dy", {d.tokens, d.hidden}), w = normal("w", {d.vocab, d.hidden});
  expect_same_for_any_threads([&] {
    Floats dw = filled({d.vocab, d.hidden}, 0.1F), y({d.tokens, d.hidden});
    embedding_forward(ids, w, d.begin, y, {});
    embedding_backward(ids, dy, d.begin, dw, {});
    return concat({&dw, &y});
  });
}

}  // namespace
}  // namespace r1::kernels::test
