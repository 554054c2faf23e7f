// Writing a checkpoint by many ranks that do not talk to each other while they write: each leaves its pieces, and a note of
// them, in the staging directory; one rank of a stage makes whole tensors of pieces; the first rank gathers the notes.
//
//   r1run/state-00003-of-00008.safetensors   pieces of masters and moments: stay
//   r1run/weights-00003.safetensors          pieces of weights, until whole tensors are made of them
//   r1run/rank-00003.<what>.json             notes, until the manifest is made of them
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "runtime/checkpoint/manifest.h"

namespace r1::checkpoint {

/// A piece to be written and where its bytes come from.
struct SourcePiece {
  Piece piece;  ///< file, entry and checksum are filled in by the writer
  Box held;     ///< the box of the global tensor that the memory holds, dense; contains piece.box
  DType held_dtype = DType::kF32;
  /// The memory, on the host; valid until the next call of any source.
  std::function<const char*()> data;
};

/// Writes the pieces into one safetensors file of `stage`, converting where dtypes differ. Throws StorageError.
[[nodiscard]] Contribution write_pieces(const fs::path& stage, const std::string& file, std::vector<SourcePiece> sources,
                                        SyscallHook* hook = nullptr);

/// A tensor to be made whole: from memory that holds all of it, or from pieces in files of the staging directory.
struct WholeTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::optional<SourcePiece> memory;
  std::vector<Piece> pieces;  ///< disjoint; must cover the tensor
};
/// Writes weights of the model as `dtype` into one safetensors file, in bounded memory. Throws StorageError; DataError when a
/// piece cannot be read.
[[nodiscard]] Contribution write_whole_tensors(const fs::path& stage, const std::string& file, DType dtype,
                                               const std::vector<WholeTensor>& tensors, SyscallHook* hook = nullptr);

/// "r1run/rank-00003.state.json"
[[nodiscard]] std::string note_name(int rank, std::string_view what);
void write_note(const fs::path& stage, int rank, std::string_view what, const Contribution& contribution,
                SyscallHook* hook = nullptr);
/// Waits some seconds for the note to show on this host (shared file systems cache). Throws StorageError when it does not.
[[nodiscard]] Contribution read_note(const fs::path& stage, int rank, std::string_view what);

}  // namespace r1::checkpoint
