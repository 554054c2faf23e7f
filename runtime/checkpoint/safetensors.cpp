#include "runtime/checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <set>
#include <unordered_set>
#include <utility>

#include "runtime/checkpoint/checked.h"
#include "runtime/checkpoint/crc32c.h"
#include "runtime/checkpoint/json_scanner.h"
#include "runtime/core/log.h"

namespace r1::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little,
              "safetensors data is little-endian; bytes are not swapped here");

struct DTypeInfo {
  std::string_view name;
  int bits;
  std::optional<DType> dtype;
};
// The reference reader's list, in its order. Names are case-sensitive.
constexpr std::array<DTypeInfo, 22> kDTypes{{
    {"BOOL", 8, std::nullopt},
    {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
    {"U8", 8, DType::kU8},
    {"I8", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt},
    {"F8_E4M3", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},
    {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E5M2FNUZ", 8, std::nullopt},
    {"I16", 16, std::nullopt},
    {"U16", 16, std::nullopt},
    {"F16", 16, DType::kF16},
    {"BF16", 16, DType::kBF16},
    {"I32", 32, DType::kI32},
    {"U32", 32, std::nullopt},
    {"F32", 32, DType::kF32},
    {"C64", 64, std::nullopt},
    {"F64", 64, DType::kF64},
    {"I64", 64, DType::kI64},
    {"U64", 64, std::nullopt},
}};

const DTypeInfo* find_dtype(std::string_view name) {
  const auto it = std::find_if(kDTypes.begin(), kDTypes.end(),
                               [&](const DTypeInfo& d) { return d.name == name; });
  return it == kDTypes.end() ? nullptr : &*it;
}

std::string dtype_list() {
  std::string out;
  for (const DTypeInfo& d : kDTypes) out += fmt::format("{}{}", out.empty() ? "" : ", ", d.name);
  return out;
}

/// Data begins at a multiple of this (the reference writer's padding).
constexpr uint64_t kHeaderAlign = 8;

void read_metadata(JsonScanner& json, std::map<std::string, std::string>& out) {
  if (json.peek() != '{') json.fail("\"__metadata__\" must be an object of strings");
  json.begin_object();
  std::string key;
  while (json.next_member(key)) {
    if (json.peek() != '"')
      json.fail("\"__metadata__\" must map strings to strings; {} is not", shown(key));
    std::string value = json.string(SIZE_MAX);
    if (!out.emplace(std::move(key), std::move(value)).second)
      json.fail("\"__metadata__\" has a member twice");
    key.clear();
  }
}

TensorEntry read_entry(JsonScanner& json, std::string name, size_t& ignored, HeaderRules rules) {
  TensorEntry t;
  t.name = std::move(name);
  if (t.name.size() > kMaxNameBytes)
    json.fail("a tensor name of {} bytes; at most {} are allowed", t.name.size(), kMaxNameBytes);
  if (t.name.find('\0') != std::string::npos)
    json.fail("the tensor name {} has a NUL in it", shown(t.name));
  if (json.peek() != '{') json.fail("tensor {}: expected an object", shown(t.name));
  json.begin_object();
  bool has_dtype = false, has_shape = false, has_offsets = false;
  const auto once = [&](bool& seen, std::string_view field) {
    if (std::exchange(seen, true))
      json.fail("tensor {}: \"{}\" appears twice", shown(t.name), field);
  };
  std::string field;
  while (json.next_member(field)) {
    if (field == "dtype") {
      once(has_dtype, field);
      if (json.peek() != '"') json.fail("tensor {}: \"dtype\" must be a string", shown(t.name));
      const std::string found = json.string(SIZE_MAX);
      const DTypeInfo* info = find_dtype(found);
      if (info == nullptr)
        json.fail("tensor {}: unknown dtype {}; known are {}", shown(t.name), shown(found, 40),
                  dtype_list());
      t.dtype_name = info->name;
      t.dtype = info->dtype;
    } else if (field == "shape") {
      once(has_shape, field);
      if (json.peek() != '[') json.fail("tensor {}: \"shape\" must be an array", shown(t.name));
      json.begin_array();
      while (json.next_element()) {
        if (t.shape.size() == kMaxRank)
          json.fail("tensor {}: more than {} dims", shown(t.name), kMaxRank);
        t.shape.push_back(static_cast<int64_t>(json.unsigned_integer(kMaxDim)));
      }
    } else if (field == "data_offsets") {
      once(has_offsets, field);
      if (json.peek() != '[')
        json.fail("tensor {}: \"data_offsets\" must be an array", shown(t.name));
      json.begin_array();
      std::array<uint64_t, 2> offsets{};
      size_t n = 0;
      while (json.next_element()) {
        if (n == 2)
          json.fail("tensor {}: \"data_offsets\" must have exactly two numbers", shown(t.name));
        offsets[n++] = json.unsigned_integer(kMaxDim);
      }
      if (n != 2)
        json.fail("tensor {}: \"data_offsets\" must have exactly two numbers", shown(t.name));
      t.begin = offsets[0];
      t.end = offsets[1];
    } else {
      if (rules == HeaderRules::kOwn)
        json.fail("tensor {}: unknown field {}", shown(t.name), shown(field));
      ++ignored;
      json.skip_value();
    }
  }
  if (!has_dtype) json.fail("tensor {}: \"dtype\" is missing", shown(t.name));
  if (!has_shape) json.fail("tensor {}: \"shape\" is missing", shown(t.name));
  if (!has_offsets) json.fail("tensor {}: \"data_offsets\" is missing", shown(t.name));
  return t;
}

// Dtype and shape against the range (rules R16, R17).
void check_extent(const TensorEntry& t, std::string_view source) {
  if (t.end < t.begin)
    throw DataError("{}: tensor {}: data_offsets [{}, {}] end before they begin", source,
                    shown(t.name), t.begin, t.end);
  const auto elems = checked_product(t.shape);
  const auto bits =
      elems ? checked_mul(*elems, static_cast<uint64_t>(*safetensors_bits(t.dtype_name)))
            : std::nullopt;
  if (!bits)
    throw DataError("{}: tensor {}: the size of {} {} does not fit in 64 bits", source,
                    shown(t.name), t.dtype_name, shape_text(t.shape));
  if (*bits % 8 != 0)
    throw DataError("{}: tensor {}: {} {} is {} bits, not a whole number of bytes", source,
                    shown(t.name), t.dtype_name, shape_text(t.shape), *bits);
  if (*bits / 8 != t.bytes())
    throw DataError("{}: tensor {}: {} {} needs {} bytes but data_offsets [{}, {}] hold {}", source,
                    shown(t.name), t.dtype_name, shape_text(t.shape), *bits / 8, t.begin, t.end,
                    t.bytes());
}

std::string header_json(const std::vector<TensorDecl>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  std::string out = "{";
  if (!metadata.empty()) {
    out += "\"__metadata__\":{";
    bool first = true;
    for (const auto& [key, value] : metadata) {
      out += fmt::format("{}{}:{}", first ? "" : ",", json_string(key), json_string(value));
      first = false;
    }
    out += '}';
  }
  uint64_t at = 0;
  for (const TensorDecl& t : tensors) {
    const auto elems = must_fit(checked_product(t.shape), "elements of a tensor to write");
    const auto bytes = must_fit(checked_mul(elems, static_cast<uint64_t>(dtype_bytes(t.dtype))),
                                "bytes of a tensor");
    const uint64_t end = must_fit(checked_add(at, bytes), "bytes of a file");
    if (out.size() > 1) out += ',';
    out += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                       json_string(t.name), safetensors_name(t.dtype), fmt::join(t.shape, ","), at,
                       end);
    at = end;
  }
  out += '}';
  out.append((kHeaderAlign - out.size() % kHeaderAlign) % kHeaderAlign, ' ');
  return out;
}

std::string length_bytes(uint64_t n) {
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>((n >> (8 * i)) & 0xffu);
  return out;
}

}  // namespace

