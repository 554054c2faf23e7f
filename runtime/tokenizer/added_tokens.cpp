#include "runtime/tokenizer/added_tokens.h"

#include <cstring>

#include "runtime/core/error.h"
#include "runtime/tokenizer/unicode.h"

namespace r1::text {
namespace {

// The character that ends at `pos` > 0.
Char char_before(std::string_view text, size_t pos) {
  for (size_t back = 1; back <= 4 && back <= pos; ++back) {
    const Char c = decode_char(text.data() + pos - back, text.data() + pos);
    if (c.bytes == back && c.code_point != kInvalidChar) return c;
  }
  return {kInvalidChar, 1};
}

}  // namespace

void TokenMatcher::add(std::string_view pattern, const AddedToken& token) {
  R1_CHECK(!pattern.empty(), "token {} has no content", token.id);
  uint32_t node = 0;
  for (size_t i = 0; i < pattern.size(); ++i) {
    uint32_t next =
        i == 0 ? root_[static_cast<unsigned char>(pattern[0])] : child(node, pattern[i]);
    if (next == 0) {
      next = static_cast<uint32_t>(nodes_.size());
      nodes_.push_back({0, nodes_[node].first_child, -1, pattern[i]});
      nodes_[node].first_child = next;
      if (i == 0) root_[static_cast<unsigned char>(pattern[0])] = next;
    }
    node = next;
  }
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
  const int first = static_cast<unsigned char>(pattern[0]);
  only_first_byte_ = only_first_byte_ == -1 || only_first_byte_ == first ? first : -2;
}

uint32_t TokenMatcher::child(uint32_t node, char byte) const {
  uint32_t at = nodes_[node].first_child;
  while (at != 0 && nodes_[at].byte != byte) at = nodes_[at].sibling;
  return at;
}

bool TokenMatcher::next(std::string_view text, size_t pos, size_t end, size_t done,
                        Match& match) const {
  const CharTable& table = CharTable::get();
  for (; pos < end; ++pos) {
    if (only_first_byte_ >= 0) {
      const void* hit = std::memchr(text.data() + pos, only_first_byte_, end - pos);
      if (hit == nullptr) return false;
      pos = static_cast<size_t>(static_cast<const char*>(hit) - text.data());
    }
    int32_t token = -1;
    size_t stop = pos;
    uint32_t node = root_[static_cast<unsigned char>(text[pos])];
    for (size_t at = pos + 1; node != 0; ++at) {
      if (nodes_[node].token >= 0) {
        token = nodes_[node].token;
        stop = at;
      }
      if (at >= end) break;
      node = child(node, text[at]);
    }
    if (token < 0) continue;

    const AddedToken& added = tokens_[static_cast<size_t>(token)];
    match = {true, added.id, pos, stop, stop};
    if (added.single_word) {
      const bool word_before = pos > 0 && (table[char_before(text, pos).code_point] & kWord) != 0;
      const bool word_after =
          stop < text.size() &&
          (table[decode_char(text.data() + stop, text.data() + text.size()).code_point] & kWord) !=
              0;
      if (word_before || word_after) {
        match.accepted = false;
        return true;
      }
    }
    if (added.lstrip) {
      while (match.begin > done) {
        const Char c = char_before(text, match.begin);
        if ((table[c.code_point] & kSpace) == 0) break;
        match.begin -= c.bytes;
      }
    }
    if (added.rstrip) {
      while (match.end < text.size()) {
        const Char c = decode_char(text.data() + match.end, text.data() + text.size());
        if ((table[c.code_point] & kSpace) == 0) break;
        match.end += c.bytes;
      }
    }
    return true;
  }
  return false;
}

}  // namespace r1::text
