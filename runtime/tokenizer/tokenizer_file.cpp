#include "runtime/tokenizer/tokenizer_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "runtime/core/error.h"
#include "runtime/tokenizer/hash.h"
#include "runtime/tokenizer/unicode.h"

namespace r1::text {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxSmallValues = 1'000'000;  // values outside vocabulary and merges
constexpr size_t kMaxAddedTokens = 100'000;    // known files have up to some 6,000
constexpr size_t kMaxAddedBytes = 4 << 20;     // of their contents together
constexpr size_t kMaxTokenBytes = 1 << 16;

// The vocabulary and the merges (nearly all of a file) go straight into arrays; the rest becomes a
// small document.
class Handler : public nlohmann::json_sax<Json> {
 public:
  Handler(TokenizerFile& file, const std::string& source) : file_(file), source_(source) {}

  Json& root() { return root_; }
  [[nodiscard]] bool has_vocab() const { return has_vocab_; }
  [[nodiscard]] bool has_merges() const { return has_merges_; }

  bool null() override { return value(Json(nullptr)); }
  bool boolean(bool v) override { return value(Json(v)); }
  bool number_integer(number_integer_t v) override {
    return where_ == kVocab ? token_id(v) : value(Json(v));
  }
  bool number_unsigned(number_unsigned_t v) override {
    if (where_ == kVocab) return token_id(v > INT64_MAX ? INT64_MAX : static_cast<int64_t>(v));
    return value(Json(v));
  }
  bool number_float(number_float_t v, const string_t& text) override {
    if (where_ == kVocab)
      fail("model.vocab", "the id of token `{}` is {}, not an integer", printable(key_),
           printable(text));
    return value(Json(v));
  }
  bool string(string_t& v) override {
    if (where_ == kMerges) return merge_line(v);
    if (where_ == kMergePair) return merge_part(v);
    return value(Json(std::move(v)));
  }
  bool binary(binary_t&) override { return false; }  // not in JSON text
  bool key(string_t& v) override {
    key_.swap(v);
    return true;
  }
  bool start_object(size_t) override {
    enter();
    if (where_ == kMerges || where_ == kMergePair || where_ == kVocab) unexpected("an object");
    if (where_ == kModel && depth_ == 3 && key_ == "vocab") {
      if (has_vocab_) fail("model.vocab", "given twice");
      has_vocab_ = true;
      where_ = kVocab;
      return true;
    }
    if (depth_ == 2 && key_ == "model") {
      if (has_model_) fail("model", "given twice");
      has_model_ = true;
      where_ = kModel;
    }
    open(Json::object());
    return true;
  }
  bool end_object() override {
    --depth_;
    if (where_ == kVocab) {
      where_ = kModel;
      return true;
    }
    if (where_ == kModel && depth_ == 1) where_ = kOther;
    open_.pop_back();
    return true;
  }
  bool start_array(size_t) override {
    enter();
    if (where_ == kVocab || where_ == kMergePair) unexpected("a list");
    if (where_ == kMerges) {
      where_ = kMergePair;
      parts_ = 0;
      merge_start_ = file_.merges.size();
      return true;
    }
    if (where_ == kModel && depth_ == 3 && key_ == "merges") {
      if (has_merges_) fail("model.merges", "given twice");
      has_merges_ = true;
      where_ = kMerges;
      return true;
    }
    open(Json::array());
    return true;
  }
  bool end_array() override {
    --depth_;
    if (where_ == kMergePair) {
      if (parts_ != 2) fail_merge("a list of {} parts, expected two", parts_);
      where_ = kMerges;
      return true;
    }
    if (where_ == kMerges) {
      where_ = kModel;
      return true;
    }
    open_.pop_back();
    return true;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    throw DataError("{}: byte {}: not valid JSON: {}", source_, position,
                    printable(error.what(), 300));
  }

 private:
  enum Where { kOther, kModel, kVocab, kMerges, kMergePair };

