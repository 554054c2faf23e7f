#include "runtime/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "runtime/core/error.h"

namespace r1::text {
namespace {

constexpr uint32_t kRuns[] = {
#include "runtime/tokenizer/unicode_table.inc"
};

// Characters that NFC concerns and that came with Unicode 10 to 15: Hugging Face's normalizer has
// the tables of Unicode 9, to which they are unassigned, and so it leaves them where they stand.
constexpr std::pair<uint32_t, uint32_t> kUnknownToReference[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},
    {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},
    {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x10D24, 0x10D27},
    {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85},
    {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0},
    {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42},
    {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1},
    {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF},
    {0x1E4EC, 0x1E4EF}};

bool unknown_to_reference(uint32_t code_point) {
  return std::any_of(std::begin(kUnknownToReference), std::end(kUnknownToReference),
                     [=](const auto& r) { return r.first <= code_point && code_point <= r.second; });
}

constexpr auto kCompose = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);

int combining_class(uint32_t code_point) {
  const int c = utf8proc_get_property(static_cast<utf8proc_int32_t>(code_point))->combining_class;
  return c != 0 && unknown_to_reference(code_point) ? 0 : c;
}

void decompose(uint32_t code_point, std::vector<utf8proc_int32_t>& out) {
  std::array<utf8proc_int32_t, 32> parts;
  const auto n = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code_point), parts.data(),
                                         parts.size(), UTF8PROC_DECOMPOSE, nullptr);
  R1_CHECK(n >= 0 && n <= static_cast<utf8proc_ssize_t>(parts.size()),
           "decomposition of U+{:04X}: {}", code_point, n);
  out.insert(out.end(), parts.begin(), parts.begin() + n);
}

// Whether NFC may change this code point itself: it has a combining class, or its decomposition
// does not compose back to it. `composes_last`: when it does compose back, the last code point of
// its decomposition (else 0).
bool changes_under_nfc(uint32_t code_point, std::vector<utf8proc_int32_t>& parts,
                       uint32_t& composes_last) {
  composes_last = 0;
  const auto* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(code_point));
  if (combining_class(code_point) != 0) return true;
  const bool canonical = property->decomp_seqindex != UINT16_MAX && property->decomp_type == 0;
  if (!canonical || unknown_to_reference(code_point))
    return false;  // Hangul syllables too: they are composed by rule, and stable
  parts.clear();
  decompose(code_point, parts);
  const auto last = static_cast<uint32_t>(parts.back());
  const auto n =
      utf8proc_normalize_utf32(parts.data(), static_cast<utf8proc_ssize_t>(parts.size()), kCompose);
  if (n != 1 || parts[0] != static_cast<utf8proc_int32_t>(code_point)) return true;
  composes_last = last;
  return false;
}

// Stable sort by combining class of each run of non-starters. A counting sort keeps a run of a
// million marks linear (sorting by exchange of neighbours would be quadratic).
void canonical_order(std::vector<utf8proc_int32_t>& chars) {
  std::vector<uint8_t> classes;
  std::vector<utf8proc_int32_t> sorted;
  for (size_t i = 0; i < chars.size();) {
    const auto ccc = [&](size_t at) { return combining_class(static_cast<uint32_t>(chars[at])); };
    if (ccc(i) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    classes.clear();
    for (int c; end < chars.size() && (c = ccc(end)) != 0; ++end) {
      classes.push_back(static_cast<uint8_t>(c));
    }
    if (!std::is_sorted(classes.begin(), classes.end())) {
      std::array<size_t, 257> start{};
      for (const uint8_t c : classes) ++start[static_cast<size_t>(c) + 1];
      for (size_t c = 1; c < start.size(); ++c) start[c] += start[c - 1];
      sorted.resize(classes.size());
      for (size_t k = 0; k < classes.size(); ++k) sorted[start[classes[k]]++] = chars[i + k];
      std::copy(sorted.begin(), sorted.end(), chars.begin() + static_cast<ptrdiff_t>(i));
    }
    i = end;
  }
}

}  // namespace

