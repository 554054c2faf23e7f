#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "comm/ipc/ipc_memory.h"
#include "comm/reduce.h"

namespace r1::comm {
namespace {

std::string name_of(const IpcHandle& handle) {
  return {handle.data(), strnlen(handle.data(), handle.size())};
}

std::string reason() { return std::strerror(errno); }

void* map(int fd, size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return p == MAP_FAILED ? nullptr : p;
}

class ShmMemory final : public IpcMemory {
 public:
  DeviceKind kind() const override { return DeviceKind::kCpu; }
  Device device() const override { return {}; }
  std::string device_id() const override { return {}; }
  void* allocate(size_t bytes) override { return host_memory().allocate(bytes); }
  void release(void* p) noexcept override { host_memory().release(p); }
  void copy(void* dst, const void* src, size_t bytes, const Stream& s) override {
    host_memory().copy(dst, src, bytes, s);
  }
  void reduce(DType dtype, ReduceOp op, std::span<const void* const> sources, void* out,
              int64_t numel, const Stream&) override {
    reduce_in_order(dtype, op, sources, out, numel);
  }
  void synchronize(const Stream&) override {}

  void* allocate_shared(size_t bytes, IpcHandle& handle) override {
    static std::atomic<int> number{0};  // several groups of one process
    const std::string name = fmt::format("/r1run-{}-{}", getpid(), number.fetch_add(1));
    handle.fill(0);
    name.copy(handle.data(), handle.size() - 1);
    const int fd = shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0) throw CommError("shared memory {}: {}", name, reason());
    // Takes the space now: a full /dev/shm would otherwise kill the rank at its first write
    // (SIGBUS).
    const int full = posix_fallocate(fd, 0, static_cast<off_t>(bytes));
    void* p = full == 0 ? map(fd, bytes) : nullptr;
    const std::string why = full != 0 ? std::strerror(full) : reason();
    ::close(fd);
    if (p == nullptr) {
      shm_unlink(name.c_str());
      throw CommError("shared memory {} of {} bytes: {}; see df /dev/shm", name, bytes, why);
    }
    return p;
  }
  void release_shared(void* p, size_t bytes) noexcept override { munmap(p, bytes); }
  void forget(const IpcHandle& handle) noexcept override { shm_unlink(handle.data()); }
  void* open(const IpcHandle& handle, size_t bytes) override {
    const int fd = shm_open(name_of(handle).c_str(), O_RDWR, 0);
    if (fd < 0) throw CommError("shared memory {} of another rank: {}", name_of(handle), reason());
    void* p = map(fd, bytes);
    const std::string why = reason();
    ::close(fd);
    if (p == nullptr) throw CommError("shared memory {} of another rank: {}", name_of(handle), why);
    return p;
  }
  void close(void* p, size_t bytes) noexcept override { munmap(p, bytes); }

  void* create_event(IpcHandle* handle) override {
    if (handle != nullptr) handle->fill(0);
    return nullptr;
  }
  void* open_event(const IpcHandle&) override { return nullptr; }
  void destroy_event(void*) noexcept override {}
  void record(void*, const Stream&) override {}
  void wait(const Stream&, void*) override {}
  Stream create_stream() override { return {}; }
  void destroy_stream(const Stream&) noexcept override {}
  size_t kernel_bytes(int) const override { return 0; }
  std::unique_ptr<PeerKernels> make_kernels(int, const std::vector<void*>&) override {
    return nullptr;
  }
};

}  // namespace

std::unique_ptr<IpcMemory> make_shm_memory() { return std::make_unique<ShmMemory>(); }

}  // namespace r1::comm
