// The few system calls that checkpoints are made of, with the errors for people in one place and a
// hook in front of each, so that tests can count them, fail them and kill the process at any of
// them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace r1::checkpoint {

namespace fs = std::filesystem;

enum class SyscallKind {
  kMkdir,
  kCreate,
  kAllocate,
  kWrite,
  kFsync,
  kClose,
  kRename,
  kExchange,
  kFsyncDir,
  kUnlink,
  kRmdir
};
[[nodiscard]] std::string_view name_of(SyscallKind kind);

/// One call that is about to be made.
struct Syscall {
  SyscallKind kind;
  fs::path path;               ///< file or directory it acts on
  fs::path to = {};            ///< kRename, kExchange: the other name
  const void* data = nullptr;  ///< kWrite
  size_t bytes = 0;     ///< kWrite, kAllocate; a hook may lower it for kWrite (a short write)
  uint64_t offset = 0;  ///< kWrite
};

/// Called before each system call of a writer.
class SyscallHook {
 public:
  virtual ~SyscallHook() = default;
  /// Returns 0 to let the call happen, or an errno value that the call then "fails" with. Need not
  /// return.
  virtual int before(Syscall& call) = 0;
};

/// Reads one regular file by pread, so that a file cut short meanwhile is an error and not a
/// SIGBUS. Symbolic links are followed (Hugging Face caches are made of them). Move-only; reading
/// is safe from several threads at once.
class ReadFile {
 public:
  /// Throws DataError (no such file, not a regular file, no permission).
  explicit ReadFile(const fs::path& path);
  ReadFile(ReadFile&& o) noexcept;
  ReadFile& operator=(ReadFile&& o) noexcept;
  ~ReadFile();
  [[nodiscard]] const fs::path& path() const { return path_; }
  [[nodiscard]] uint64_t size() const { return size_; }
  /// Exactly `bytes` bytes at `offset`; throws DataError naming file, offset and the system's
  /// reason.
  void read(uint64_t offset, void* dst, size_t bytes) const;
  /// Throws DataError when the file's size is no longer what it was when opened.
  void check_unchanged() const;

 private:
  fs::path path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

/// A whole small file as text. Throws DataError when missing, unreadable or longer than
/// `max_bytes`.
[[nodiscard]] std::string read_text_file(const fs::path& path, size_t max_bytes);

/// A file in the making: written under a temporary name in the target's folder (created anew, never
/// through a link, mode 0666 & ~umask), fsynced, then renamed to the target. Removed when never
/// finished. All errors are StorageError.
class NewFile {
 public:
  /// `expect_bytes` > 0 reserves the space at once, so that a full disk shows before hours of
  /// writing.
  NewFile(const fs::path& target, uint64_t expect_bytes, SyscallHook* hook);
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile();
  void write(const void* data, size_t bytes);
  [[nodiscard]] uint64_t written() const { return written_; }
  [[nodiscard]] const fs::path& target() const { return target_; }
  /// fsync, close, rename, fsync of the folder.
  void finish();

 private:
  [[noreturn]] void fail(std::string_view what, int error);
  void flush(const char* data, size_t bytes);
  fs::path target_, temporary_;
  SyscallHook* hook_;
  int fd_ = -1;
  uint64_t written_ = 0, on_disk_ = 0, expect_bytes_ = 0;
  std::string buffer_;  // small writes, gathered
};

void write_text_file(const fs::path& path, std::string_view text, SyscallHook* hook = nullptr);
/// One directory, mode 0777 & ~umask. It may exist already only when `may_exist`.
void make_directory(const fs::path& path, bool may_exist, SyscallHook* hook = nullptr);
/// The directory and its missing parents; each new name is fsynced into its parent.
void make_directories(const fs::path& path, SyscallHook* hook = nullptr);
void rename_path(const fs::path& from, const fs::path& to, SyscallHook* hook = nullptr);
/// Swaps two names in one step; false when the file system cannot.
[[nodiscard]] bool exchange_paths(const fs::path& a, const fs::path& b,
                                  SyscallHook* hook = nullptr);
void fsync_directory(const fs::path& path, SyscallHook* hook = nullptr);
/// Removes a directory tree without following links. What is gone already is no error.
void remove_tree(const fs::path& path, SyscallHook* hook = nullptr);

/// Throws StorageError naming needed and free bytes when the file system of `path` has less
/// than 1.05 x `bytes` left for us.
void require_free_space(const fs::path& path, uint64_t bytes);

/// Text from a file made safe to show: quoted, control and non-ASCII bytes escaped, cut at `max`
/// bytes.
[[nodiscard]] std::string shown(std::string_view text, size_t max = 120);

}  // namespace r1::checkpoint