CharTable::CharTable() : flags_{} {
  const size_t n = std::size(kRuns);
  for (size_t i = 0; i < n; ++i) {
    const uint32_t first = kRuns[i] >> 8;
    const uint32_t last = i + 1 < n ? kRuns[i + 1] >> 8 : kCount;
    std::fill(flags_.begin() + first, flags_.begin() + last, static_cast<uint8_t>(kRuns[i] & 0xFF));
  }
  std::vector<utf8proc_int32_t> parts;
  for (uint32_t c = 0x80; c < kCount; ++c) {
    uint32_t composes_last = 0;
    if (changes_under_nfc(c, parts, composes_last)) flags_[c] |= kNfcActive;
    // What can be the second half of a composition joins the character before it.
    if (composes_last >= 0x80) flags_[composes_last] |= kNfcActive;
  }
  // Hangul vowels and final consonants compose by rule with the syllable before them.
  for (uint32_t c = 0x1161; c <= 0x1175; ++c) flags_[c] |= kNfcActive;
  for (uint32_t c = 0x11A8; c <= 0x11C2; ++c) flags_[c] |= kNfcActive;
}

const CharTable& CharTable::get() {
  static const CharTable table;
  return table;
}

size_t maximal_subpart(std::string_view bytes, bool& complete) {
  complete = false;
  if (bytes.empty()) return 0;
  const auto at = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned b0 = at(0);
  if (b0 < 0x80) {
    complete = true;
    return 1;
  }
  size_t need = 0;
  unsigned low = 0x80;
  unsigned high = 0xBF;
  if (b0 >= 0xC2 && b0 <= 0xDF) {
    need = 2;
  } else if (b0 >= 0xE0 && b0 <= 0xEF) {
    need = 3;
    if (b0 == 0xE0) low = 0xA0;
    if (b0 == 0xED) high = 0x9F;
  } else if (b0 >= 0xF0 && b0 <= 0xF4) {
    need = 4;
    if (b0 == 0xF0) low = 0x90;
    if (b0 == 0xF4) high = 0x8F;
  } else {
    return 0;
  }
  size_t n = 1;
  while (n < need && n < bytes.size() && at(n) >= low && at(n) <= high) {
    ++n;
    low = 0x80;
    high = 0xBF;
  }
  complete = n == need;
  return n;
}

void append_utf8(std::string& out, uint32_t c) {
  const auto push = [&](uint32_t b) { out.push_back(static_cast<char>(b)); };
  if (c < 0x80) {
    push(c);
  } else if (c < 0x800) {
    push(0xC0 | c >> 6);
    push(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    push(0xE0 | c >> 12);
    push(0x80 | (c >> 6 & 0x3F));
    push(0x80 | (c & 0x3F));
  } else {
    push(0xF0 | c >> 18);
    push(0x80 | (c >> 12 & 0x3F));
    push(0x80 | (c >> 6 & 0x3F));
    push(0x80 | (c & 0x3F));
  }
}

std::string_view normalize_nfc(std::string_view text, std::string& buffer) {
  const CharTable& table = CharTable::get();
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  const char* copied = begin;    // text before this is in `buffer`, once anything had to change
  const char* boundary = begin;  // the last inactive character seen: composition may start there
  bool changed = false;
  std::vector<utf8proc_int32_t> chars;
  for (const char* p = begin; p < end;) {
    if (static_cast<unsigned char>(*p) < 0x80) {
      boundary = p++;
      continue;
    }
    Char c = decode_char(p, end);
    if ((table[c.code_point] & kNfcActive) == 0) {
      // An ill-formed byte is a boundary after which nothing joins.
      boundary = c.code_point == kInvalidChar ? p + 1 : p;
      p += c.bytes;
      continue;
    }
    // [boundary, p) is at most one inactive character; the stretch reaches to the next inactive
    // one.
    chars.clear();
    for (const char* q = boundary; q < p;) {
      const Char d = decode_char(q, end);
      decompose(d.code_point, chars);
      q += d.bytes;
    }
    const char* const stretch = boundary;
    while (p < end) {
      c = decode_char(p, end);
      if ((table[c.code_point] & kNfcActive) == 0) break;
      decompose(c.code_point, chars);
      p += c.bytes;
    }
    canonical_order(chars);
    const auto n = utf8proc_normalize_utf32(chars.data(),
                                            static_cast<utf8proc_ssize_t>(chars.size()), kCompose);
    R1_CHECK(n >= 0, "normalization of {} characters: {}", chars.size(), n);
    if (!changed) {
      buffer.clear();
      buffer.reserve(text.size());
      changed = true;
    }
    buffer.append(copied, stretch);
    for (utf8proc_ssize_t i = 0; i < n; ++i)
      append_utf8(buffer, static_cast<uint32_t>(chars[static_cast<size_t>(i)]));
    copied = p;
    boundary = p;
  }
  if (!changed) return text;
  buffer.append(copied, end);
  return buffer;
}

}  // namespace r1::text
