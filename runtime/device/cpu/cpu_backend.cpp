#include "runtime/device/cpu/cpu_backend.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>

#include "runtime/core/error.h"
#include "runtime/device/cpu/thread_pool.h"

namespace r1 {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLarge = size_t{4} << 20;
constexpr size_t kTile = size_t{1} << 20;  // of copies and fills shared between threads
constexpr size_t kNoLimit = std::numeric_limits<int64_t>::max();

/// A number from a one-line file; nothing when it is missing or "max".
std::optional<size_t> read_number(const std::string& path) {
  std::ifstream in(path);
  size_t value = 0;
  if (in >> value) return value;
  return std::nullopt;
}

size_t host_available_bytes() {
  std::ifstream in("/proc/meminfo");
  std::string key;
  size_t kib = 0;
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream fields(line);
    if (fields >> key >> kib && key == "MemAvailable:") return kib * 1024;
  }
  return kNoLimit;
}

/// What the control groups leave (version 2: every group from the process's own up to the root;
/// version 1: the own).
size_t cgroup_available_bytes() {
  size_t available = kNoLimit;
  const auto consider = [&](const std::string& dir, const char* limit_file, const char* used_file) {
    const auto limit = read_number(dir + limit_file);
    const auto used = read_number(dir + used_file);
    if (limit && used) available = std::min(available, *limit > *used ? *limit - *used : 0);
  };
  std::ifstream in("/proc/self/cgroup");
  std::string line;
  while (std::getline(in, line)) {
    if (line.starts_with("0::")) {
      std::string path = line.substr(3);
      while (true) {
        consider("/sys/fs/cgroup" + path, "/memory.max", "/memory.current");
        const size_t slash = path.find_last_of('/');
        if (slash == std::string::npos || path.size() <= 1) break;
        path.resize(slash);
      }
    } else if (line.find(":memory:") != std::string::npos) {
      consider("/sys/fs/cgroup/memory" + line.substr(line.rfind(':') + 1), "/memory.limit_in_bytes",
               "/memory.usage_in_bytes");
    }
  }
  return available;
}

class CpuBackend final : public DeviceBackend {
 public:
  void* allocate(Device, size_t bytes) override {
    if (bytes == 0) return nullptr;
    const bool large = bytes >= kLarge;
    if (large) {  // a small block costs less than the question
      const size_t available = available_host_bytes();
      if (bytes > available) throw_no_memory(bytes, available);
    }
    const size_t align = large ? kHugePage : kArenaAlign;
    if (bytes > std::numeric_limits<size_t>::max() - align)
      throw_no_memory(bytes, available_host_bytes());
    void* p = std::aligned_alloc(align, align_up(bytes, align));
    if (p == nullptr) throw_no_memory(bytes, available_host_bytes());
    // Advice only: without huge pages a GEMM over weights spends several percent in TLB misses.
    if (large) madvise(p, align_up(bytes, align), MADV_HUGEPAGE);
    return p;
  }
  void release(Device, void* p) noexcept override { std::free(p); }

  void copy(void* dst, const void* src, size_t bytes, const Stream&) override {
    if (bytes == 0) return;
    parallel_ranges(static_cast<int64_t>(bytes), kTile, [&](int64_t begin, int64_t end) {
      std::memmove(static_cast<char*>(dst) + begin, static_cast<const char*>(src) + begin,
                   static_cast<size_t>(end - begin));
    });
  }
  void fill_zero(void* dst, size_t bytes, const Stream&) override {
    if (bytes == 0) return;
    parallel_ranges(static_cast<int64_t>(bytes), kTile, [&](int64_t begin, int64_t end) {
      std::memset(static_cast<char*>(dst) + begin, 0, static_cast<size_t>(end - begin));
    });
  }
  void synchronize(const Stream&) override {}
  Stream create_stream(Device d, int) override { return {.device = d, .handle = nullptr}; }
  void destroy_stream(const Stream&) noexcept override {}

 private:
  [[noreturn]] static void throw_no_memory(size_t wanted, size_t available) {
    throw MemoryError(
        "cannot allocate {:.2f} GiB ({} bytes) of host memory: {:.2f} GiB ({} bytes) are available",
        static_cast<double>(wanted) / (1 << 30), wanted, static_cast<double>(available) / (1 << 30),
        available);
  }
};

}  // namespace

size_t available_host_bytes() { return std::min(host_available_bytes(), cgroup_available_bytes()); }

DeviceBackend& cpu_backend() {
  static CpuBackend backend;  // without state
  return backend;
}

}  // namespace r1
