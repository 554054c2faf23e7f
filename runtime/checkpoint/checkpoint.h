// Reading a committed checkpoint in any layout, and the file writer for pieces.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/checkpoint/manifest.h"

namespace r1::checkpoint {

/// How much is checked when only part of a piece is wanted (whole pieces are always checked).
enum class PartialReads {
  kUnchecked,  ///< reads the wanted bytes only; run verify_part() on some rank to have the
               ///< checksums checked
  kChecked,    ///< reads the whole piece to check it
};

/// Move-only; reads are thread-safe.
class CheckpointReader {
 public:
  /// Reads the manifest and compares the size of every file with it; a file's header is
  /// checked (against the manifest, with its checksum) at its first use. Throws DataError naming
  /// the file.
  [[nodiscard]] static CheckpointReader open(const fs::path& dir);
  CheckpointReader(CheckpointReader&&) noexcept;
  CheckpointReader& operator=(CheckpointReader&&) noexcept;
  ~CheckpointReader();
  [[nodiscard]] const fs::path& path() const { return dir_; }
  [[nodiscard]] const Manifest& manifest() const { return manifest_; }
  [[nodiscard]] bool has(std::string_view kind, std::string_view tensor) const;
  [[nodiscard]] const std::vector<int64_t>& global_shape(std::string_view kind,
                                                         std::string_view tensor) const;
  [[nodiscard]] DType dtype(std::string_view kind, std::string_view tensor) const;
  /// Reads the part of `rank` (dense, spec.local_shape(rank)) of a tensor of any kind, from
  /// whatever pieces hold it, converting to `dtype`. Throws DataError: no such tensor, another
  /// shape, a checksum that differs (file, tensor, both sums).
  void read(std::string_view kind, std::string_view tensor, const parallel::ShardSpec& spec,
            int rank, DType dtype, void* dst,
            PartialReads partial = PartialReads::kUnchecked) const;
  /// The same for any box.
  void read_box(std::string_view kind, std::string_view tensor,
                std::span<const int64_t> global_shape, const Box& want, DType dtype, void* dst,
                PartialReads partial = PartialReads::kUnchecked) const;

  struct Verified {
    uint64_t files = 0, bytes = 0;
  };
  /// Checks the checksums of all files and pieces. Throws DataError naming every file and tensor
  /// that differs.
  Verified verify_all() const { return verify_part(0, 1); }
  /// The share `part` of `parts` of that work: ranks that call it with their own number check
  /// everything once.
  Verified verify_part(int part, int parts) const;

 private:
  struct Files;
  CheckpointReader();
  [[nodiscard]] const std::vector<size_t>& pieces_of(std::string_view kind,
                                                     std::string_view tensor) const;
  /// Opens the file at its first use and checks its header against the manifest.
  [[nodiscard]] const SafetensorsFile& file(const std::string& name) const;
  [[nodiscard]] std::string mismatch(const Piece& piece, uint32_t found) const;
  fs::path dir_;
  Manifest manifest_;
  std::unique_ptr<Files> files_;
  std::unordered_map<std::string, std::vector<size_t>> pieces_;          // "kind:tensor" to pieces
  std::unordered_map<std::string, std::vector<size_t>> pieces_of_file_;  // file to pieces
};

/// "model.norm.weight" for a whole weight, "exp_avg:model.norm.weight[0:128]" for others: the
/// entry's name in a file.
[[nodiscard]] std::string entry_name(const Piece& piece);

/// Writes pieces into one safetensors file of a staged checkpoint and keeps the account for the
/// manifest.
class PieceWriter {
 public:
  /// `file` is relative to `stage` ("r1run/rank-00003.safetensors"); its folder must exist. Fills
  /// in file and entry of the pieces and puts them into file order; write() follows pieces().
  PieceWriter(const fs::path& stage, const std::string& file, std::vector<Piece> pieces,
              SyscallHook* hook = nullptr);
  [[nodiscard]] const std::vector<Piece>& pieces() const { return pieces_; }
  /// Appends data to piece `index` of pieces(); pieces in order, each in as many parts as the
  /// caller likes.
  void write(size_t index, const void* data, size_t bytes);
  /// fsync and rename; the account.
  Contribution finish();

 private:
  std::string file_;
  std::vector<Piece> pieces_;
  std::unique_ptr<SafetensorsWriter> writer_;
};

/// Writes a small file of a staged checkpoint (config.json, ...); the record is for the manifest.
FileRecord write_staged_text(const fs::path& stage, const std::string& file, std::string_view text,
                             SyscallHook* hook = nullptr);
/// Writes model.safetensors.index.json from the weights among `pieces` (of all ranks) when they are
/// in several files; transformers needs none when there is one.
std::optional<FileRecord> write_weight_index(const fs::path& stage,
                                             const std::vector<Piece>& pieces,
                                             SyscallHook* hook = nullptr);

}  // namespace r1::checkpoint
