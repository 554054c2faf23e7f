// From vocabulary-parallel logits to tokens, on the last stage. Greedy rows exchange one (value, id) pair a rank; logits of
// rows that are sampled or penalised are gathered whole on the device, and tp rank 0 decides for all (processors of other
// makes may round exp differently). Tokens alone travel to the host.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "runtime/models/paged_model.h"
#include "runtime/serve/request.h"

namespace r1::serve {

struct ChosenToken {
  int32_t token = -1;  ///< -1: the logits were not finite
  float logprob = 0;
};

/// One row of a pass whose next token is wanted.
struct RowToChoose {
  int64_t row = 0;  ///< token of the pass
  const SamplingParams* params = nullptr;
  std::span<const uint32_t> seen;  ///< bits of the tokens seen (kernels::sample), where the penalty needs them
  uint64_t request = 0;
  int64_t position = 0;  ///< of the token chosen: tokens before it
};

class TokenChooser {
 public:
  TokenChooser(models::PagedModel& model, parallel::ProcessGroups& groups, bool logprobs);

  /// Tokens of the model's last pass. Only on the last stage. Collective over tp.
  [[nodiscard]] std::vector<ChosenToken> choose(std::span<const RowToChoose> rows);

 private:
  void choose_chunk(std::span<const RowToChoose> rows, const Tensor& logits, std::span<ChosenToken> out);
  void greedy(const Tensor& logits, std::span<ChosenToken> out);
  void sampled(std::span<const RowToChoose> rows, const Tensor& logits, std::span<ChosenToken> out);
  void add_logprobs(const Tensor& logits, std::span<ChosenToken> out);

  models::PagedModel& model_;
  parallel::ProcessGroups& groups_;
  bool logprobs_;
  std::vector<int64_t> vocab_begin_;  ///< of each tp rank, and the vocabulary at the end
  std::vector<uint32_t> seen_;  ///< of the rows of a chunk, on their way to the device
};

}  // namespace r1::serve