  template <class... Args>
  [[noreturn]] void fail(std::string_view place, fmt::format_string<Args...> text, Args&&... args) {
    throw DataError("{}: {}: {}", source_, place, fmt::format(text, std::forward<Args>(args)...));
  }
  template <class... Args>
  [[noreturn]] void fail_merge(fmt::format_string<Args...> text, Args&&... args) {
    const size_t parts = where_ == kMergePair ? merge_start_ : file_.merges.size();
    throw DataError("{}: model.merges[{}]: {}", source_, parts / 2,
                    fmt::format(text, std::forward<Args>(args)...));
  }
  [[noreturn]] void unexpected(std::string_view what) {
    if (where_ == kVocab)
      fail("model.vocab", "token `{}` has {}, expected its id", printable(key_), what);
    fail_merge("{} where a merge was expected", what);
  }
  void enter() {
    if (++depth_ > kMaxDepth) {
      throw DataError("{}: nested deeper than {} levels; a tokenizer.json has about 6", source_,
                      kMaxDepth);
    }
  }
  // Puts a value where the document stands; returns it there.
  Json& put(Json&& v) {
    if (++values_ > kMaxSmallValues) {
      throw DataError(
          "{}: more than {} values in added_tokens and what else is not vocabulary or "
          "merges; no tokenizer has so many",
          source_, kMaxSmallValues);
    }
    if (open_.empty()) {
      root_ = std::move(v);
      return root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(v));
      return parent.back();
    }
    Json& slot = parent[key_];
    slot = std::move(v);
    return slot;
  }
  void open(Json&& v) { open_.push_back(&put(std::move(v))); }
  bool value(Json&& v) {
    if (where_ == kVocab || where_ == kMerges || where_ == kMergePair) unexpected(v.type_name());
    put(std::move(v));
    return true;
  }
  bool token_id(int64_t id) {
    if (id < 0 || id > kMaxTokenId) {
      fail("model.vocab", "token `{}` has id {}; ids are 0 to {}", printable(key_), id,
           kMaxTokenId);
    }
    if (file_.tokens.size() > static_cast<size_t>(kMaxTokenId))
      fail("model.vocab", "more than {} tokens", kMaxTokenId + 1);
    if (key_.size() > kMaxTokenBytes)
      fail("model.vocab", "id {}: a token of {} bytes", id, key_.size());
    file_.tokens.push_back(
        {file_.spellings.size(), static_cast<uint32_t>(key_.size()), static_cast<int32_t>(id)});
    file_.spellings += key_;
    return true;
  }
  bool merge_part(std::string_view part) {
    if (++parts_ > 2) fail_merge("more than two parts");
    if (part.empty()) fail_merge("an empty part");
    if (file_.merges.size() >= 2 * kMaxMerges) fail_merge("more than {} merges", kMaxMerges);
    file_.merges.push_back({file_.merge_spellings.size(), static_cast<uint32_t>(part.size()), 0});
    file_.merge_spellings += part;
    return true;
  }
  // The older spelling: "left right". Parts hold no spaces: the byte-level alphabet has none.
  bool merge_line(std::string_view line) {
    const size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
      fail_merge("`{}` is not two parts with a space between them", printable(line));
    }
    if (space == 0 || space + 1 == line.size())
      fail_merge("`{}` has an empty part", printable(line));
    parts_ = 0;
    return merge_part(line.substr(0, space)) && merge_part(line.substr(space + 1));
  }

  TokenizerFile& file_;
  const std::string& source_;
  Json root_;
  std::vector<Json*> open_;  // pointers stay valid: only the innermost container grows
  std::string key_;
  size_t depth_ = 0;
  size_t values_ = 0;
  size_t parts_ = 0;
  size_t merge_start_ = 0;  // of the pair being read, in file_.merges
  Where where_ = kOther;
  bool has_model_ = false;
  bool has_vocab_ = false;
  bool has_merges_ = false;
};

// Reads the small parts of the document, with the place in every message.
class Reader {
 public:
  Reader(TokenizerFile& file, const std::string& source) : file_(file), source_(source) {}

