// From a checked tokenizer.json to the tables of a Tokenizer.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "runtime/core/error.h"
#include "runtime/tokenizer/byte_alphabet.h"
#include "runtime/tokenizer/hash.h"
#include "runtime/tokenizer/tokenizer_impl.h"
#include "runtime/tokenizer/unicode.h"

namespace r1::text {
namespace {

// Which token an id stands for: an index into TokenizerFile::tokens, or one of these.
constexpr int32_t kUnused = -1;
constexpr int32_t kFromAdded = -2;

bool is_control_token(const AddedToken& token) {
  const auto& c = token.content;
  return token.special || !token.normalized ||
         (c.size() >= 2 && c.front() == '<' && c.back() == '>');
}

/// The fingerprint: numbers and texts, mixed in the order in which they come.
class Fingerprint {
 public:
  explicit Fingerprint(size_t vocab_size) : h_(mix(kHashMix, vocab_size)) {}
  void number(uint64_t v) { h_ = mix(h_ ^ v, kHashMix2); }
  void text(std::string_view text) { h_ = hash_bytes(text, h_); }
  [[nodiscard]] uint64_t value() const { return h_; }

 private:
  uint64_t h_;
};

/// The properties that decide where an added token is found, as one number.
uint64_t packed(const AddedToken& t) {
  return static_cast<uint64_t>(t.id) << 8 | static_cast<uint64_t>(t.single_word) << 4 |
         static_cast<uint64_t>(t.lstrip) << 3 | static_cast<uint64_t>(t.rstrip) << 2 |
         static_cast<uint64_t>(t.normalized) << 1 | static_cast<uint64_t>(t.special);
}

}  // namespace

class Tokenizer::Impl::Builder {
 public:
  Builder(Impl& out, const TokenizerFile& file);
  void run();

 private:
  void add_vocabulary();
  void add_merges();
  [[nodiscard]] Merge merge_at(size_t i);
  void add_added_tokens();
  void check_added_token(const AddedToken& t);
  void file_added_token(const AddedToken& t);
  void check_unknown_token() const;
  void write_decoding();
  [[nodiscard]] std::string_view decoded_text(size_t id);
  void write_fingerprint();

  [[nodiscard]] std::string_view spelling(const TokenizerFile::Token& t) const {
    return std::string_view(file_.spellings).substr(t.offset, t.length);
  }
  [[nodiscard]] std::string_view vocab_spelling(size_t id) const {
    return spelling(file_.tokens[static_cast<size_t>(token_of_id_[id])]);
  }
  [[nodiscard]] std::string_view merge_part(size_t k) const {
    const TokenizerFile::Token& part = file_.merges[k];
    return std::string_view(file_.merge_spellings).substr(part.offset, part.length);
  }
  void set_byte_id(std::string_view spelling, int32_t id) {
    byte_ids_[static_cast<unsigned char>(spelling[0])] = static_cast<uint32_t>(id);
  }