uint64_t TensorEntry::elems() const {
  return must_fit(checked_product(shape), "elements of a checked tensor");
}

std::string_view safetensors_name(DType dtype) {
  for (const DTypeInfo& d : kDTypes)
    if (d.dtype == dtype) return d.name;
  throw InternalError("dtype {} has no safetensors name", dtype_name(dtype));
}

std::optional<int> safetensors_bits(std::string_view name) {
  const DTypeInfo* d = find_dtype(name);
  if (d == nullptr) return std::nullopt;
  return d->bits;
}

std::string shape_text(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

SafetensorsHeader parse_safetensors_header(std::string_view header, uint64_t data_bytes,
                                           std::string_view source, HeaderRules rules) {
  SafetensorsHeader out;
  const std::string in_header = fmt::format("{}: header", source);
  JsonScanner json(header, in_header);
  if (json.peek() != '{') json.fail("the header must be a JSON object");
  json.begin_object();
  bool has_metadata = false;
  std::string key;
  while (json.next_member(key)) {
    if (key == "__metadata__") {
      if (std::exchange(has_metadata, true)) json.fail("\"__metadata__\" appears twice");
      read_metadata(json, out.metadata);
      continue;
    }
    if (out.tensors.size() == kMaxTensors) json.fail("more than {} tensors", kMaxTensors);
    out.tensors.push_back(read_entry(json, std::move(key), out.ignored_fields, rules));
    key.clear();
  }
  json.end();

  for (const TensorEntry& t : out.tensors) check_extent(t, source);
  {
    // Which of two equal names counts is up to the reader: a scanner and a loader may see different
    // tensors.
    std::vector<std::string_view> names;
    names.reserve(out.tensors.size());
    for (const TensorEntry& t : out.tensors) names.push_back(t.name);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) throw DataError("{}: tensor {} appears twice", source, shown(*twice));
  }
  // Stable, so that empty tensors at one offset keep the order of the header.
  std::stable_sort(out.tensors.begin(), out.tensors.end(),
                   [](const TensorEntry& a, const TensorEntry& b) {
                     return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
                   });
  uint64_t at = 0;
  const TensorEntry* before = nullptr;
  for (const TensorEntry& t : out.tensors) {
    if (t.begin != at)
      throw DataError(
          "{}: tensor {} begins at byte {} of the data, but {} (tensors must follow each other "
          "without {})",
          source, shown(t.name), t.begin,
          before == nullptr ? std::string("the first one must begin at 0")
                            : fmt::format("tensor {} ends at {}", shown(before->name), at),
          t.begin > at ? "holes" : "overlap");
    at = t.end;
    before = &t;
  }
  if (at != data_bytes)
    throw DataError(
        "{}: the tensors take {} bytes of data, the file has {}: {}", source, at, data_bytes,
        at > data_bytes ? "it is cut short (half a download?)" : "something is appended to it");
  return out;
}