  void read(const Json& root) {
    if (!root.is_object())
      throw DataError("{}: not a tokenizer.json: the text is {}, not an object", source_,
                      root.type_name());
    model(member(root, "model"));
    added_tokens(member(root, "added_tokens"));
    normalizer(member(root, "normalizer"), "normalizer", 0);
    pre_tokenizer(member(root, "pre_tokenizer"), "pre_tokenizer", 0);
    if (!byte_level_) {
      fail("pre_tokenizer", "has no ByteLevel step; only byte-level tokenizers are supported");
    }
    post_processor(member(root, "post_processor"), "post_processor", 0);
    decoder(member(root, "decoder"), "decoder");
  }

 private:
  template <class... Args>
  [[noreturn]] void fail(std::string_view place, fmt::format_string<Args...> text, Args&&... args) {
    throw DataError("{}: {}: {}", source_, place, fmt::format(text, std::forward<Args>(args)...));
  }
  static const Json& null_value() {
    static const Json null;
    return null;
  }
  static const Json& member(const Json& object, const char* name) {
    if (!object.is_object()) return null_value();
    const auto at = object.find(name);
    return at == object.end() ? null_value() : *at;
  }
  static std::string show(const Json& v) {
    return printable(v.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  bool flag(const Json& object, const char* name, bool missing, const std::string& place) {
    const Json& v = member(object, name);
    if (v.is_null()) return missing;
    if (!v.is_boolean()) fail(place, "\"{}\" is {}, expected true or false", name, show(v));
    return v.get<bool>();
  }
  std::string type_of(const Json& v, const std::string& place) {
    if (!v.is_object()) fail(place, "is {}, expected an object with a \"type\"", show(v));
    const Json& type = member(v, "type");
    if (!type.is_string()) fail(place, "its \"type\" is {}, expected a name", show(type));
    return type.get<std::string>();
  }
  const Json::array_t& list_of(const Json& v, const char* name, const std::string& place) {
    const Json& list = member(v, name);
    if (!list.is_array()) fail(place, "\"{}\" is {}, expected a list", name, show(list));
    return list.get_ref<const Json::array_t&>();
  }
  void check_depth(int depth, const std::string& place) {
    if (depth > 4) fail(place, "sequences nested deeper than 4 levels");
  }

  void model(const Json& m) {
    if (!m.is_object()) fail("model", "missing");
    const Json& type = member(m, "type");  // left out by the oldest files
    if (!type.is_null() && type != "BPE")
      fail("model", "type {} is not supported, only BPE is", show(type));
    const Json& dropout = member(m, "dropout");
    if (!dropout.is_null() && dropout != 0.0)
      fail("model", "dropout {} is not supported", show(dropout));
    for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const Json& v = member(m, name);
      if (!v.is_null() && v != "")
        fail("model", "{} {} is not supported by byte-level tokenizers", name, show(v));
    }
    if (flag(m, "byte_fallback", false, "model"))
      fail("model", "byte_fallback is not supported: not a byte-level tokenizer");
    file_.ignore_merges = flag(m, "ignore_merges", false, "model");
    file_.has_unk_token = !member(m, "unk_token").is_null();
  }

  void added_tokens(const Json& list) {
    if (list.is_null()) return;
    if (!list.is_array()) fail("added_tokens", "is {}, expected a list", show(list));
    if (list.size() > kMaxAddedTokens)
      fail("added_tokens", "{} tokens; at most {} are supported", list.size(), kMaxAddedTokens);
    size_t content_bytes = 0;
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string place = fmt::format("added_tokens[{}]", i);
      const Json& v = list[i];
      if (!v.is_object()) fail(place, "is {}, expected an object", show(v));
      AddedToken token;
      const Json& id = member(v, "id");
      if (!id.is_number_integer() || id < 0 || id > kMaxTokenId) {
        fail(place, "id {}; ids are integers from 0 to {}", show(id), kMaxTokenId);
      }
      token.id = id.get<int32_t>();
      const Json& content = member(v, "content");
      if (!content.is_string()) fail(place, "content is {}, expected a string", show(content));
      token.content = content.get<std::string>();
      if (token.content.size() > TokenMatcher::kMaxContentBytes) {
        fail(place, "content of {} bytes; at most {} are supported", token.content.size(),
             TokenMatcher::kMaxContentBytes);
      }
      content_bytes += token.content.size();
      if (content_bytes > kMaxAddedBytes)
        fail(place, "more than {} bytes of contents up to here", kMaxAddedBytes);
      token.special = flag(v, "special", false, place);
      token.normalized = flag(v, "normalized", !token.special, place);
      token.single_word = flag(v, "single_word", false, place);
      token.lstrip = flag(v, "lstrip", false, place);
      token.rstrip = flag(v, "rstrip", false, place);
      file_.added_tokens.push_back(std::move(token));
    }
  }