  Impl& out_;
  const TokenizerFile& file_;
  size_t vocab_size_ = 0;
  std::vector<int32_t> token_of_id_;  // [vocab_size] index into file_.tokens, or kUnused…
  std::vector<const AddedToken*> added_of_id_;  // [vocab_size]
  ByteStringMap reachable_;                     // bytes -> id, of the tokens that BPE can make
  std::array<uint32_t, 256> byte_ids_;          // of each single byte
  size_t max_token_bytes_ = 0;
  std::vector<Merge> merges_;
  Fingerprint fingerprint_{0};
  std::string scratch_;     // bytes of the spelling in hand
  std::string normalized_;  // the text in hand, normalized
};

Tokenizer::Impl::Builder::Builder(Impl& out, const TokenizerFile& file) : out_(out), file_(file) {
  int32_t highest = -1;
  for (const auto& t : file.tokens) highest = std::max(highest, t.id);
  for (const auto& t : file.added_tokens) highest = std::max(highest, t.id);
  if (highest < 0) throw DataError("{}: model.vocab is empty", out.source);
  vocab_size_ = static_cast<size_t>(highest) + 1;
  token_of_id_.assign(vocab_size_, kUnused);
  added_of_id_.assign(vocab_size_, nullptr);
  byte_ids_.fill(BpeModel::kNone);
  fingerprint_ = Fingerprint(vocab_size_);
}

void Tokenizer::Impl::Builder::run() {
  add_vocabulary();
  add_merges();
  add_added_tokens();
  check_unknown_token();
  write_decoding();
  write_fingerprint();
  out_.nfc = file_.nfc;
  out_.splits = file_.splits;
  out_.prefix_ids = file_.prefix_ids;
  out_.suffix_ids = file_.suffix_ids;
  out_.bpe.build(std::move(reachable_), std::move(merges_), byte_ids_,
                 static_cast<uint32_t>(vocab_size_), max_token_bytes_, file_.ignore_merges,
                 file_.content_hash);
}

// Bytes of every token, by id.
void Tokenizer::Impl::Builder::add_vocabulary() {
  reachable_.reserve(file_.tokens.size() + 1, file_.content_hash);
  out_.names.reserve(file_.tokens.size() + file_.added_tokens.size() + 1, file_.content_hash);
  for (size_t i = 0; i < file_.tokens.size(); ++i) {
    const auto& t = file_.tokens[i];
    const auto id = static_cast<size_t>(t.id);
    if (token_of_id_[id] != kUnused) {
      throw DataError("{}: model.vocab: id {} belongs to both `{}` and `{}`", out_.source, t.id,
                      printable(vocab_spelling(id)), printable(spelling(t)));
    }
    token_of_id_[id] = static_cast<int32_t>(i);
    bool is_new = false;
    if (spelled_bytes(spelling(t), scratch_)) {
      is_new = reachable_.insert(scratch_, static_cast<uint32_t>(t.id));
      max_token_bytes_ = std::max(max_token_bytes_, scratch_.size());
      if (scratch_.size() == 1) set_byte_id(scratch_, t.id);
    } else {
      is_new = out_.names.insert(spelling(t), static_cast<uint32_t>(t.id));
    }
    if (!is_new) {
      throw DataError("{}: model.vocab: token `{}` is given twice", out_.source,
                      printable(spelling(t)));
    }
  }
}

void Tokenizer::Impl::Builder::add_merges() {
  merges_.reserve(file_.merges.size() / 2);
  for (size_t i = 0; i + 1 < file_.merges.size(); i += 2) merges_.push_back(merge_at(i));
}

// The merge of parts i and i + 1, as ids.
Merge Tokenizer::Impl::Builder::merge_at(size_t i) {
  const auto find = [&](const std::string* spelling) {
    const uint32_t id = spelling != nullptr ? reachable_.find(*spelling) : BpeModel::kNone;
    if (id == BpeModel::kNone) {
      throw DataError("{}: model.merges[{}]: `{} {}` needs a token that is not in the vocabulary",
                      out_.source, i / 2, printable(merge_part(i)), printable(merge_part(i + 1)));
    }
    return id;
  };
  Merge m{};
  m.left = find(spelled_bytes(merge_part(i), scratch_) ? &scratch_ : nullptr);
  std::string merged = scratch_;
  m.right = find(spelled_bytes(merge_part(i + 1), scratch_) ? &scratch_ : nullptr);
  merged += scratch_;
  m.result = find(&merged);
  return m;
}

// Added tokens take their place among the ids.
void Tokenizer::Impl::Builder::add_added_tokens() {
  out_.flags.assign(vocab_size_, 0);
  for (const auto& t : file_.added_tokens) {
    if (t.content.empty()) continue;  // matches nothing, as in Hugging Face
    check_added_token(t);
    const auto id = static_cast<size_t>(t.id);
    added_of_id_[id] = &t;
    if (token_of_id_[id] == kUnused) token_of_id_[id] = kFromAdded;
    file_added_token(t);
  }
}

// One text an id and one id a text, counting the vocabulary.
void Tokenizer::Impl::Builder::check_added_token(const AddedToken& t) {
  const auto id = static_cast<size_t>(t.id);
  const auto refuse = [&](std::string_view other) {
    throw DataError("{}: added_tokens: id {} belongs to both `{}` and `{}`", out_.source, t.id,
                    printable(other), printable(t.content));
  };
  if (added_of_id_[id] != nullptr) refuse(added_of_id_[id]->content);
  if (token_of_id_[id] >= 0) {
    if (vocab_spelling(id) != t.content) refuse(vocab_spelling(id));
  } else if (spelled_bytes(t.content, scratch_)) {
    if (const uint32_t in_vocab = reachable_.find(scratch_); in_vocab != BpeModel::kNone) {
      throw DataError("{}: added_tokens: `{}` has id {}, and {} in the vocabulary", out_.source,
                      printable(t.content), t.id, in_vocab);
    }
    // A byte that the vocabulary leaves out (none of valid text) may stand among the added tokens.
    if (scratch_.size() == 1 && !t.special) set_byte_id(scratch_, t.id);
  }
  const bool is_new = out_.names.insert(t.content, static_cast<uint32_t>(t.id));
  if (!is_new && out_.names.find(t.content) != static_cast<uint32_t>(t.id)) {
    throw DataError("{}: added_tokens: `{}` has the ids {} and {}", out_.source,
                    printable(t.content), out_.names.find(t.content), t.id);
  }
}

// Which matcher finds the token, and its flags.
void Tokenizer::Impl::Builder::file_added_token(const AddedToken& t) {
  const bool control = is_control_token(t);
  out_.flags[static_cast<size_t>(t.id)] =
      static_cast<uint8_t>((t.special ? kSpecial : 0) | (control ? kControl : 0));
  if (!t.normalized) {
    out_.control_raw.add(t.content, t);
    return;
  }
  const std::string_view pattern =
      file_.nfc ? normalize_nfc(t.content, normalized_) : std::string_view(t.content);
  (control ? out_.control_normalized : out_.plain).add(pattern, t);
  out_.all_normalized.add(pattern, t);
}

// Every byte of valid UTF-8 must have a token, or an unknown token would be called for.
void Tokenizer::Impl::Builder::check_unknown_token() const {
  if (!file_.has_unk_token) return;
  for (int b = 0; b < 0xF5; ++b) {
    if (b == 0xC0 || b == 0xC1 || byte_ids_[static_cast<size_t>(b)] != BpeModel::kNone) continue;
    throw DataError(
        "{}: model.unk_token with a vocabulary that lacks byte 0x{:02x} is not supported",
        out_.source, b);
  }
}

// What each id decodes to.
void Tokenizer::Impl::Builder::write_decoding() {
  out_.offsets.reserve(vocab_size_ + 1);
  for (size_t id = 0; id < vocab_size_; ++id) {
    R1_CHECK(out_.bytes.size() < UINT32_MAX, "vocabulary of {} bytes", out_.bytes.size());
    out_.offsets.push_back(static_cast<uint32_t>(out_.bytes.size()));
    if (token_of_id_[id] == kUnused) continue;
    const std::string_view text = decoded_text(id);
    if ((out_.flags[id] & kSpecial) != 0 && text == added_of_id_[id]->content)
      out_.flags[id] |= kSkipped;
    // As the ByteLevel decoder does: a token with a character outside the alphabet stands for its
    // own text.
    out_.bytes += spelled_bytes(text, scratch_) ? std::string_view(scratch_) : text;
    fingerprint_.number(id);
    fingerprint_.text(text);
  }
  out_.offsets.push_back(static_cast<uint32_t>(out_.bytes.size()));
}

std::string_view Tokenizer::Impl::Builder::decoded_text(size_t id) {
  const AddedToken* added = added_of_id_[id];
  const std::string_view text =
      token_of_id_[id] == kFromAdded ? std::string_view(added->content) : vocab_spelling(id);
  return file_.nfc && added != nullptr && added->normalized ? normalize_nfc(text, normalized_)
                                                            : text;
}

// Behind the texts: merges, added tokens, and how text is cut and framed.
void Tokenizer::Impl::Builder::write_fingerprint() {
  Fingerprint& f = fingerprint_;
  for (const Merge& m : merges_) f.number(static_cast<uint64_t>(m.left) << 32 | m.right);
  for (const AddedToken* t : added_of_id_)
    if (t != nullptr) f.number(packed(*t));
  for (const SplitPattern p : file_.splits) f.number(static_cast<uint64_t>(p) + 1);
  for (const auto* ids : {&file_.prefix_ids, &file_.suffix_ids}) {
    f.number(ids->size());
    for (const int32_t id : *ids) {
      if (static_cast<size_t>(id) >= vocab_size_)
        throw DataError("{}: post_processor: id {} is not in the vocabulary", out_.source, id);
      f.number(static_cast<uint64_t>(id));
    }
  }
  f.number(static_cast<uint64_t>(file_.nfc) << 1 | static_cast<uint64_t>(file_.ignore_merges));
  out_.fingerprint = f.value();
}

void Tokenizer::Impl::build(const TokenizerFile& file) { Builder(*this, file).run(); }

}  // namespace r1::text
