#include "runtime/tokenizer/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <system_error>

#include "runtime/core/error.h"
#include "runtime/tokenizer/bpe.h"
#include "runtime/tokenizer/hash.h"
#include "runtime/tokenizer/tokenizer_file.h"
#include "runtime/tokenizer/unicode.h"

namespace r1::text {
namespace {

// The byte-level alphabet: printable Latin-1 characters stand for themselves, the other bytes for
// U+0100 and up, in order (GPT-2's bytes_to_unicode). kNoByte for characters outside the alphabet.
constexpr uint16_t kNoByte = 0xFFFF;
constexpr size_t kAlphabetEnd = 256 + 68;

constexpr std::array<uint16_t, kAlphabetEnd> make_char_bytes() {
  std::array<uint16_t, kAlphabetEnd> bytes{};
  for (auto& b : bytes) b = kNoByte;
  uint16_t next = 256;
  for (uint16_t b = 0; b < 256; ++b) {
    const bool itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    bytes[itself ? b : next++] = b;
  }
  return bytes;
}
constexpr auto kCharBytes = make_char_bytes();

// Bytes a spelling stands for; false when a character is outside the alphabet.
bool spelled_bytes(std::string_view spelling, std::string& bytes) {
  bytes.clear();
  const char* const end = spelling.data() + spelling.size();
  for (const char* p = spelling.data(); p < end;) {
    const Char c = decode_char(p, end);
    if (c.code_point >= kAlphabetEnd || kCharBytes[c.code_point] == kNoByte) return false;
    bytes.push_back(static_cast<char>(kCharBytes[c.code_point]));
    p += c.bytes;
  }
  return true;
}

bool is_control_token(const AddedToken& token) {
  const auto& c = token.content;
  return token.special || !token.normalized ||
         (c.size() >= 2 && c.front() == '<' && c.back() == '>');
}

std::string read_file(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) throw DataError("{}: cannot read the tokenizer: {}", path.string(), error.message());
  if (size > kMaxTokenizerBytes) {
    throw DataError("{}: {} bytes; a tokenizer.json of more than {} is refused", path.string(),
                    size, kMaxTokenizerBytes);
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(size, '\0');
  in.read(text.data(), static_cast<std::streamsize>(size));
  if (!in || static_cast<uintmax_t>(in.gcount()) != size) {
    throw DataError("{}: cannot read the tokenizer: only {} of {} bytes came", path.string(),
                    in.gcount(), size);
  }
  return text;
}

}  // namespace

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

  void build(const TokenizerFile& file);
  void encode_words(std::string_view text, Work& work) const;
  void encode_gap(std::string_view text, const TokenMatcher& tokens, Work& work) const;
  void encode(std::string_view text, const std::vector<Range>& markup, Work& work) const;
};