// ---- reading

SafetensorsFile::SafetensorsFile(ReadFile file, SafetensorsHeader header, uint64_t data_begin,
                                 uint32_t header_crc)
    : file_(std::move(file)),
      header_(std::move(header)),
      data_begin_(data_begin),
      header_crc_(header_crc) {
  index_.reserve(header_.tensors.size());
  for (size_t i = 0; i < header_.tensors.size(); ++i) index_.emplace(header_.tensors[i].name, i);
}

SafetensorsFile SafetensorsFile::open(const fs::path& path, HeaderRules rules) {
  ReadFile file(path);
  const std::string source = path.string();
  constexpr std::string_view kLfs = "version https://git-lfs.github.com/spec/";
  if (file.size() >= kLfs.size() && file.size() < 1024) {
    std::string start(kLfs.size(), '\0');
    file.read(0, start.data(), start.size());
    if (start == kLfs)
      throw DataError(
          "{}: is a Git LFS pointer, not the file itself; run \"git lfs pull\" in its directory",
          source);
  }
  if (file.size() < 8)
    throw DataError("{}: has {} bytes; a safetensors file begins with 8 bytes of header length",
                    source, file.size());
  std::array<unsigned char, 8> raw{};
  file.read(0, raw.data(), raw.size());
  uint64_t n = 0;
  for (size_t i = 0; i < 8; ++i) n |= static_cast<uint64_t>(raw[i]) << (8 * i);
  const uint64_t limit = rules == HeaderRules::kOwn ? kMaxOwnHeaderBytes : kMaxHeaderBytes;
  if (n > limit)
    throw DataError(
        "{}: says that its header has {} bytes; at most {} are allowed: not a safetensors file?",
        source, n, limit);
  const uint64_t data_begin = must_fit(checked_add(n, 8), "header length");
  if (data_begin > file.size())
    throw DataError(
        "{}: says that its header has {} bytes, but the file has {} in all: it is cut short (half "
        "a download?)",
        source, n, file.size());
  std::string header(static_cast<size_t>(n), '\0');
  file.read(8, header.data(), header.size());
  SafetensorsHeader parsed =
      parse_safetensors_header(header, file.size() - data_begin, source, rules);
  if (parsed.ignored_fields > 0)
    log::warn("{}: ignoring {} unknown fields in its header", source, parsed.ignored_fields);
  const uint32_t crc = crc32c(header, crc32c(raw.data(), raw.size()));
  return {std::move(file), std::move(parsed), data_begin, crc};
}

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &header_.tensors[it->second];
}

