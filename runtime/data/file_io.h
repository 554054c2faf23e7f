// Files as the cache writes and reads them: whole, retried where a signal interrupts, with errors
// that name the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

namespace r1::data {

/// Bytes that are read or written at once.
inline constexpr size_t kBufferBytes = size_t{1} << 20;

/// Throws StorageError: `path`, `what` failed and errno's text.
[[noreturn]] void storage_error(const std::filesystem::path& path, const char* what);
/// Writes everything. Throws StorageError naming `path`.
void write_all(int fd, const void* data, size_t bytes, const std::filesystem::path& path);
/// Reads exactly; false at a premature end.
[[nodiscard]] bool read_at(int fd, void* out, size_t bytes, uint64_t at);
/// A name beside `file` that no other writer uses.
[[nodiscard]] std::filesystem::path temporary_name(const std::filesystem::path& file);
/// Makes the directory and those above it. Throws StorageError.
void make_cache_directory(const std::filesystem::path& dir);

}  // namespace r1::data
