#include "runtime/checkpoint/hf_model.h"

#include <algorithm>
#include <array>
#include <map>
#include <unordered_set>

#include "runtime/checkpoint/checked.h"
#include "runtime/checkpoint/crc32c.h"
#include "runtime/checkpoint/json_scanner.h"
#include "runtime/checkpoint/piece_io.h"
#include "runtime/core/log.h"

namespace r1::checkpoint {
namespace {

constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";
constexpr size_t kMaxConfigBytes = 16u << 20;
constexpr size_t kMaxIndexBytes = 256u << 20;
constexpr size_t kMaxFiles = 10'000;

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

std::string read_config(const fs::path& dir) {
  std::error_code error;
  if (!fs::exists(dir, error)) throw DataError("{}: no such directory", dir.string());
  if (!fs::is_directory(dir, error)) throw DataError("{}: is not a directory", dir.string());
  if (!is_there(dir / "config.json"))
    throw DataError("{}: is not a Hugging Face model directory: there is no config.json in it",
                    dir.string());
  return read_text_file(dir / "config.json", kMaxConfigBytes);
}

// What to say when there are no safetensors weights.
[[noreturn]] void fail_no_weights(const fs::path& dir) {
  for (const std::string_view name : {"pytorch_model.bin", "pytorch_model.bin.index.json"})
    if (is_there(dir / name))
      throw DataError(
          "{}: has only pickled weights ({}), which can run code when loaded; convert them to "
          "safetensors "
          "(save_pretrained does)",
          dir.string(), name);
  if (is_there(dir / "adapter_model.safetensors"))
    throw DataError("{}: holds an adapter, not a model; merge it into its base model first",
                    dir.string());
  throw DataError("{}: has neither {} nor {}", dir.string(), kSingle, kIndex);
}

}  // namespace

bool plain_file_name(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name[0] != '.' &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '.' || c == '_' || c == '-';
         });
}

std::unordered_map<std::string, std::string> parse_weight_index(std::string_view text,
                                                                std::string_view source) {
  JsonScanner json(text, source);
  std::unordered_map<std::string, std::string> map;
  bool seen = false;
  json.begin_object();
  std::string member;
  std::unordered_set<std::string> files;
  while (json.next_member(member)) {
    if (member != "weight_map") {
      json.skip_value();  // "metadata": {"total_size": ...}, and whatever else
      continue;
    }
    if (seen) json.fail("\"weight_map\" appears twice");
    seen = true;
    json.begin_object();
    std::string tensor;
    while (json.next_member(tensor)) {
      if (tensor.size() > kMaxNameBytes) json.fail("a tensor name of {} bytes", tensor.size());
      if (tensor.find('\0') != std::string::npos)
        json.fail("the tensor name {} has a NUL in it", shown(tensor));
      std::string file = json.string(4096);
      if (!plain_file_name(file))
        json.fail(
            "tensor {} is said to be in {}; file names must be plain: letters, digits, \".\", "
            "\"_\", \"-\", no "
            "leading dot",
            shown(tensor), shown(file));
      if (map.size() == kMaxTensors) json.fail("more than {} tensors", kMaxTensors);
      files.insert(file);
      if (files.size() > kMaxFiles) json.fail("more than {} files", kMaxFiles);
      if (!map.emplace(tensor, std::move(file)).second)
        json.fail("tensor {} appears twice", shown(tensor));
    }
  }
  json.end();
  if (!seen) throw DataError("{}: \"weight_map\" is missing", source);
  return map;
}

std::string weight_index_json(const std::map<std::string, std::string>& weight_map,
                              uint64_t total_bytes) {
  std::string out = fmt::format(
      "{{\n  \"metadata\": {{\n    \"total_size\": {}\n  }},\n  \"weight_map\": {{", total_bytes);
  bool first = true;
  for (const auto& [tensor, file] : weight_map) {
    out += fmt::format("{}\n    {}: {}", first ? "" : ",", json_string(tensor), json_string(file));
    first = false;
  }
  return out + "\n  }\n}\n";
}

std::string weight_file_name(int index, int count) {
  R1_CHECK(0 <= index && index < count, "file {} of {}", index, count);
  return count == 1 ? std::string(kSingle)
                    : fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, count);
}

HfModelDir HfModelDir::open_config_only(const fs::path& dir) {
  HfModelDir m;
  m.config_ = read_config(dir);
  m.dir_ = dir;
  return m;
}