void Tokenizer::Impl::build(const TokenizerFile& file) {
  const std::string_view spellings = file.spellings;
  const auto spelling = [&](const TokenizerFile::Token& t) {
    return spellings.substr(t.offset, t.length);
  };
  int32_t highest = -1;
  for (const auto& t : file.tokens) highest = std::max(highest, t.id);
  for (const auto& t : file.added_tokens) highest = std::max(highest, t.id);
  if (highest < 0) throw DataError("{}: model.vocab is empty", source);
  const auto vocab_size = static_cast<size_t>(highest) + 1;

  // The vocabulary: bytes of every token, by id.
  constexpr int32_t kUnused = -1;
  constexpr int32_t kFromAdded = -2;
  std::vector<int32_t> token_of_id(vocab_size, kUnused);  // index into file.tokens
  ByteStringMap reachable;
  reachable.reserve(file.tokens.size() + 1, file.content_hash);
  names.reserve(file.tokens.size() + file.added_tokens.size() + 1, file.content_hash);
  std::array<uint32_t, 256> byte_ids;
  byte_ids.fill(BpeModel::kNone);
  std::string scratch;
  size_t max_token_bytes = 0;
  for (size_t i = 0; i < file.tokens.size(); ++i) {
    const auto& t = file.tokens[i];
    int32_t& slot = token_of_id[static_cast<size_t>(t.id)];
    if (slot != kUnused) {
      throw DataError("{}: model.vocab: id {} belongs to both `{}` and `{}`", source, t.id,
                      printable(spelling(file.tokens[static_cast<size_t>(slot)])),
                      printable(spelling(t)));
    }
    slot = static_cast<int32_t>(i);
    bool is_new = false;
    if (spelled_bytes(spelling(t), scratch)) {
      is_new = reachable.insert(scratch, static_cast<uint32_t>(t.id));
      max_token_bytes = std::max(max_token_bytes, scratch.size());
      if (scratch.size() == 1)
        byte_ids[static_cast<unsigned char>(scratch[0])] = static_cast<uint32_t>(t.id);
    } else {
      is_new = names.insert(spelling(t), static_cast<uint32_t>(t.id));
    }
    if (!is_new)
      throw DataError("{}: model.vocab: token `{}` is given twice", source, printable(spelling(t)));
  }

  // Merges, as ids.
  std::vector<Merge> merges;
  merges.reserve(file.merges.size() / 2);
  std::string merged;
  for (size_t i = 0; i + 1 < file.merges.size(); i += 2) {
    const auto part = [&](size_t k) {
      return std::string_view(file.merge_spellings)
          .substr(file.merges[k].offset, file.merges[k].length);
    };
    const auto find = [&](const std::string* bytes_of_token) {
      const uint32_t id =
          bytes_of_token != nullptr ? reachable.find(*bytes_of_token) : BpeModel::kNone;
      if (id == BpeModel::kNone) {
        throw DataError("{}: model.merges[{}]: `{} {}` needs a token that is not in the vocabulary",
                        source, i / 2, printable(part(i)), printable(part(i + 1)));
      }
      return id;
    };
    Merge m{};
    m.left = find(spelled_bytes(part(i), scratch) ? &scratch : nullptr);
    merged = scratch;
    m.right = find(spelled_bytes(part(i + 1), scratch) ? &scratch : nullptr);
    merged += scratch;
    m.result = find(&merged);
    merges.push_back(m);
  }

  // Added tokens take their place among the ids.
  flags.assign(vocab_size, 0);
  std::vector<const AddedToken*> added_of_id(vocab_size, nullptr);
  for (const auto& t : file.added_tokens) {
    if (t.content.empty()) continue;  // matches nothing, as in Hugging Face
    const auto id = static_cast<size_t>(t.id);
    const auto refuse = [&](std::string_view other) {
      throw DataError("{}: added_tokens: id {} belongs to both `{}` and `{}`", source, t.id,
                      printable(other), printable(t.content));
    };
    if (added_of_id[id] != nullptr) refuse(added_of_id[id]->content);
    if (token_of_id[id] >= 0) {
      const auto vocab_spelling = spelling(file.tokens[static_cast<size_t>(token_of_id[id])]);
      if (vocab_spelling != t.content) refuse(vocab_spelling);
    } else {
      const uint32_t in_vocab =
          spelled_bytes(t.content, scratch) ? reachable.find(scratch) : BpeModel::kNone;
      if (in_vocab != BpeModel::kNone) {
        throw DataError("{}: added_tokens: `{}` has id {}, and {} in the vocabulary", source,
                        printable(t.content), t.id, in_vocab);
      }
      // A byte that the vocabulary leaves out (none of valid text) may stand among the added
      // tokens.
      if (spelled_bytes(t.content, scratch) && scratch.size() == 1 && !t.special) {
        byte_ids[static_cast<unsigned char>(scratch[0])] = static_cast<uint32_t>(t.id);
      }
    }
    const bool is_new = names.insert(t.content, static_cast<uint32_t>(t.id));
    if (!is_new && names.find(t.content) != static_cast<uint32_t>(t.id)) {
      throw DataError("{}: added_tokens: `{}` has the ids {} and {}", source, printable(t.content),
                      names.find(t.content), t.id);
    }
    added_of_id[id] = &t;
    const bool control = is_control_token(t);
    flags[id] = static_cast<uint8_t>((t.special ? kSpecial : 0) | (control ? kControl : 0));
    if (!t.normalized) {
      control_raw.add(t.content, t);
    } else {
      std::string buffer;
      const std::string_view pattern =
          file.nfc ? normalize_nfc(t.content, buffer) : std::string_view(t.content);
      (control ? control_normalized : plain).add(pattern, t);
      all_normalized.add(pattern, t);
    }
    if (token_of_id[id] == kUnused) token_of_id[id] = kFromAdded;
  }
  if (file.has_unk_token) {
    for (int b = 0; b < 0xF5; ++b) {
      if (b == 0xC0 || b == 0xC1 || byte_ids[static_cast<size_t>(b)] != BpeModel::kNone) continue;
      throw DataError(
          "{}: model.unk_token with a vocabulary that lacks byte 0x{:02x} is not supported", source,
          b);
    }
  }

  // What ids decode to, and the fingerprint of all of it.
  uint64_t h = mix(kHashMix, vocab_size);
  const auto hash_in = [&](std::string_view text) { h = hash_bytes(text, h); };
  const auto hash_number = [&](uint64_t v) { h = mix(h ^ v, kHashMix2); };
  offsets.reserve(vocab_size + 1);
  for (size_t id = 0; id < vocab_size; ++id) {
    R1_CHECK(bytes.size() < UINT32_MAX, "vocabulary of {} bytes", bytes.size());
    offsets.push_back(static_cast<uint32_t>(bytes.size()));
    const int32_t token = token_of_id[id];
    if (token == kUnused) continue;
    std::string_view text = token == kFromAdded
                                ? std::string_view(added_of_id[id]->content)
                                : spelling(file.tokens[static_cast<size_t>(token)]);
    if (file.nfc && added_of_id[id] != nullptr && added_of_id[id]->normalized)
      text = normalize_nfc(text, merged);
    if ((flags[id] & kSpecial) != 0 && text == added_of_id[id]->content) flags[id] |= kSkipped;
    // As the ByteLevel decoder does: a token with a character outside the alphabet stands for its
    // own text.
    bytes += spelled_bytes(text, scratch) ? std::string_view(scratch) : text;
    hash_number(id);
    hash_in(text);
  }
  offsets.push_back(static_cast<uint32_t>(bytes.size()));
  for (const Merge& m : merges) hash_number(static_cast<uint64_t>(m.left) << 32 | m.right);
  for (const AddedToken* t : added_of_id) {
    if (t == nullptr) continue;
    hash_number(static_cast<uint64_t>(t->id) << 8 | static_cast<uint64_t>(t->single_word) << 4 |
                static_cast<uint64_t>(t->lstrip) << 3 | static_cast<uint64_t>(t->rstrip) << 2 |
                static_cast<uint64_t>(t->normalized) << 1 | static_cast<uint64_t>(t->special));
  }
  for (const SplitPattern p : file.splits) hash_number(static_cast<uint64_t>(p) + 1);
  for (const auto* ids : {&file.prefix_ids, &file.suffix_ids}) {
    hash_number(ids->size());
    for (const int32_t id : *ids) {
      if (id > highest)
        throw DataError("{}: post_processor: id {} is not in the vocabulary", source, id);
      hash_number(static_cast<uint64_t>(id));
    }
  }
  hash_number(static_cast<uint64_t>(file.nfc) << 1 | static_cast<uint64_t>(file.ignore_merges));
  fingerprint = h;

  nfc = file.nfc;
  splits = file.splits;
  prefix_ids = file.prefix_ids;
  suffix_ids = file.suffix_ids;
  bpe.build(std::move(reachable), std::move(merges), byte_ids, static_cast<uint32_t>(vocab_size),
            max_token_bytes, file.ignore_merges, file.content_hash);
}