  void normalizer(const Json& v, const std::string& place, int depth) {
    if (v.is_null()) return;
    check_depth(depth, place);
    const std::string type = type_of(v, place);
    if (type == "NFC") {
      file_.nfc = true;
    } else if (type == "Sequence") {
      const auto& list = list_of(v, "normalizers", place);
      for (size_t i = 0; i < list.size(); ++i)
        normalizer(list[i], fmt::format("{}[{}]", place, i), depth + 1);
    } else {
      fail(place, "`{}` is not supported; known: NFC, none", printable(type));
    }
  }

  void split(SplitPattern pattern, const std::string& place) {
    if (byte_level_) fail(place, "splits after the ByteLevel step");
    if (file_.splits.size() >= 16) fail(place, "more than 16 splitting steps");
    file_.splits.push_back(pattern);
  }

  void pre_tokenizer(const Json& v, const std::string& place, int depth) {
    if (v.is_null()) return;
    check_depth(depth, place);
    const std::string type = type_of(v, place);
    if (type == "Sequence") {
      const auto& list = list_of(v, "pretokenizers", place);
      for (size_t i = 0; i < list.size(); ++i)
        pre_tokenizer(list[i], fmt::format("{}[{}]", place, i), depth + 1);
    } else if (type == "Split") {
      const Json& regex = member(member(v, "pattern"), "Regex");
      if (!regex.is_string())
        fail(place, "pattern {} is not supported; known are regular expressions",
             show(member(v, "pattern")));
      const auto& text = regex.get_ref<const std::string&>();
      const auto pattern = split_pattern_by_regex(text);
      if (!pattern) {
        fail(place,
             "unknown split pattern `{}` ({} bytes); known are those of Qwen2/2.5/3, Llama-3, "
             "GPT-2, DeepSeek-LLM, "
             "DeepSeek-Coder and DeepSeek-V3/R1. Patterns are never compiled: a new one needs a "
             "new release",
             printable(text, 600), text.size());
      }
      const bool covers_all = *pattern == SplitPattern::kQwen2 ||
                              *pattern == SplitPattern::kLlama3 || *pattern == SplitPattern::kGpt2;
      const bool invert = flag(v, "invert", false, place);
      const Json& behavior = member(v, "behavior");
      // "Removed" with invert keeps the matches and drops the rest: the same where the pattern
      // matches everything.
      const bool isolated = behavior == "Isolated" && !invert;
      if (!isolated && !(behavior == "Removed" && invert && covers_all)) {
        fail(place, "behavior {} with invert {} is not supported; known: \"Isolated\"",
             show(behavior), invert);
      }
      split(*pattern, place);
    } else if (type == "Digits") {
      split(flag(v, "individual_digits", false, place) ? SplitPattern::kNumber
                                                       : SplitPattern::kNumbers,
            place);
    } else if (type == "ByteLevel") {
      if (flag(v, "add_prefix_space", true, place))
        fail(place, "add_prefix_space is not supported");
      if (flag(v, "use_regex", true, place)) split(SplitPattern::kGpt2, place);
      if (byte_level_) fail(place, "a second ByteLevel step");
      byte_level_ = true;
    } else {
      fail(place, "`{}` is not supported; known: Sequence, Split, Digits, ByteLevel",
           printable(type));
    }
  }

