// safetensors files, read and written strictly: 8 bytes N (little-endian), N bytes of JSON header,
// then the data, which the header must index completely. Format: the README, JSON schema and
// reference reader of huggingface/safetensors.
//
// The reader is stricter than the reference reader where the reference lets two readers see two
// different files (duplicate names), and bounds what a header may ask for (kMax... below).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/checkpoint/io.h"
#include "runtime/core/dtype.h"

namespace r1::checkpoint {

inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;     ///< the reference's limit
inline constexpr uint64_t kMaxOwnHeaderBytes = 64ull << 20;  ///< of files that r1run wrote
inline constexpr uint64_t kMaxDim =
    (uint64_t{1} << 48) - 1;  ///< the JSON schema's limit of every integer
inline constexpr size_t kMaxTensors = 1'000'000;
inline constexpr size_t kMaxNameBytes = 1024;
inline constexpr size_t kMaxRank = 16;

/// One tensor of a file. `begin` and `end` are bytes from the start of the data buffer.
struct TensorEntry {
  std::string name;
  std::string dtype_name;      ///< as in the file: "F32", "BF16", "F8_E4M3", ...
  std::optional<DType> dtype;  ///< the same as a type of ours, when we have it
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;
  [[nodiscard]] uint64_t bytes() const { return end - begin; }
  [[nodiscard]] uint64_t elems() const;
  friend bool operator==(const TensorEntry&, const TensorEntry&) = default;
};

/// "F32", "BF16", ... of a DType.
[[nodiscard]] std::string_view safetensors_name(DType dtype);
/// Bits of an element of a safetensors dtype; nothing for a name that is not one.
[[nodiscard]] std::optional<int> safetensors_bits(std::string_view dtype_name);
/// "[2, 3]".
[[nodiscard]] std::string shape_text(std::span<const int64_t> shape);

enum class HeaderRules {
  kForeign,  ///< fields of a tensor entry that we do not know are ignored, as the reference does
  kOwn,      ///< they are errors, and the header may have kMaxOwnHeaderBytes at most
};
struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  ///< in the order of their data
  std::map<std::string, std::string> metadata;
  size_t ignored_fields = 0;  ///< unknown fields of tensor entries (kForeign)
};
/// Parses and checks a header (the N bytes of JSON) of a file whose data buffer has `data_bytes`
/// bytes. Pure. Throws DataError naming `source`, the byte of the header or the tensor, what was
/// found and what was expected.
[[nodiscard]] SafetensorsHeader parse_safetensors_header(std::string_view header,
                                                         uint64_t data_bytes,
                                                         std::string_view source,
                                                         HeaderRules rules = HeaderRules::kForeign);

/// A file, open for reading. Opening reads and checks the header only. Move-only; reads are
/// thread-safe.
class SafetensorsFile {
 public:
  /// Throws DataError.
  [[nodiscard]] static SafetensorsFile open(const fs::path& path,
                                            HeaderRules rules = HeaderRules::kForeign);
  [[nodiscard]] const fs::path& path() const { return file_.path(); }
  [[nodiscard]] uint64_t file_bytes() const { return file_.size(); }
  /// In the order of their data.
  [[nodiscard]] const std::vector<TensorEntry>& tensors() const { return header_.tensors; }
  [[nodiscard]] const TensorEntry* find(std::string_view name) const;
  /// Throws DataError naming the file when the tensor is not in it.
  [[nodiscard]] const TensorEntry& at(std::string_view name) const;
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const {
    return header_.metadata;
  }
  /// `bytes` bytes of the tensor from `offset` bytes into it, by pread.
  void read_bytes(const TensorEntry& tensor, uint64_t offset, void* dst, size_t bytes) const;
  /// CRC-32C of everything before the data: the length and the header.
  [[nodiscard]] uint32_t header_crc32c() const { return header_crc_; }
  /// Throws DataError when the file's size has changed since it was opened.
  void check_unchanged() const { file_.check_unchanged(); }

 private:
  SafetensorsFile(ReadFile file, SafetensorsHeader header, uint64_t data_begin,
                  uint32_t header_crc);
  ReadFile file_;
  SafetensorsHeader header_;
  uint64_t data_begin_ = 0;
  uint32_t header_crc_ = 0;
  std::unordered_map<std::string_view, size_t> index_;  // views into header_.tensors
};

/// A tensor to be written.
struct TensorDecl {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
};
struct TensorSummary {
  std::string name;
  uint64_t bytes = 0;
  uint32_t crc32c = 0;
};
/// What a finished file holds.
struct FileSummary {
  std::string name;  ///< base name
  uint64_t bytes = 0;
  uint32_t crc32c = 0;                 ///< of the whole file
  std::vector<TensorSummary> tensors;  ///< in file order
};

/// Puts declarations into the order a file wants: widest elements first (so that every tensor is
/// aligned to its element), otherwise as they are.
void sort_for_file(std::vector<TensorDecl>& tensors);

/// Writes a file tensor by tensor, never holding more than the caller's piece of one. The file
/// appears under its name, whole and fsynced, in finish(); until then it has a temporary name, and
/// goes away with the writer. Throws StorageError.
class SafetensorsWriter {
 public:
  /// The tensors in file order. R1_CHECKs that names are unique and every tensor starts aligned to
  /// its element.
  SafetensorsWriter(const fs::path& path, std::vector<TensorDecl> tensors,
                    const std::map<std::string, std::string>& metadata = {},
                    SyscallHook* hook = nullptr);
  ~SafetensorsWriter();
  SafetensorsWriter(SafetensorsWriter&&) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) noexcept;
  /// Appends to the tensor `name`: tensors come in declared order, each in as many pieces as the
  /// caller likes.
  void write(std::string_view name, const void* data, size_t bytes);
  /// All tensors must be complete. fsync, rename, fsync of the folder.
  FileSummary finish();
  /// Bytes that a file of these tensors takes.
  [[nodiscard]] static uint64_t file_bytes(const std::vector<TensorDecl>& tensors,
                                           const std::map<std::string, std::string>& metadata = {});

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace r1::checkpoint