void Tokenizer::Impl::encode_words(std::string_view text, Work& work) const {
  const auto piece = [&](std::string_view p) { bpe.encode_piece(p, work.bpe, work.ids); };
  split_text(splits.data(), splits.size(), text, piece);
}

void Tokenizer::Impl::encode_gap(std::string_view text, const TokenMatcher& tokens,
                                 Work& work) const {
  const std::string_view normal = nfc ? normalize_nfc(text, work.normalized) : text;
  if (tokens.empty()) return encode_words(normal, work);
  tokens.walk(
      normal, {{0, normal.size()}},
      [&](Range r) { encode_words(normal.substr(r.begin, r.end - r.begin), work); },
      [&](int32_t id) { work.ids.push_back(id); });
}

void Tokenizer::Impl::encode(std::string_view text, const std::vector<Range>& markup,
                             Work& work) const {
  work.ids.reserve(work.ids.size() + text.size() / 3 + 8);
  if (markup.empty()) return encode_gap(text, plain, work);
  const auto found = [&](int32_t id) { work.ids.push_back(id); };
  std::vector<Range> inner;
  const auto outer_gap = [&](Range gap) {
    const std::string_view part = text.substr(gap.begin, gap.end - gap.begin);
    if (control_normalized.empty()) return encode_gap(part, plain, work);
    inner.clear();
    auto at = std::lower_bound(markup.begin(), markup.end(), gap.begin,
                               [](const Range& r, size_t begin) { return r.end <= begin; });
    // Nobody's text in it: control tokens are looked for in the normalized text, among the words.
    if (at != markup.end() && at->begin <= gap.begin && gap.end <= at->end)
      return encode_gap(part, all_normalized, work);
    for (; at != markup.end() && at->begin < gap.end; ++at) {
      inner.push_back(
          {std::max(at->begin, gap.begin) - gap.begin, std::min(at->end, gap.end) - gap.begin});
    }
    control_normalized.walk(
        part, inner,
        [&](Range r) { encode_gap(part.substr(r.begin, r.end - r.begin), plain, work); },
        found);
  };
  control_raw.walk(text, markup, outer_gap, found);
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const std::filesystem::path& dir_or_file) {
  std::error_code error;
  const bool is_dir = std::filesystem::is_directory(dir_or_file, error);
  const auto path = is_dir ? dir_or_file / "tokenizer.json" : dir_or_file;
  return from_json(read_file(path), path.string());
}

