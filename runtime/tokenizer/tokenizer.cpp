#include "runtime/tokenizer/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <system_error>

#include "runtime/core/error.h"
#include "runtime/tokenizer/byte_alphabet.h"
#include "runtime/tokenizer/tokenizer_file.h"
#include "runtime/tokenizer/tokenizer_impl.h"
#include "runtime/tokenizer/unicode.h"

namespace r1::text {
namespace {

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
        [&](Range r) { encode_gap(part.substr(r.begin, r.end - r.begin), plain, work); }, found);
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