const TensorEntry& SafetensorsFile::at(std::string_view name) const {
  const TensorEntry* t = find(name);
  if (t == nullptr)
    throw DataError("{}: there is no tensor {} in it", path().string(), shown(name));
  return *t;
}

void SafetensorsFile::read_bytes(const TensorEntry& tensor, uint64_t offset, void* dst,
                                 size_t bytes) const {
  const auto end = checked_add(offset, bytes);
  R1_CHECK(end && *end <= tensor.bytes(), "{}: bytes [{}, +{}) of tensor {} with {} bytes",
           path().string(), offset, bytes, shown(tensor.name), tensor.bytes());
  // All three are within the file's size by the header's check.
  const uint64_t at = must_fit(
      checked_add(must_fit(checked_add(data_begin_, tensor.begin), "offset"), offset), "offset");
  file_.read(at, dst, bytes);
}

// ---- writing

struct SafetensorsWriter::State {
  NewFile file;
  std::vector<TensorDecl> tensors;
  FileSummary summary;
  size_t current = 0;
  uint64_t done = 0;  // bytes of the current tensor

  // Bytes of tensor i.
  [[nodiscard]] uint64_t bytes(size_t i) const { return summary.tensors[i].bytes; }
  // Closes complete tensors (those without elements complete themselves).
  void advance() {
    while (current < tensors.size() && done == bytes(current)) {
      TensorSummary& t = summary.tensors[current];
      summary.crc32c = crc32c_combine(summary.crc32c, t.crc32c, t.bytes);
      ++current;
      done = 0;
    }
  }
};

void sort_for_file(std::vector<TensorDecl>& tensors) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorDecl& a, const TensorDecl& b) {
    return dtype_bytes(a.dtype) > dtype_bytes(b.dtype);
  });
}

uint64_t SafetensorsWriter::file_bytes(const std::vector<TensorDecl>& tensors,
                                       const std::map<std::string, std::string>& metadata) {
  uint64_t total =
      must_fit(checked_add(header_json(tensors, metadata).size(), 8), "bytes of a file");
  for (const TensorDecl& t : tensors) {
    const auto elems = must_fit(checked_product(t.shape), "elements of a tensor to write");
    const auto bytes = must_fit(checked_mul(elems, static_cast<uint64_t>(dtype_bytes(t.dtype))),
                                "bytes of a tensor");
    total = must_fit(checked_add(total, bytes), "bytes of a file");
  }
  return total;
}