Tokenizer Tokenizer::from_json(std::string_view json, std::string source_name) {
  auto impl = std::make_unique<Impl>();
  impl->source = std::move(source_name);
  impl->build(parse_tokenizer_json(json, impl->source));
  return Tokenizer(std::move(impl));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  Impl::Work work;
  if (options.add_special) work.ids = impl_->prefix_ids;
  std::vector<Range> markup;
  if (options.parse_special && !text.empty()) markup.push_back({0, text.size()});
  impl_->encode(text, markup, work);
  if (options.add_special)
    work.ids.insert(work.ids.end(), impl_->suffix_ids.begin(), impl_->suffix_ids.end());
  return std::move(work.ids);
}

std::vector<int32_t> Tokenizer::encode_segments(std::span<const Segment> segments) const {
  std::string text;
  std::vector<Range> markup;
  for (const Segment& s : segments) {
    if (s.markup && !s.text.empty()) markup.push_back({text.size(), text.size() + s.text.size()});
    text += s.text;
  }
  Impl::Work work;
  impl_->encode(text, markup, work);
  return std::move(work.ids);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string text;
  text.reserve(ids.size() * 4);
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size()) continue;
    const auto at = static_cast<size_t>(id);
    if (skip_special && (impl_->flags[at] & Impl::kSkipped) != 0) continue;
    text.append(impl_->bytes, impl_->offsets[at], impl_->offsets[at + 1] - impl_->offsets[at]);
  }
  return text;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->flags.size()); }

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const {
  const uint32_t named = impl_->names.find(token);
  if (named != ByteStringMap::kNone) return static_cast<int32_t>(named);
  std::string bytes;
  if (!spelled_bytes(token, bytes)) return std::nullopt;
  return impl_->bpe.find_token(bytes);
}

std::string Tokenizer::token_bytes(int32_t id) const { return decode({&id, 1}); }

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() &&
         (impl_->flags[static_cast<size_t>(id)] & Impl::kSpecial) != 0;
}

bool Tokenizer::is_control(int32_t id) const {
  return id >= 0 && id < vocab_size() &&
         (impl_->flags[static_cast<size_t>(id)] & Impl::kControl) != 0;
}

uint64_t Tokenizer::fingerprint() const { return impl_->fingerprint; }

const std::string& Tokenizer::source_name() const { return impl_->source; }

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    bool complete = false;
    const size_t n = maximal_subpart(bytes, complete);
    if (complete) {
      out += bytes.substr(0, n);
    } else {
      out += "\xEF\xBF\xBD";
    }
    bytes.remove_prefix(std::max<size_t>(n, 1));
  }
  return out;
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {}

std::string StreamDecoder::push(int32_t id) {
  pending_ += tokenizer_->decode({&id, 1}, skip_special_);
  // Hold back what may still become a character: a suffix that is a proper start of one.
  size_t keep = 0;
  for (size_t n = std::min<size_t>(3, pending_.size()); n > 0; --n) {
    bool complete = false;
    const auto tail = std::string_view(pending_).substr(pending_.size() - n);
    if (maximal_subpart(tail, complete) == n && !complete) {
      keep = n;
      break;
    }
  }
  const std::string_view ready = std::string_view(pending_).substr(0, pending_.size() - keep);
  std::string out = replace_invalid_utf8(ready);
  pending_.erase(0, ready.size());
  return out;
}

std::string StreamDecoder::finish() {
  std::string out = replace_invalid_utf8(pending_);
  pending_.clear();
  return out;
}

}  // namespace r1::text
