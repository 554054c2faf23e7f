// Encoding and decoding of arbitrary bytes, with tokenizers of every family's shape, against the
// definition of byte-pair encoding.
//
// The first byte chooses the tokenizer and what is checked, the second where the text is cut into
// segments; the rest is the text.
#include <algorithm>
#include <array>
#include <memory>
#include <optional>

#include "runtime/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/small_bpe.h"

namespace {

using namespace r1;

struct Subject {
  fuzz::SmallBpe definition;
  text::Tokenizer plain;  // control tokens that take nothing along
  text::Tokenizer odd;    // and some that do
};

const std::vector<Subject>& subjects() {
  static const std::vector<Subject> all = [] {
    std::vector<Subject> out;
    const auto add = [&](const std::vector<std::string>& regexes, bool nfc, bool pairs) {
      fuzz::SmallBpe b = fuzz::small_bpe(regexes, nfc, pairs);
      auto plain = text::Tokenizer::from_json(b.json, "plain");
      auto odd = text::Tokenizer::from_json(fuzz::with_odd_tokens(b.json), "odd");
      out.push_back({std::move(b), std::move(plain), std::move(odd)});
    };
    add({fuzz::kQwenRegex}, true, true);
    add({fuzz::kQwenRegex}, false, false);
    add({fuzz::kLlamaRegex}, false, false);
    add({fuzz::kGpt2Regex}, false, false);
    add(fuzz::kDeepSeekV3Regexes, false, true);
    add(fuzz::kDeepSeekCoderRegexes, false, false);
    return out;
  }();
  return all;
}

// The lowest rank anywhere, leftmost, until there is none. Nothing for pieces that take too long.
std::optional<std::vector<int32_t>> by_definition(const fuzz::SmallBpe& bpe,
                                                  std::string_view text) {
  std::string buffer;
  const std::string_view normal = bpe.nfc ? text::normalize_nfc(text, buffer) : text;
  std::vector<int32_t> out;
  size_t longest = 0;
  text::split_text(bpe.splits.data(), bpe.splits.size(), normal, [&](std::string_view piece) {
    longest = std::max(longest, piece.size());
    if (longest > 64) return;
    std::vector<int32_t> ids;
    for (const char c : piece) ids.push_back(static_cast<unsigned char>(c));
    for (;;) {
      const std::pair<size_t, int32_t>* best = nullptr;
      size_t at = 0;
      for (size_t i = 0; i + 1 < ids.size(); ++i) {
        const auto found = bpe.merges.find({ids[i], ids[i + 1]});
        if (found == bpe.merges.end() || (best != nullptr && best->first <= found->second.first))
          continue;
        best = &found->second;
        at = i;
      }
      if (best == nullptr) break;
      ids[at] = best->second;
      ids.erase(ids.begin() + static_cast<ptrdiff_t>(at) + 1);
    }
    out.insert(out.end(), ids.begin(), ids.end());
  });
  if (longest > 64) return std::nullopt;
  return out;
}

void check_stream(const text::Tokenizer& t, const std::vector<int32_t>& ids, bool skip_special) {
  text::StreamDecoder stream(t, skip_special);
  std::string streamed;
  for (const int32_t id : ids) {
    const std::string piece = stream.push(id);
    FUZZ_REQUIRE(piece.size() < 4 || text::replace_invalid_utf8(piece) == piece);
    streamed += piece;
  }
  streamed += stream.finish();
  FUZZ_REQUIRE(streamed == text::replace_invalid_utf8(t.decode(ids, skip_special)));
}

// Plain text: the definition, no control token, and the text comes back; the same in segments.
void check_plain(const Subject& s, std::string_view text, size_t cut) {
  std::string buffer;
  const std::vector<int32_t> ids = s.plain.encode(text);
  const auto expected = by_definition(s.definition, text);
  FUZZ_REQUIRE(!expected || ids == *expected);
  for (const int32_t id : ids) FUZZ_REQUIRE(!s.plain.is_control(id));
  FUZZ_REQUIRE(s.plain.decode(ids) ==
               (s.definition.nfc ? text::normalize_nfc(text, buffer) : text));
  const std::array<text::Segment, 2> segments = {
      {{text.substr(0, cut), false}, {text.substr(cut), false}}};
  FUZZ_REQUIRE(s.plain.encode_segments(segments) == ids);
}

// With control tokens nothing is lost, and what streams out is whole characters.
void check_parsed(const Subject& s, std::string_view text) {
  const auto ids = s.plain.encode(text, {.parse_special = true});
  FUZZ_REQUIRE(s.definition.nfc || s.plain.decode(ids) == text);
  check_stream(s.plain, ids, ids.size() % 2 == 0);
}

// Control tokens that take white space along or stand as words: nothing else may be lost.
void check_odd(const Subject& s, std::string_view text, size_t cut) {
  const std::array<text::Segment, 2> segments = {
      {{text.substr(0, cut), true}, {text.substr(cut), false}}};
  for (const int32_t id : s.odd.encode_segments(segments))
    FUZZ_REQUIRE(id >= 0 && id < s.odd.vocab_size());
  if (s.definition.nfc) return;
  const auto black = [](std::string_view t) {
    std::string out;
    for (const char c : t)
      if (static_cast<unsigned char>(c) > ' ' && static_cast<unsigned char>(c) < 0x80) out += c;
    return out;
  };
  const auto ids = s.odd.encode(text, {.add_special = true, .parse_special = true});
  FUZZ_REQUIRE(black(s.odd.decode(ids)) == black(text));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  if (size < 2) return 0;
  const Subject& s = subjects()[bytes[0] % subjects().size()];
  const std::string_view text(reinterpret_cast<const char*>(bytes) + 2, size - 2);
  const size_t cut = bytes[1] % (text.size() + 1);
  switch (bytes[0] / subjects().size() % 3) {
    case 0:
      check_plain(s, text, cut);
      break;
    case 1:
      check_parsed(s, text);
      break;
    default:
      check_odd(s, text, cut);
  }
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  std::vector<std::string> out;
  for (char subject = 0; subject < 18; ++subject) {
    const std::string head = {subject, 7};
    for (const char* text : {"The theater's 123 tickets aren't there.\n\n  x",
                             "<think>1</think> <\xef\xbd\x9cUser\xef\xbd\x9c> <L>  <R>  <LR> <W>w",
                             "cafe\xcc\x81 \xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8 a\xcc\xa7\xcc\x81",
                             "\xe4\xbd\xa0\xe5\xa5\xbd\xf0\x9f\x98\x80\xc2\xa0\xe3\x80\x80\n",
                             "\xff\xc3\xed\xa0\x80\xf4\x90\x80\x80 \xe4\xbd",
                             "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                             "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                             "\t\t if(x){return 'LL;}\r\n  \r\n  1234567 \xd9\xa1\xd9\xa2",
                             "<|a|>bb<|a|> <\xc3\xa9> <e\xcc\x81>"})
      out.push_back(head + text);
  }
  return out;
}
