// What a rank needs to generate: weights, the paged key/value cache, and the working memory of one pass. Pure.
//
// Legend: T tokens of a pass, R rows of logits of a pass, C rows of logits that exist at once, H hidden, NQ/NKV local
// query/key-value heads, D head dim, F local ffn, V local vocabulary.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/spec/model_spec.h"

namespace r1::parallel {

/// Sizes of an inference engine. The same on every rank of a replica.
struct InferenceShape {
  int64_t pass_tokens = 256;     ///< T at most
  int64_t sequences = 32;        ///< sequences at work together: R at most
  int64_t context = 0;           ///< tokens of a sequence at most, prompt and completion
  int64_t block_size = 16;       ///< tokens of a cache block
  int64_t blocks = 0;            ///< blocks of the cache
  int64_t logit_rows = 32;       ///< C at most
  int64_t attention_rows = 256;  ///< query tokens of one attention call: bounds its working memory
  int64_t workspace_bytes = 0;   ///< of the attention kernel
  DType dtype = DType::kF32;     ///< weights, activations and cache

  /// Blocks that hold `tokens` tokens of one sequence.
  [[nodiscard]] int64_t blocks_of(int64_t tokens) const { return (tokens + block_size - 1) / block_size; }
};

/// Bytes of one cache block on a rank: keys and values of all its layers.
[[nodiscard]] int64_t kv_block_bytes(const ModelSpec& spec, const MeshShape& mesh, const MeshCoord& coord,
                                     const InferenceShape& shape);

/// Everything one rank allocates.
struct InferencePlan {
  MeshShape mesh;
  MeshCoord coord;
  InferenceShape shape;
  struct Chunk {
    int stage = 0;
    int64_t param_elems = 0;
  };
  std::vector<Chunk> chunks;           ///< this rank's virtual stages, lowest first
  std::vector<PlannedTensor> cache;    ///< keys and values [blocks, block_size, NKV, D] of each layer in turn
  std::vector<PlannedTensor> scratch;  ///< found by name
  struct Bytes {
    int64_t weights = 0, cache = 0, scratch = 0;
    [[nodiscard]] int64_t total() const { return weights + cache + scratch; }
  };
  [[nodiscard]] Bytes bytes() const;
};

/// The plan of the rank at `coord`. `spec` has pp times virtual stages.
[[nodiscard]] InferencePlan plan_inference(const ModelSpec& spec, const MeshShape& mesh, const MeshCoord& coord,
                                           const InferenceShape& shape);

}  // namespace r1::parallel