  void post_processor(const Json& v, const std::string& place, int depth) {
    if (v.is_null()) return;
    check_depth(depth, place);
    const std::string type = type_of(v, place);
    if (type == "ByteLevel") return;  // touches offsets only
    if (type == "Sequence") {
      const auto& list = list_of(v, "processors", place);
      for (size_t i = 0; i < list.size(); ++i)
        post_processor(list[i], fmt::format("{}[{}]", place, i), depth + 1);
      return;
    }
    if (type != "TemplateProcessing") {
      fail(place, "`{}` is not supported; known: ByteLevel, TemplateProcessing, Sequence",
           printable(type));
    }
    if (!file_.prefix_ids.empty() || !file_.suffix_ids.empty()) fail(place, "a second template");
    bool seen_text = false;
    for (const Json& item : list_of(v, "single", place)) {
      if (member(item, "Sequence").is_object()) {
        if (seen_text) fail(place, "\"single\" holds the text twice");
        seen_text = true;
        continue;
      }
      const Json& name = member(member(item, "SpecialToken"), "id");
      if (!name.is_string()) fail(place, "\"single\" holds {}", show(item));
      const Json& special =
          member(member(v, "special_tokens"), name.get_ref<const std::string&>().c_str());
      for (const Json& id : list_of(special, "ids", place + ".special_tokens")) {
        if (!id.is_number_integer() || id < 0 || id > kMaxTokenId)
          fail(place, "token {} has id {}", show(name), show(id));
        auto& ids = seen_text ? file_.suffix_ids : file_.prefix_ids;
        if (ids.size() >= 64) fail(place, "adds more than 64 tokens");
        ids.push_back(id.get<int32_t>());
      }
    }
    if (!seen_text) fail(place, "\"single\" does not hold the text");
  }

  void decoder(const Json& v, const std::string& place) {
    if (v.is_null()) return;
    const std::string type = type_of(v, place);
    if (type == "ByteLevel") return;
    if (type == "Sequence") {
      const auto& list = list_of(v, "decoders", place);
      if (list.size() == 1 && member(list[0], "type") == "ByteLevel") return;
    }
    fail(place, "{} is not supported; known: ByteLevel", show(v));
  }

  TokenizerFile& file_;
  const std::string& source_;
  bool byte_level_ = false;
};

}  // namespace

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  const char* const end = text.data() + text.size();
  for (const char* p = text.data(); p < end;) {
    const Char c = decode_char(p, end);
    if (out.size() + 12 > max_bytes) return out + "...";
    if (c.code_point == kInvalidChar) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(*p));
    } else if (c.code_point == '\n') {
      out += "\\n";
    } else if (c.code_point == '\r') {
      out += "\\r";
    } else if (c.code_point == '\t') {
      out += "\\t";
    } else if (c.code_point < 0x20 || (c.code_point >= 0x7F && c.code_point < 0xA0)) {
      out += fmt::format("\\u{:04x}", c.code_point);
    } else {
      out.append(p, c.bytes);
    }
    p += c.bytes;
  }
  return out;
}

TokenizerFile parse_tokenizer_json(std::string_view json, const std::string& source) {
  if (json.size() > kMaxTokenizerBytes) {
    throw DataError("{}: {} bytes; a tokenizer.json of more than {} is refused", source,
                    json.size(), kMaxTokenizerBytes);
  }
  TokenizerFile file;
  file.content_hash = hash_bytes(json, kHashMix);
  Handler handler(file, source);
  Json::sax_parse(json.begin(), json.end(), &handler);
  if (handler.root().is_object() && !handler.has_vocab())
    throw DataError("{}: model.vocab is missing or not an object", source);
  if (handler.root().is_object() && !handler.has_merges())
    throw DataError("{}: model.merges is missing or not a list", source);
  Reader(file, source).read(handler.root());
  return file;
}

}  // namespace r1::text