SafetensorsWriter::SafetensorsWriter(const fs::path& path, std::vector<TensorDecl> tensors,
                                     const std::map<std::string, std::string>& metadata,
                                     SyscallHook* hook) {
  std::unordered_set<std::string_view> names;
  uint64_t at = 0;
  FileSummary summary;
  summary.name = path.filename().string();
  for (const TensorDecl& t : tensors) {
    R1_CHECK(names.insert(t.name).second, "{}: tensor {} declared twice", path.string(),
             shown(t.name));
    R1_CHECK(t.name != "__metadata__" && t.name.size() <= kMaxNameBytes &&
                 t.name.find('\0') == std::string::npos &&
                 invalid_utf8_at(t.name) == std::string_view::npos,
             "{}: tensor name {}", path.string(), shown(t.name));
    R1_CHECK(t.shape.size() <= kMaxRank, "{}: tensor {} of rank {}", path.string(), shown(t.name),
             t.shape.size());
    const auto width = static_cast<uint64_t>(dtype_bytes(t.dtype));
    R1_CHECK(at % width == 0,
             "{}: tensor {} would begin at byte {}: put wider elements first (sort_for_file)",
             path.string(), shown(t.name), at);
    const auto elems = must_fit(checked_product(t.shape), "elements of a tensor to write");
    const auto bytes = must_fit(checked_mul(elems, width), "bytes of a tensor");
    at = must_fit(checked_add(at, bytes), "bytes of a file");
    summary.tensors.push_back({t.name, bytes, 0});
  }
  for (const auto& [key, value] : metadata)
    R1_CHECK(invalid_utf8_at(key) == std::string_view::npos &&
                 invalid_utf8_at(value) == std::string_view::npos,
             "{}: metadata {} is not UTF-8", path.string(), shown(key));
  const std::string header = header_json(tensors, metadata);
  R1_CHECK(header.size() <= kMaxOwnHeaderBytes, "{}: a header of {} bytes", path.string(),
           header.size());
  const std::string length = length_bytes(header.size());
  summary.bytes =
      must_fit(checked_add(must_fit(checked_add(header.size(), 8), "bytes of a file"), at),
               "bytes of a file");
  summary.crc32c = crc32c(header, crc32c(length));
  state_ = std::unique_ptr<State>(new State{.file = NewFile(path, summary.bytes, hook),
                                            .tensors = std::move(tensors),
                                            .summary = std::move(summary)});
  state_->file.write(length.data(), length.size());
  state_->file.write(header.data(), header.size());
  state_->advance();
}
SafetensorsWriter::~SafetensorsWriter() = default;
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&&) noexcept = default;

void SafetensorsWriter::write(std::string_view name, const void* data, size_t bytes) {
  State& s = *state_;
  if (bytes == 0) return;
  R1_CHECK(s.current < s.tensors.size(), "{}: {} bytes of tensor {} after the last one",
           s.file.target().string(), bytes, shown(name));
  TensorSummary& t = s.summary.tensors[s.current];
  R1_CHECK(t.name == name, "{}: got tensor {}, but {} has {} of {} bytes", s.file.target().string(),
           shown(name), shown(t.name), s.done, t.bytes);
  R1_CHECK(bytes <= t.bytes - s.done,
           "{}: {} bytes of tensor {} are too many: it has {} of {} bytes",
           s.file.target().string(), bytes, shown(name), s.done, t.bytes);
  s.file.write(data, bytes);
  t.crc32c = crc32c(data, bytes, t.crc32c);
  s.done += bytes;
  s.advance();
}

FileSummary SafetensorsWriter::finish() {
  State& s = *state_;
  R1_CHECK(s.current == s.tensors.size(), "{}: tensor {} has {} of {} bytes",
           s.file.target().string(), shown(s.tensors[s.current].name), s.done, s.bytes(s.current));
  s.file.finish();
  return s.summary;
}

}  // namespace r1::checkpoint