HfModelDir HfModelDir::open(const fs::path& dir) {
  HfModelDir m = open_config_only(dir);
  std::unordered_map<std::string, std::string> index;
  std::vector<std::string> names;
  const bool sharded = !is_there(dir / kSingle) && is_there(dir / kIndex);
  if (sharded) {
    const fs::path path = dir / kIndex;
    index = parse_weight_index(read_text_file(path, kMaxIndexBytes), path.string());
    if (index.empty()) throw DataError("{}: \"weight_map\" names no tensors", path.string());
    for (const auto& [tensor, file] : index) names.push_back(file);
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    std::string missing;
    size_t n_missing = 0;
    for (const std::string& name : names)
      if (!is_there(dir / name) && ++n_missing <= 20)
        missing += (missing.empty() ? "" : ", ") + name;
    if (n_missing > 0)
      throw DataError(
          "{}: {} of {} weight files that {} names are missing (half a download?): {}{}",
          dir.string(), n_missing, names.size(), kIndex, missing, n_missing > 20 ? ", ..." : "");
  } else if (is_there(dir / kSingle)) {
    names.emplace_back(kSingle);
  } else {
    fail_no_weights(dir);
  }

  m.files_.reserve(names.size());
  for (const std::string& name : names) m.files_.push_back(SafetensorsFile::open(dir / name));
  for (size_t f = 0; f < m.files_.size(); ++f) {
    const std::vector<TensorEntry>& tensors = m.files_[f].tensors();
    size_t unnamed = 0;
    for (size_t t = 0; t < tensors.size(); ++t) {
      const auto [it, added] = m.places_.emplace(tensors[t].name, Place{f, t});
      if (!added)
        throw DataError("{}: tensor {} is in {} and in {}", dir.string(), shown(tensors[t].name),
                        names[it->second.file], names[f]);
      if (!sharded) continue;
      const auto in_index = index.find(tensors[t].name);
      if (in_index == index.end()) {
        ++unnamed;
      } else if (in_index->second != names[f]) {
        throw DataError("{}: {} says that tensor {} is in {}, but it is in {}", dir.string(),
                        kIndex, shown(tensors[t].name), in_index->second, names[f]);
      }
    }
    if (unnamed > 0)
      log::warn("{}: {} tensors are not named by {}", (dir / names[f]).string(), unnamed, kIndex);
  }
  for (const auto& [tensor, file] : index)
    if (!m.places_.contains(tensor))
      throw DataError("{}: {} says that tensor {} is in {}, but it is not", dir.string(), kIndex,
                      shown(tensor), file);
  return m;
}

bool HfModelDir::has(std::string_view name) const { return places_.contains(std::string(name)); }

const SafetensorsFile& HfModelDir::file_of(std::string_view name) const {
  const auto it = places_.find(std::string(name));
  if (it == places_.end())
    throw DataError("{}: there is no tensor {} in it", dir_.string(), shown(name));
  return files_[it->second.file];
}

const TensorEntry& HfModelDir::entry(std::string_view name) const { return file_of(name).at(name); }

std::vector<std::string> HfModelDir::names() const {
  std::vector<std::string> out;
  out.reserve(places_.size());
  for (const auto& [name, place] : places_) out.push_back(name);
  std::sort(out.begin(), out.end());
  return out;
}

uint64_t HfModelDir::total_bytes() const {
  uint64_t total = 0;
  for (const SafetensorsFile& f : files_)
    for (const TensorEntry& t : f.tensors())
      total = must_fit(checked_add(total, t.bytes()), "bytes of a model");
  return total;
}

void HfModelDir::read_shard(std::string_view name, const parallel::ShardSpec& spec, int rank,
                            DType dtype, void* dst) const {
  read_box(name, spec.global_shape(), box_of(spec, rank), dtype, dst);
}

void HfModelDir::read_box(std::string_view name, std::span<const int64_t> global_shape,
                          const Box& want, DType dtype, void* dst) const {
  const SafetensorsFile& file = file_of(name);
  const TensorEntry& t = file.at(name);
  if (!std::equal(t.shape.begin(), t.shape.end(), global_shape.begin(), global_shape.end()))
    throw DataError("{}: tensor {} has the shape {}; this model's configuration asks for {}",
                    file.path().string(), shown(name), shape_text(t.shape),
                    shape_text(global_shape));
  if (!t.dtype || !convertible(*t.dtype, dtype))
    throw DataError(
        "{}: tensor {} is stored as {}, which cannot be read as {}; F32, F16, BF16 and F64 can",
        file.path().string(), shown(name), t.dtype_name, dtype_name(dtype));
  read_part(file, t, whole_box(t.shape), want, want, dtype, dst);
}

std::vector<FileRecord> HfModelDir::copy_side_files(const fs::path& to, SyscallHook* hook) const {
  // A list and not a pattern: what is not known to be data is not copied.
  constexpr std::array<std::string_view, 17> kNames{"config.json",
                                                    "generation_config.json",
                                                    "tokenizer.json",
                                                    "tokenizer_config.json",
                                                    "special_tokens_map.json",
                                                    "added_tokens.json",
                                                    "vocab.json",
                                                    "vocab.txt",
                                                    "merges.txt",
                                                    "tokenizer.model",
                                                    "spiece.model",
                                                    "chat_template.jinja",
                                                    "chat_template.json",
                                                    "LICENSE",
                                                    "LICENSE.txt",
                                                    "NOTICE",
                                                    "USE_POLICY.md"};
  std::vector<FileRecord> out;
  for (const std::string_view name : kNames) {
    if (!is_there(dir_ / name)) continue;
    const ReadFile in(dir_ / name);
    NewFile copy(to / name, 0, hook);
    FileRecord record{std::string(name), in.size(), 0};
    std::vector<char> buffer(static_cast<size_t>(std::min<uint64_t>(in.size(), kChunkBytes)));
    for (uint64_t at = 0; at < in.size();) {
      const size_t n = static_cast<size_t>(std::min<uint64_t>(buffer.size(), in.size() - at));
      in.read(at, buffer.data(), n);
      copy.write(buffer.data(), n);
      record.crc32c = crc32c(buffer.data(), n, record.crc32c);
      at += n;
    }
    copy.finish();
    out.push_back(std::move(record));
  }
  return out;
}

}  // namespace r1::checkpoint
