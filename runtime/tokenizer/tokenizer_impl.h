// What a Tokenizer holds: made once from a tokenizer.json, then only read.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/bpe.h"
#include "runtime/tokenizer/pretokenizer.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/tokenizer_file.h"

namespace r1::text {

struct Tokenizer::Impl {
  std::string source;
  BpeModel bpe;
  std::vector<SplitPattern> splits;
  std::vector<int32_t> prefix_ids;
  std::vector<int32_t> suffix_ids;
  bool nfc = false;
  TokenMatcher control_raw;         // control tokens, found before normalization
  TokenMatcher control_normalized;  // control tokens that the file has found after it
  TokenMatcher plain;               // words: found in any text, after normalization
  TokenMatcher all_normalized;      // the two together: the longest match of both counts
  ByteStringMap names;              // added tokens, and vocabulary spellings outside the alphabet
  std::string bytes;                // what each id decodes to, end to end
  std::vector<uint32_t> offsets;    // [vocab_size + 1] into `bytes`
  // kSkipped: left out where specials are. As in Hugging Face, that goes by the text that a token
  // decodes to: special tokens whose text NFC changes stay.
  enum : uint8_t { kSpecial = 1, kControl = 2, kSkipped = 4 };
  std::vector<uint8_t> flags;  // [vocab_size]
  uint64_t fingerprint = 0;

  struct Work {
    BpeScratch bpe;
    std::string normalized;
    std::vector<int32_t> ids;
  };

  class Builder;  // the steps of build()

  /// From the checked file to the tables above. DataError naming `source` and what contradicts
  /// what.
  void build(const TokenizerFile& file);
  void encode_words(std::string_view text, Work& work) const;
  void encode_gap(std::string_view text, const TokenMatcher& tokens, Work& work) const;
  void encode(std::string_view text, const std::vector<Range>& markup, Work& work) const;
};

}  // namespace r1::text
