#include "runtime/checkpoint/manifest.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

#include "runtime/checkpoint/checked.h"
#include "runtime/checkpoint/crc32c.h"
#include "runtime/checkpoint/json_scanner.h"

namespace r1::checkpoint {
namespace {

constexpr std::string_view kFormat = "r1run checkpoint";
constexpr size_t kMaxText = 1u << 20;  // configuration
constexpr size_t kMaxShort = 4096;     // names
constexpr size_t kMaxPieces = 4'000'000;
constexpr size_t kMaxFilesListed = 1'000'000;
constexpr size_t kMaxPiecesOfTensor = 16'384;
constexpr size_t kMaxEntries = 100'000;  // of counters, reals, fingerprints

// The text ends with its own checksum, in a form of fixed length, so that no byte of it can change
// unnoticed.
constexpr std::string_view kSealBegin = ",\n\"manifest_crc32c\":\"", kSealEnd = "\"}\n";
constexpr size_t kSealBytes = kSealBegin.size() + 8 + kSealEnd.size();

std::string hex8(uint32_t v) { return fmt::format("{:08x}", v); }

std::optional<uint32_t> parse_hex8(std::string_view text) {
  if (text.size() != 8) return std::nullopt;
  uint32_t v = 0;
  for (const char c : text)
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return std::nullopt;
  std::from_chars(text.data(), text.data() + text.size(), v, 16);
  return v;
}

// "model.safetensors" or "r1run/rank-00000.safetensors": at most one folder, each part plain.
bool safe_relative_path(std::string_view path) {
  const size_t slash = path.find('/');
  if (slash == std::string_view::npos) return plain_file_name(path);
  return plain_file_name(path.substr(0, slash)) && plain_file_name(path.substr(slash + 1));
}

bool valid_kind(std::string_view kind) {
  return !kind.empty() && kind.size() <= 32 && std::all_of(kind.begin(), kind.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  });
}

std::optional<DType> dtype_of(std::string_view name) {
  for (const DType t :
       {DType::kF32, DType::kBF16, DType::kF16, DType::kF64, DType::kI32, DType::kI64, DType::kU8})
    if (safetensors_name(t) == name) return t;
  return std::nullopt;
}

// ---- writing

std::string file_json(const FileRecord& f) {
  return fmt::format("{{\"name\":{},\"bytes\":{},\"crc32c\":\"{}\"}}", json_string(f.name), f.bytes,
                     hex8(f.crc32c));
}

std::string piece_json(const Piece& p) {
  return fmt::format(
      "{{\"kind\":{},\"tensor\":{},\"dtype\":\"{}\",\"global_shape\":[{}],\"start\":[{}],\"size\":["
      "{}],\"file\":{},"
      "\"entry\":{},\"crc32c\":\"{}\"}}",
      json_string(p.kind), json_string(p.tensor), safetensors_name(p.dtype),
      fmt::join(p.global_shape, ","), fmt::join(p.box.start, ","), fmt::join(p.box.size, ","),
      json_string(p.file), json_string(p.entry), hex8(p.crc32c));
}

template <class List, class F>
std::string list_json(const List& list, F&& item) {
  std::string out = "[";
  for (const auto& x : list) {
    if (out.size() > 1) out += ',';
    out += '\n';
    out += item(x);
  }
  return out + "]";
}

template <class Map, class F>
std::string map_json(const Map& map, F&& value) {
  std::string out = "{";
  for (const auto& [k, v] : map) {
    if (out.size() > 1) out += ',';
    out += fmt::format("{}:{}", json_string(k), value(v));
  }
  return out + "}";
}

// ---- reading

// Reads an object whose members are exactly `fields`, each once, in any order. `read` gets the
// member's index.
template <size_t kN, class F>
void read_object(JsonScanner& json, const std::array<std::string_view, kN>& fields, F&& read) {
  std::array<bool, kN> seen{};
  json.begin_object();
  std::string key;
  while (json.next_member(key)) {
    const auto it = std::find(fields.begin(), fields.end(), key);
    if (it == fields.end()) json.fail("unknown member {}", shown(key));
    const auto i = static_cast<size_t>(it - fields.begin());
    if (seen[i]) json.fail("member {} appears twice", shown(key));
    seen[i] = true;
    read(i);
  }
  for (size_t i = 0; i < kN; ++i)
    if (!seen[i]) json.fail("member {} is missing", shown(fields[i]));
}

uint32_t read_crc(JsonScanner& json) {
  const std::string text = json.string(8);
  const auto v = parse_hex8(text);
  if (!v) json.fail("expected a checksum of eight hex digits, found {}", shown(text));
  return *v;
}

std::string read_path(JsonScanner& json) {
  std::string path = json.string(kMaxShort);
  if (!safe_relative_path(path))
    json.fail("{} is not a plain file name, or one within a plain folder", shown(path));
  return path;
}

std::string read_name(JsonScanner& json) {
  std::string name = json.string(kMaxNameBytes);
  if (name.find('\0') != std::string::npos) json.fail("the name {} has a NUL in it", shown(name));
  return name;
}

std::vector<int64_t> read_dims(JsonScanner& json) {
  std::vector<int64_t> dims;
  json.begin_array();
  while (json.next_element()) {
    if (dims.size() == kMaxRank) json.fail("more than {} dims", kMaxRank);
    dims.push_back(static_cast<int64_t>(json.unsigned_integer(kMaxDim)));
  }
  return dims;
}

FileRecord read_file_record(JsonScanner& json) {
  FileRecord f;
  constexpr std::array<std::string_view, 3> kFields{"name", "bytes", "crc32c"};
  read_object(json, kFields, [&](size_t i) {
    switch (i) {
      case 0:
        f.name = read_path(json);
        break;
      case 1:
        f.bytes = json.unsigned_integer(INT64_MAX);
        break;
      default:
        f.crc32c = read_crc(json);
        break;
    }
  });
  return f;
}

Piece read_piece(JsonScanner& json) {
  Piece p;
  constexpr std::array<std::string_view, 9> kFields{
      "kind", "tensor", "dtype", "global_shape", "start", "size", "file", "entry", "crc32c"};
  read_object(json, kFields, [&](size_t i) {
    switch (i) {
      case 0:
        p.kind = json.string(kMaxShort);
        if (!valid_kind(p.kind))
          json.fail("{} is not a kind ([a-z0-9_], at most 32)", shown(p.kind));
        break;
      case 1:
        p.tensor = read_name(json);
        break;
      case 2: {
        const std::string name = json.string(kMaxShort);
        const auto dtype = dtype_of(name);
        if (!dtype) json.fail("unknown dtype {}", shown(name));
        p.dtype = *dtype;
        break;
      }
      case 3:
        p.global_shape = read_dims(json);
        break;
      case 4:
        p.box.start = read_dims(json);
        break;
      case 5:
        p.box.size = read_dims(json);
        break;
      case 6:
        p.file = read_path(json);
        break;
      case 7:
        p.entry = read_name(json);
        break;
      default:
        p.crc32c = read_crc(json);
        break;
    }
  });
  return p;
}

template <class T, class F>
std::vector<T> read_list(JsonScanner& json, size_t max, F&& item) {
  std::vector<T> out;
  json.begin_array();
  while (json.next_element()) {
    if (out.size() == max) json.fail("a list of more than {} elements", max);
    out.push_back(item(json));
  }
  return out;
}

template <class V, class F>
std::map<std::string, V> read_map(JsonScanner& json, F&& value) {
  std::map<std::string, V> out;
  json.begin_object();
  std::string key;
  while (json.next_member(key)) {
    if (out.size() == kMaxEntries) json.fail("a map of more than {} entries", kMaxEntries);
    if (key.size() > kMaxShort) json.fail("a name of {} bytes", key.size());
    V v = value(json);
    if (!out.emplace(key, std::move(v)).second) json.fail("member {} appears twice", shown(key));
  }
  return out;
}

// What must hold of one piece whoever wrote it.
void check_piece(const Piece& p, std::string_view source) {
  const auto refuse = [&](std::string_view why) {
    throw DataError("{}: {} of tensor {}, {} of {} in {}: {}", source, p.kind, shown(p.tensor),
                    p.box.str(), shape_text(p.global_shape), p.file, why);
  };
  if (p.box.start.size() != p.global_shape.size() || p.box.size.size() != p.global_shape.size())
    throw DataError("{}: {} of tensor {} in {}: start and size need one number a dim of {}", source,
                    p.kind, shown(p.tensor), p.file, shape_text(p.global_shape));
  const auto elems = checked_product(p.global_shape);
  if (!elems || !checked_mul(*elems, 8) || *elems > static_cast<uint64_t>(INT64_MAX) / 8)
    refuse("the tensor's size does not fit in 63 bits");
  for (size_t i = 0; i < p.global_shape.size(); ++i) {
    // Dims are at most kMaxDim (48 bits): the sum fits.
    if (p.box.size[i] < 1) refuse("it is empty");
    if (p.box.start[i] + p.box.size[i] > p.global_shape[i]) refuse("it is not within the tensor");
  }
}

// The rules that tie the parts of a manifest together.
void check(const Manifest& m, std::string_view source) {
  if (m.run_id.empty() || m.run_id.size() > 64 || !plain_file_name(m.run_id))
    throw DataError("{}: run id {} is not a plain name of at most 64 characters", source,
                    shown(m.run_id));
  if (m.step < 0 || m.data_position_rows < 0)
    throw DataError("{}: step {} and data position {} must not be negative", source, m.step,
                    m.data_position_rows);
  if (m.mesh.pp < 1 || m.mesh.dp < 1 || m.mesh.tp < 1)
    throw DataError("{}: mesh {} x {} x {}", source, m.mesh.pp, m.mesh.dp, m.mesh.tp);
  for (const auto& [name, value] : m.reals)
    if (!std::isfinite(value)) throw DataError("{}: {} is not finite", source, shown(name));
  std::unordered_set<std::string_view> files;
  for (const FileRecord& f : m.files) {
    if (!safe_relative_path(f.name))
      throw DataError("{}: {} is not a plain file name", source, shown(f.name));
    if (f.name == kManifestFile) throw DataError("{}: the manifest lists itself", source);
    if (!files.insert(f.name).second)
      throw DataError("{}: file {} is listed twice", source, f.name);
  }
  using Key = std::pair<std::string_view, std::string_view>;
  std::set<Key> entries;
  std::map<Key, std::vector<const Piece*>> tensors;
  for (const Piece& p : m.pieces) {
    if (!valid_kind(p.kind)) throw DataError("{}: {} is not a kind", source, shown(p.kind));
    check_piece(p, source);
    if (!files.contains(p.file))
      throw DataError("{}: {} of tensor {} is in {}, which is not listed", source, p.kind,
                      shown(p.tensor), p.file);
    if (!entries.emplace(p.file, p.entry).second)
      throw DataError("{}: entry {} of {} is used twice", source, shown(p.entry), p.file);
    tensors[{p.kind, p.tensor}].push_back(&p);
  }
  for (auto& [key, pieces] : tensors) {
    const Piece& first = *pieces.front();
    if (pieces.size() > kMaxPiecesOfTensor)
      throw DataError("{}: {} of tensor {} is in {} pieces; at most {} are allowed", source,
                      first.kind, shown(first.tensor), pieces.size(), kMaxPiecesOfTensor);
    std::sort(pieces.begin(), pieces.end(),
              [](const Piece* a, const Piece* b) { return a->box.start < b->box.start; });
    uint64_t covered = 0;
    for (size_t i = 0; i < pieces.size(); ++i) {
      const Piece& a = *pieces[i];
      if (a.global_shape != first.global_shape || a.dtype != first.dtype)
        throw DataError("{}: {} of tensor {}: pieces disagree: {} {} and {} {}", source, a.kind,
                        shown(a.tensor), safetensors_name(first.dtype),
                        shape_text(first.global_shape), safetensors_name(a.dtype),
                        shape_text(a.global_shape));
      covered = must_fit(checked_add(covered, static_cast<uint64_t>(a.box.elems())),
                         "elements of pieces");
      for (size_t j = i + 1; j < pieces.size() && !a.global_shape.empty() &&
                             pieces[j]->box.start[0] < a.box.start[0] + a.box.size[0];
           ++j)
        if (intersect(a.box, pieces[j]->box).elems() > 0)
          throw DataError("{}: {} of tensor {}: pieces {} and {} overlap", source, a.kind,
                          shown(a.tensor), a.box.str(), pieces[j]->box.str());
    }
    const auto elems = *checked_product(first.global_shape);
    if (covered != elems || (first.global_shape.empty() && pieces.size() != 1))
      throw DataError("{}: {} of tensor {} {}: the pieces hold {} of its {} elements", source,
                      first.kind, shown(first.tensor), shape_text(first.global_shape), covered,
                      elems);
  }
}

}  // namespace

