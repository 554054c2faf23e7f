// What a checkpoint of r1run holds: one JSON file, r1run/manifest.json, that names every file with
// its size and checksum, and every piece of every tensor by its global name, its box of the global
// tensor and its checksum. Nothing in it depends on the layout that wrote it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/checkpoint/hf_model.h"

namespace r1::checkpoint {

inline constexpr int kManifestVersion = 1;
/// Relative to the checkpoint's directory.
inline constexpr std::string_view kManifestFile = "r1run/manifest.json";
inline constexpr size_t kMaxManifestBytes = 512u << 20;

/// Kinds of pieces. A kind is any name of [a-z0-9_]{1,32}; these are the ones r1run writes.
inline constexpr std::string_view kKindWeight =
    "weight";  ///< in the model's dtype, in the HF files
inline constexpr std::string_view kKindMaster = "master";        ///< fp32 master weight
inline constexpr std::string_view kKindExpAvg = "exp_avg";       ///< Adam's first moment
inline constexpr std::string_view kKindExpAvgSq = "exp_avg_sq";  ///< Adam's second moment

/// One tensor of one safetensors file: a box of a global tensor. A box and not one interval,
/// because ZeRO cuts dim 0 of what tensor parallelism may have cut along dim 1.
struct Piece {
  std::string tensor;  ///< global name, e.g. "model.norm.weight"
  std::string kind;    ///< "weight", "master", "exp_avg", "exp_avg_sq"
  DType dtype = DType::kF32;
  std::vector<int64_t> global_shape;
  Box box;              ///< of the global tensor; the entry in the file has the shape box.size
  std::string file;     ///< relative to the checkpoint's directory
  std::string entry;    ///< name in that file
  uint32_t crc32c = 0;  ///< of the entry's bytes
  friend bool operator==(const Piece&, const Piece&) = default;
};

/// What one rank wrote.
struct Contribution {
  std::vector<FileRecord> files;
  std::vector<Piece> pieces;
};
/// For the way to the rank that commits.
[[nodiscard]] std::string to_json(const Contribution& contribution);
[[nodiscard]] Contribution contribution_from_json(std::string_view json, std::string_view source);

struct MeshRecord {
  int pp = 1, dp = 1, tp = 1;
  friend bool operator==(const MeshRecord&, const MeshRecord&) = default;
};

struct Manifest {
  int version = kManifestVersion;
  std::string run_id;
  int64_t step = 0;  ///< optimizer steps done
  uint64_t rng_seed = 0;
  int64_t data_position_rows = 0;                   ///< rows consumed, over all ranks
  std::string config_text;                          ///< the resolved configuration (INI)
  MeshRecord mesh;                                  ///< the layout that wrote it: for information
  std::map<std::string, std::string> fingerprints;  ///< "model_config", "tokenizer", "data", ...
  std::map<std::string, int64_t>
      counters;                         ///< whatever else must continue: skipped steps, epoch, ...
  std::map<std::string, double> reals;  ///< the same for numbers that are not whole; finite
  std::vector<FileRecord> files;
  std::vector<Piece> pieces;

  void add(const Contribution& contribution);
  [[nodiscard]] const FileRecord* find_file(std::string_view name) const;
  friend bool operator==(const Manifest&, const Manifest&) = default;
};

/// Throws InternalError when the manifest breaks a rule of manifest_from_json. The text ends with
/// its own CRC-32C.
[[nodiscard]] std::string to_json(const Manifest& manifest);
/// Pure, bounded and strict: throws DataError naming `source` and the place when the text was
/// changed in any byte, has an unknown, missing or repeated member, a path that leaves the
/// directory, a piece outside its tensor or in a file not listed, or when the pieces of a kind and
/// tensor overlap or do not cover it.
[[nodiscard]] Manifest manifest_from_json(std::string_view json, std::string_view source);

}  // namespace r1::checkpoint
