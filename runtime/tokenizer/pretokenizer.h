// Cutting text into pieces before byte-pair encoding, by scanners that equal the known split
// patterns.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace r1::text {

/// One step of a pre-tokenizer: a known pattern, by name.
enum class SplitPattern {
  kQwen2,            ///< Qwen2, 2.5, 3: digits one by one
  kLlama3,           ///< Llama-3: digits in groups of three
  kGpt2,             ///< GPT-2, also the built-in pattern of ByteLevel
  kNewlines,         ///< DeepSeek-LLM/Coder: [\r\n]
  kDeepSeekLetters,  ///< DeepSeek-LLM: \s?[letters of alphabets with case]+
  kDeepSeekPunct,    ///< DeepSeek-LLM: \s?[ASCII except digits, and some wide punctuation]+
  kTrailingSpace,    ///< DeepSeek-LLM: \s+$
  kCjk,              ///< DeepSeek-LLM/Coder: [一-龥ࠀ-一가-퟿]+
  kSpaceLetters,     ///< DeepSeek-Coder: \s?\p{L}+
  kSpacePunct,       ///< DeepSeek-Coder: \s?\p{P}+
  kNumbers,          ///< \p{N}+
  kNumber,           ///< \p{N}, also Digits with individual_digits
  kNumbers3,         ///< DeepSeek-V3: \p{N}{1,3}
  kDeepSeekV3Cjk,    ///< DeepSeek-V3: [一-龥぀-ゟ゠-ヿ]+
  kDeepSeekV3,       ///< DeepSeek-V3's main pattern
};

/// The pattern of that regular expression text, by exact comparison (CR and LF may be written raw
/// or escaped).
[[nodiscard]] std::optional<SplitPattern> split_pattern_by_regex(std::string_view regex);

/// A match [begin, end) of a pattern.
struct PatternMatch {
  size_t begin;
  size_t end;
};

/// The first match of `pattern` at or after `pos`, as a regular expression search would find it in
/// `text`; {size, size} when there is none. Scanning a text from match to match takes time linear
/// in its length.
[[nodiscard]] PatternMatch find_match(SplitPattern pattern, std::string_view text, size_t pos);

/// Calls `piece(text, state)` for the pieces of `text` after all `steps`, in order: every step cuts
/// each piece of the step before into its matches and what lies between them.
template <class Piece>
void split_text(const SplitPattern* steps, size_t step_count, std::string_view text,
                Piece&& piece) {
  if (text.empty()) return;
  if (step_count == 0) {
    piece(text);
    return;
  }
  for (size_t pos = 0; pos < text.size();) {
    const PatternMatch match = find_match(*steps, text, pos);
    if (match.begin > pos)
      split_text(steps + 1, step_count - 1, text.substr(pos, match.begin - pos), piece);
    if (match.end > match.begin) {
      split_text(steps + 1, step_count - 1, text.substr(match.begin, match.end - match.begin),
                 piece);
    }
    pos = match.end;
  }
}

}  // namespace r1::text