std::string to_json(const Contribution& c) {
  return "{\"files\":" + list_json(c.files, file_json) +
         ",\n\"pieces\":" + list_json(c.pieces, piece_json) + "}\n";
}

Contribution contribution_from_json(std::string_view text, std::string_view source) {
  JsonScanner json(text, source);
  Contribution c;
  constexpr std::array<std::string_view, 2> kFields{"files", "pieces"};
  read_object(json, kFields, [&](size_t i) {
    if (i == 0)
      c.files = read_list<FileRecord>(json, kMaxFilesListed, read_file_record);
    else
      c.pieces = read_list<Piece>(json, kMaxPieces, read_piece);
  });
  json.end();
  return c;
}

void Manifest::add(const Contribution& c) {
  files.insert(files.end(), c.files.begin(), c.files.end());
  pieces.insert(pieces.end(), c.pieces.begin(), c.pieces.end());
}

const FileRecord* Manifest::find_file(std::string_view name) const {
  const auto it =
      std::find_if(files.begin(), files.end(), [&](const FileRecord& f) { return f.name == name; });
  return it == files.end() ? nullptr : &*it;
}

std::string to_json(const Manifest& m) {
  try {
    check(m, "manifest");
  } catch (const DataError& e) {
    throw InternalError("cannot write this {}", e.what());
  }
  const auto number = [](auto v) { return fmt::format("{}", v); };
  std::string out = fmt::format(
      "{{\"format\":{},\n\"version\":{},\n\"run_id\":{},\n\"step\":{},\n\"rng_seed\":{},\n\"data_"
      "position_rows\":{},\n"
      "\"config\":{},\n\"mesh\":{{\"pp\":{},\"dp\":{},\"tp\":{}}},\n\"fingerprints\":{},"
      "\n\"counters\":{},\n\"reals\":{},\n",
      json_string(kFormat), m.version, json_string(m.run_id), m.step, m.rng_seed,
      m.data_position_rows, json_string(m.config_text), m.mesh.pp, m.mesh.dp, m.mesh.tp,
      map_json(m.fingerprints, [](const std::string& v) { return json_string(v); }),
      map_json(m.counters, number), map_json(m.reals, number));
  out += "\"files\":" + list_json(m.files, file_json) +
         ",\n\"pieces\":" + list_json(m.pieces, piece_json);
  const uint32_t crc = crc32c(out);
  out += fmt::format("{}{}{}", kSealBegin, hex8(crc), kSealEnd);
  R1_CHECK(out.size() <= kMaxManifestBytes, "a manifest of {} bytes", out.size());
  return out;
}

