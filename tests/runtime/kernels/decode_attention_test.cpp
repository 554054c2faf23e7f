#include "tests/runtime/kernels/support.h"

namespace r1::kernels::test {
namespace {

struct Case {
  const char* name;
  std::vector<int32_t> kv_of_q;
  int64_t kv_heads, dim, block_size;
  std::vector<int32_t> contexts;
};
void PrintTo(const Case& c, std::ostream* os) { *os << c.name; }
const Case kCases[] = {
    {"one token", {0}, 1, 8, 16, {1}},
    {"no sequences", {0}, 1, 8, 16, {}},
    {"an empty context", {0, 0}, 1, 8, 4, {0, 3}},
    {"exact blocks", {0, 1}, 2, 16, 4, {8, 4}},
    {"odd everything", {0, 0, 0, 1}, 2, 13, 7, {30, 1, 8, 22}},
    {"uneven groups", {0, 1, 1, 1, 2, 2}, 3, 64, 16, {100, 257}},
    {"several chunks", {0, 0, 0, 0, 0, 0, 1}, 2, 24, 16, {1300, 512, 513}},
    {"blocks longer than a chunk", {0, 0}, 1, 8, 600, {1250}},
    {"a kv head nobody reads", {0, 2}, 3, 8, 5, {11}},
    {"no q heads", {}, 1, 8, 4, {5}},
};

class DecodeAttention : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Cases, DecodeAttention, testing::ValuesIn(kCases));

// The cache is filled through kv_cache_append with blocks handed out in a scrambled order, then the
// last token's attention must equal that of attention_forward over the same tokens.
TEST_P(DecodeAttention, EqualsTheLastRowOfFullAttention) {
  const Case& c = GetParam();
  const auto nq = static_cast<int64_t>(c.kv_of_q.size()),
             sequences = static_cast<int64_t>(c.contexts.size());
  const int64_t width = (nq + 2 * c.kv_heads) * c.dim;
  int64_t longest = 0, total = 0;
  for (const int32_t n : c.contexts) longest = std::max<int64_t>(longest, n), total += n;
  const int64_t max_blocks = std::max<int64_t>(1, (longest + c.block_size - 1) / c.block_size);
  int64_t blocks = sequences * max_blocks + 3;
  if (blocks % 5 == 0) ++blocks;  // the scramble below steps by 5
  const DecodeAttentionArgs args{.q_heads = nq,
                                 .kv_heads = c.kv_heads,
                                 .head_dim = c.dim,
                                 .kv_of_q = c.kv_of_q,
                                 .scale = 0.3F,
                                 .max_context = longest};
  const Floats qkv = normal("qkv", {total, width});
  Floats k_cache({blocks, c.block_size, c.kv_heads, c.dim}),
      v_cache({blocks, c.block_size, c.kv_heads, c.dim});
  Ints table({sequences, max_blocks});  // entries past the context stay poisoned
  Block<int64_t> slots({total});
  Floats last({sequences, width}), want({sequences, nq * c.dim});
  int64_t next_block = 0, token = 0;
  std::vector<int32_t> cu = {0};
  for (int64_t b = 0; b < sequences; ++b) {
    const int64_t n = c.contexts[static_cast<size_t>(b)];
    for (int64_t p = 0; p < n; ++p, ++token) {
      if (p % c.block_size == 0)
        table[b * max_blocks + p / c.block_size] =
            static_cast<int32_t>((next_block++ * 5 + 2) % blocks);
      slots[token] = table[b * max_blocks + p / c.block_size] * c.block_size + p % c.block_size;
    }
    cu.push_back(static_cast<int32_t>(token));
    for (int64_t i = 0; i < width; ++i)
      last[b * width + i] = n == 0 ? 1.0F : qkv[(token - 1) * width + i];
  }
  kv_cache_append(qkv, slots, args, k_cache, v_cache, {});

  Floats o({total, nq * c.dim}), lse({nq, total}), decoded({sequences, nq * c.dim});
  const AttentionArgs full{.q_heads = nq,
                           .kv_heads = c.kv_heads,
                           .head_dim = c.dim,
                           .kv_of_q = c.kv_of_q,
                           .scale = 0.3F,
                           .max_segment = longest,
                           .host_cu = cu};
  attention_forward(qkv, Ints({sequences + 1}, cu), full, o, lse, none(), {});
  const Ints contexts({sequences}, c.contexts);
  decode_attention(last, k_cache, v_cache, table, contexts, args, decoded, none(), {});
  std::vector<double> expected;
  for (int64_t b = 0; b < sequences; ++b)
    for (int64_t i = 0; i < nq * c.dim; ++i)
      expected.push_back(
          c.contexts[static_cast<size_t>(b)] == 0
              ? 0.0
              : static_cast<double>(o[(cu[static_cast<size_t>(b) + 1] - 1) * nq * c.dim + i]));
  expect_close(decoded, expected, "o");
}

TEST(KvCacheAppend, SkipsPaddingAndWritesNothingElse) {
  const std::vector<int32_t> map = {0};
  const DecodeAttentionArgs args{.q_heads = 1, .kv_heads = 1, .head_dim = 2, .kv_of_q = map};
  const Floats qkv = normal("qkv", {3, 6});
  Floats k = filled({2, 2, 1, 2}, 9), v = filled({2, 2, 1, 2}, 9);
  kv_cache_append(qkv, Block<int64_t>({3}, {3, -1, 0}), args, k, v, {});
  EXPECT_EQ(k.values(), (std::vector<float>{qkv[14], qkv[15], 9, 9, 9, 9, qkv[2], qkv[3]}));
  EXPECT_EQ(v.values(), (std::vector<float>{qkv[16], qkv[17], 9, 9, 9, 9, qkv[4], qkv[5]}));
  EXPECT_THROW(kv_cache_append(qkv, Block<int64_t>({3}, {0, 1, 4}), args, k, v, {}), InternalError)
      << "slot 4 of 4";
}

TEST(DecodeAttentionChecks, BlocksAndContextsOutsideTheCacheAreRefused) {
  const std::vector<int32_t> map = {0};
  const DecodeAttentionArgs args{
      .q_heads = 1, .kv_heads = 1, .head_dim = 4, .kv_of_q = map, .max_context = 4};
  const Floats q = filled({1, 4}, 1), k = filled({2, 2, 1, 4}, 1), v = filled({2, 2, 1, 4}, 1);
  Floats o({1, 4});
  decode_attention(q, k, v, Ints({1, 2}, {1, 0}), Ints({1}, {4}), args, o, none(), {});
  EXPECT_FLOAT_EQ(o[0], 1.0F);
  EXPECT_THROW(decode_attention(q, k, v, Ints({1, 2}, {1, 2}), Ints({1}, {4}), args, o, none(), {}),
               InternalError);
  EXPECT_THROW(decode_attention(q, k, v, Ints({1, 2}, {1, 0}), Ints({1}, {5}), args, o, none(), {}),
               InternalError);
}

TEST(DecodeAttentionThreads, ResultsDoNotDependOnTheirNumber) {
  const std::vector<int32_t> map = {0, 0, 1, 1};
  const DecodeAttentionArgs args{.q_heads = 4,
                                 .kv_heads = 2,
                                 .head_dim = 16,
                                 .kv_of_q = map,
                                 .scale = 0.25F,
                                 .max_context = 500};
  const Floats q = normal("q", {3, 64}), k = normal("k", {40, 16, 2, 16}),
               v = normal("v", {40, 16, 2, 16});
  Ints table({3, 32});
  for (int64_t i = 0; i < 96; ++i) table[i] = static_cast<int32_t>(i * 7 % 40);
  expect_same_for_any_threads([&] {
    Floats o({3, 64});
    decode_attention(q, k, v, table, Ints({3}, {500, 3, 77}), args, o, none(), {});
    return o.values();
  });
}

}  // namespace
}  // namespace r1::kernels::test
