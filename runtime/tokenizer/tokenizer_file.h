// Reading a tokenizer.json: from bytes nobody vouches for to a checked description.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/bpe.h"
#include "runtime/tokenizer/pretokenizer.h"

namespace r1::text {

/// The checked content of a tokenizer.json.
struct TokenizerFile {
  struct Token {
    uint64_t offset;  // in `spellings`
    uint32_t length;
    int32_t id;
  };
  std::string spellings;      // vocabulary entries as written (byte-level alphabet)
  std::vector<Token> tokens;  // of the vocabulary, in file order
  std::vector<Token> merges;  // parts, two a merge, spelled in `merge_spellings`; ids unused
  std::string merge_spellings;
  std::vector<AddedToken> added_tokens;
  std::vector<SplitPattern> splits;
  std::vector<int32_t> prefix_ids;  // what the post-processor puts before a text
  std::vector<int32_t> suffix_ids;  // and after it
  bool nfc = false;
  bool ignore_merges = false;
  bool has_unk_token = false;
  uint64_t content_hash = 0;  // of the file's bytes
};

/// Highest id a file may use, most merges, and the size of the largest file read: what is larger is
/// no tokenizer (the largest known files have 262,144 tokens, 514,906 merges and 33 MB).
inline constexpr int64_t kMaxTokenId = (int64_t{1} << 21) - 1;
inline constexpr size_t kMaxMerges = size_t{1} << 21;
inline constexpr size_t kMaxTokenizerBytes = size_t{64} << 20;

/// Parses and checks. DataError naming `source`, the place and what was found. Memory is a small
/// multiple of the file.
[[nodiscard]] TokenizerFile parse_tokenizer_json(std::string_view json, const std::string& source);

/// Text made fit for a message: control characters and ill-formed bytes escaped, cut at
/// `max_bytes`.
[[nodiscard]] std::string printable(std::string_view text, size_t max_bytes = 200);

}  // namespace r1::text
