#include "runtime/kernels/sample.h"

#include "runtime/kernels/checks.h"
#include "runtime/kernels/kernel_table.h"

namespace r1::kernels {

void sample(const Tensor& logits, std::span<const int64_t> vocab_begin, std::span<const SampleRow> rows,
            const Tensor& seen, const Tensor& tokens, const Stream& s) {
  const checks::Call call("sample", s);
  call.require(vocab_begin.size() >= 2 && vocab_begin.size() <= kMaxVocabParts + 1 && vocab_begin.front() == 0,
               "{} bounds of the parts of a vocabulary", vocab_begin.size());
  for (size_t p = 1; p < vocab_begin.size(); ++p)
    call.require(vocab_begin[p] >= vocab_begin[p - 1], "a part of the vocabulary from {} to {}", vocab_begin[p - 1],
                 vocab_begin[p]);
  const int64_t vocab = vocab_begin.back();
  call.require(vocab >= 1 && vocab <= kMaxSampleVocab, "a vocabulary of {} tokens, at most {}", vocab, kMaxSampleVocab);
  call.rank("logits", logits, 1);
  call.floats({{"logits", logits}});
  call.require(logits.numel() % vocab == 0, "{} logits for a vocabulary of {}", logits.numel(), vocab);
  call.shape("tokens", tokens, {static_cast<int64_t>(rows.size())});
  call.dtype("tokens", tokens, {DType::kI32});
  const bool penalties = !seen.empty();
  if (penalties) {
    call.shape("seen", seen, {seen.dim(0), seen_words(vocab)});
    call.dtype("seen", seen, {DType::kI32});
  }
  for (const SampleRow& r : rows) {
    call.require(r.row >= 0 && r.row < logits.numel() / vocab, "row {} of {}", r.row, logits.numel() / vocab);
    call.require(r.seen < (penalties ? seen.dim(0) : 0), "row {} of the tokens seen", r.seen);
    call.require(r.temperature >= 0, "temperature {}", r.temperature);
  }
  kernel_table(s.device.kind).sample(logits, vocab_begin, rows, seen, tokens, s);
}

}  // namespace r1::kernels
