// Finding added tokens in text.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace r1::text {

/// An entry of "added_tokens".
struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool single_word = false;
  bool lstrip = false;
  bool rstrip = false;
  bool normalized = true;
  bool special = false;
};

/// A stretch [begin, end) of a text.
struct Range {
  size_t begin;
  size_t end;
};

/// A set of added tokens that are searched for together: leftmost match, the longest there.
class TokenMatcher {
 public:
  /// Contents longer than this are refused by the loader: a search step costs at most this many
  /// byte comparisons.
  static constexpr size_t kMaxContentBytes = 512;

  /// Adds a token to be found as `pattern` (its content, normalized or not; not empty).
  void add(std::string_view pattern, const AddedToken& token);
  [[nodiscard]] bool empty() const { return tokens_.empty(); }

  /// Walks through `text`: calls gap(Range) for text between tokens and found(id) for tokens, in
  /// order, as Hugging Face does with single_word, lstrip and rstrip. Matches lie inside one of
  /// `allowed` (ascending, disjoint) each; white space that a token strips may lie outside.
  template <class Gap, class Found>
  void walk(std::string_view text, const std::vector<Range>& allowed, Gap&& gap,
            Found&& found) const {
    size_t done = 0;
    for (const Range& range : allowed) {
      // Tokens are looked for beside each other, whatever white space the one before has taken: one
      // that begins with such white space is found all the same.
      size_t pos = range.begin;
      Match match;
      while (pos < range.end && next(text, pos, range.end, done, match)) {
        pos = match.search_from;
        if (!match.accepted) continue;
        if (match.begin > done) gap(Range{done, match.begin});
        found(match.id);
        done = match.end;
      }
    }
    if (done < text.size()) gap(Range{done, text.size()});
  }

 private:
  struct Match {
    bool accepted;  // false: a token stands there that its own conditions rule out
    int32_t id;
    size_t begin;
    size_t end;
    size_t search_from;  // end of the token's own text
  };
  struct Node {
    uint32_t first_child = 0;  // 0: none
    uint32_t sibling = 0;
    int32_t token = -1;
    char byte = 0;
  };
  // The first token in [pos, end); white space before `done` is taken already.
  bool next(std::string_view text, size_t pos, size_t end, size_t done, Match& match) const;
  uint32_t child(uint32_t node, char byte) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_{Node{}};
  std::array<uint32_t, 256> root_{};  // child of the root by first byte
  int only_first_byte_ = -1;          // the one first byte of all tokens, -1 none, -2 several
};

}  // namespace r1::text
