// Text to token ids and back, with the byte-level BPE tokenizers of the Hugging Face
// `tokenizer.json` format.
//
// What a file may hold is a closed list: NFC or no normalizer, the split patterns of Qwen2/2.5/3,
// Llama-3, GPT-2 and DeepSeek-LLM/Coder/V3 (recognised by exact match; no regular expression of a
// file is ever compiled), a byte-level BPE model, added tokens, a template post-processor, the
// byte-level decoder. Everything else is a DataError that prints what was found. Results equal
// those of Hugging Face `tokenizers` id for id.
//
// Invalid UTF-8: each byte that belongs to no well-formed character passes through normalization
// unchanged, counts as a symbol that is neither letter, number nor space for splitting, and is
// encoded as its own byte; decode() gives the same bytes back. replace_invalid_utf8() turns such
// bytes into U+FFFD where valid text is needed (JSON, terminals).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace r1::text {

/// How encode() treats text.
struct EncodeOptions {
  bool add_special = false;  ///< add what the file's post-processor adds (begin of sequence)
  bool parse_special =
      false;  ///< false: text never becomes a control token; true: as Hugging Face does
};

/// A stretch of text for Tokenizer::encode_segments.
struct Segment {
  std::string_view text = {};
  bool markup = false;  ///< written by us (a template): control tokens in it are recognised
};

/// A loaded tokenizer. Immutable after loading; every member may be called from many threads at
/// once.
class Tokenizer {
 public:
  /// Reads a directory's tokenizer.json, or the file itself. DataError: missing, malformed or
  /// unsupported.
  [[nodiscard]] static Tokenizer load(const std::filesystem::path& dir_or_file);
  /// Reads the text of a tokenizer.json; `source_name` stands in messages. DataError as load().
  [[nodiscard]] static Tokenizer from_json(std::string_view json, std::string source_name);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;
  ~Tokenizer();

  /// Ids of `text`. Time is linear in its length (up to a logarithm), whatever it holds.
  /// With parse_special=false, text never becomes a control token: an added token that is special,
  /// that is matched before normalization, or that is spelled `<...>`. Added tokens that are plain
  /// words are always recognised.
  [[nodiscard]] std::vector<int32_t> encode(std::string_view text,
                                            const EncodeOptions& options = {}) const;
  /// Ids of the segments' concatenation: tokens form across the seams as if it were one text, but
  /// control tokens are recognised only where they lie inside one markup segment.
  [[nodiscard]] std::vector<int32_t> encode_segments(std::span<const Segment> segments) const;

  /// Bytes of the ids. Ids outside the vocabulary (padding rows of a model's head) give nothing, as
  /// in Hugging Face. skip_special leaves out tokens marked special. Not always valid UTF-8: see
  /// replace_invalid_utf8.
  [[nodiscard]] std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

  /// Highest id + 1, added tokens included.
  [[nodiscard]] int32_t vocab_size() const;
  /// Id of an added token of this content, else of a vocabulary entry of this spelling (byte-level
  /// alphabet).
  [[nodiscard]] std::optional<int32_t> token_id(std::string_view token) const;
  /// Bytes the id decodes to; empty when there is no such token.
  [[nodiscard]] std::string token_bytes(int32_t id) const;
  /// Marked `"special": true` in the file: left out by decode(skip_special).
  [[nodiscard]] bool is_special(int32_t id) const;
  /// Control token: never produced from plain text (see encode).
  [[nodiscard]] bool is_control(int32_t id) const;
  /// Hash of all that determines encode and decode: vocabulary, merges, added tokens, patterns,
  /// post-processor. The same for two files that differ only in layout or in the spelling of
  /// merges.
  [[nodiscard]] uint64_t fingerprint() const;
  /// Where it was loaded from, for messages.
  [[nodiscard]] const std::string& source_name() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

/// Replaces each maximal ill-formed sequence by U+FFFD (Unicode 15, section 3.9; the same as Rust's
/// from_utf8_lossy).
[[nodiscard]] std::string replace_invalid_utf8(std::string_view bytes);

/// Decodes ids one at a time. What it emits is always whole UTF-8 characters: the concatenation of
/// all push() and finish() equals replace_invalid_utf8(tokenizer.decode(ids)). Keeps a reference to
/// the tokenizer.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false);
  /// Text that became certain with this id; empty while a character is incomplete.
  [[nodiscard]] std::string push(int32_t id);
  /// What is left: U+FFFD for a character that never completed. The decoder may then be used again.
  [[nodiscard]] std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;  // the start of a character, at most 3 bytes
};

}  // namespace r1::text