Manifest manifest_from_json(std::string_view text, std::string_view source) {
  if (text.size() > kMaxManifestBytes)
    throw DataError("{}: has {} bytes; at most {} are allowed", source, text.size(),
                    kMaxManifestBytes);
  const size_t body = text.size() < kSealBytes ? 0 : text.size() - kSealBytes;
  const std::string_view seal = text.substr(body);
  const auto sum =
      seal.size() == kSealBytes && seal.starts_with(kSealBegin) && seal.ends_with(kSealEnd)
          ? parse_hex8(seal.substr(kSealBegin.size(), 8))
          : std::nullopt;
  if (!sum)
    throw DataError(
        "{}: does not end with its checksum: it is cut short, or not a manifest of r1run", source);
  if (const uint32_t found = crc32c(text.substr(0, body)); found != *sum)
    throw DataError("{}: CRC32C mismatch: its text has {}, it says {}: it was damaged", source,
                    hex8(found), hex8(*sum));

  JsonScanner json(text, source);
  Manifest m;
  constexpr std::array<std::string_view, 14> kFields{
      "format", "version",        "run_id",       "step",     "rng_seed", "data_position_rows",
      "config", "mesh",           "fingerprints", "counters", "reals",    "files",
      "pieces", "manifest_crc32c"};
  read_object(json, kFields, [&](size_t i) {
    switch (i) {
      case 0:
        if (const std::string format = json.string(kMaxShort); format != kFormat)
          json.fail("the format is {}, not {}", shown(format), shown(kFormat));
        break;
      case 1:
        m.version = static_cast<int>(json.unsigned_integer(INT32_MAX));
        if (m.version != kManifestVersion)
          json.fail("version {}; this r1run reads version {}", m.version, kManifestVersion);
        break;
      case 2:
        m.run_id = json.string(kMaxShort);
        break;
      case 3:
        m.step = static_cast<int64_t>(json.unsigned_integer(INT64_MAX));
        break;
      case 4:
        m.rng_seed = json.unsigned_integer(UINT64_MAX);
        break;
      case 5:
        m.data_position_rows = static_cast<int64_t>(json.unsigned_integer(INT64_MAX));
        break;
      case 6:
        m.config_text = json.string(kMaxText);
        break;
      case 7: {
        constexpr std::array<std::string_view, 3> kAxes{"pp", "dp", "tp"};
        const std::array<int*, 3> axes{&m.mesh.pp, &m.mesh.dp, &m.mesh.tp};
        read_object(json, kAxes,
                    [&](size_t a) { *axes[a] = static_cast<int>(json.unsigned_integer(1 << 20)); });
        break;
      }
      case 8:
        m.fingerprints =
            read_map<std::string>(json, [](JsonScanner& j) { return j.string(kMaxShort); });
        break;
      case 9:
        m.counters = read_map<int64_t>(json, [](JsonScanner& j) { return j.integer(); });
        break;
      case 10:
        m.reals = read_map<double>(json, [](JsonScanner& j) { return j.real(); });
        break;
      case 11:
        m.files = read_list<FileRecord>(json, kMaxFilesListed, read_file_record);
        break;
      case 12:
        m.pieces = read_list<Piece>(json, kMaxPieces, read_piece);
        break;
      default:
        (void)read_crc(json);
        break;
    }
  });
  json.end();
  check(m, source);
  return m;
}

}  // namespace r1::checkpoint
