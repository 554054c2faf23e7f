// A Hugging Face model directory, read-only: config.json, and model.safetensors or
// model.safetensors.index.json with the files that it names. Nothing in it is ever executed or
// trusted: sizes are checked before anything is allocated.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "parallel/shard/shard.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/checkpoint/slice.h"

namespace r1::checkpoint {

/// A file of a directory with its size and checksum.
struct FileRecord {
  std::string name;  ///< relative to the directory, '/' between parts
  uint64_t bytes = 0;
  uint32_t crc32c = 0;
  friend bool operator==(const FileRecord&, const FileRecord&) = default;
};

/// [A-Za-z0-9._-]{1,255} without a leading dot: a name that cannot leave its directory.
[[nodiscard]] bool plain_file_name(std::string_view name);

/// The weight map of a model.safetensors.index.json: tensor name to file. Pure. Throws DataError;
/// file names must be plain base names ([A-Za-z0-9._-]{1,255}, no leading dot), tensor names
/// unique.
[[nodiscard]] std::unordered_map<std::string, std::string> parse_weight_index(
    std::string_view json, std::string_view source);
/// The same, to be written: {"metadata": {"total_size": ...}, "weight_map": {tensor: file}} sorted
/// by name. `total_bytes`: of all tensors.
[[nodiscard]] std::string weight_index_json(const std::map<std::string, std::string>& weight_map,
                                            uint64_t total_bytes);
/// "model.safetensors" for one file, else "model-00002-of-00005.safetensors" (`index` from 0).
[[nodiscard]] std::string weight_file_name(int index, int count);

/// Move-only; reads are thread-safe.
class HfModelDir {
 public:
  /// Opens every weight file and checks its header; reads no weights. Throws DataError: not a
  /// directory, no config.json, no weights (or only weights in pickle form), files of the index
  /// missing or cut short (all of them are listed), a tensor in two files or not in the file that
  /// the index names.
  [[nodiscard]] static HfModelDir open(const fs::path& dir);
  /// The same without weights: for `--init random` and for tokenizer-only use.
  [[nodiscard]] static HfModelDir open_config_only(const fs::path& dir);

  [[nodiscard]] const fs::path& path() const { return dir_; }
  [[nodiscard]] const std::string& config_json() const { return config_; }
  [[nodiscard]] bool has(std::string_view name) const;
  /// Throws DataError naming the directory when it is not there.
  [[nodiscard]] const TensorEntry& entry(std::string_view name) const;
  /// The file that holds the tensor.
  [[nodiscard]] const SafetensorsFile& file_of(std::string_view name) const;
  [[nodiscard]] std::vector<std::string> names() const;  ///< sorted
  [[nodiscard]] const std::vector<SafetensorsFile>& files() const { return files_; }
  /// Bytes of all tensors.
  [[nodiscard]] uint64_t total_bytes() const;

  /// Reads the part of `rank` (dense, row-major, spec.local_shape(rank)) into `dst`, converting the
  /// stored dtype (F32, F16, BF16, F64) to `dtype`. Reads only the bytes of that part; holds one
  /// buffer of 4 MiB at most. Throws DataError when the tensor is missing, has another shape than
  /// spec.global_shape(), or its dtype cannot be converted.
  void read_shard(std::string_view name, const parallel::ShardSpec& spec, int rank, DType dtype,
                  void* dst) const;
  /// The same for any box of a tensor of the shape `global_shape`.
  void read_box(std::string_view name, std::span<const int64_t> global_shape, const Box& want,
                DType dtype, void* dst) const;

  /// Copies what transformers wants beside the weights (config.json, generation_config.json,
  /// tokenizer files, chat templates, licence), never code, into the directory `to`; returns what
  /// it copied. Throws StorageError.
  std::vector<FileRecord> copy_side_files(const fs::path& to, SyscallHook* hook = nullptr) const;

 private:
  HfModelDir() = default;
  fs::path dir_;
  std::string config_;
  std::vector<SafetensorsFile> files_;
  struct Place {
    size_t file = 0, tensor = 0;
  };
  std::unordered_map<std::string, Place> places_;
};

}  // namespace r1::checkpoint
