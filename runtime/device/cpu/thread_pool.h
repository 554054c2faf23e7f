// Threads of the CPU device. A process has one pool, which stands for the CPU as a device as a
// GPU's multiprocessors stand for a GPU: main sets its size once, kernels share it. It is the one
// mutable global of the CPU backend.
//
// A loop is cut into tasks whose number and bounds depend on the problem alone; threads take the
// next task as they become free. A task writes what no other task writes, so results do not depend
// on the number of threads. When two callers (ranks that are threads of one process, in tests)
// meet, one gets the pool and the other runs its tasks itself.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace r1 {

/// A loop body by reference: valid for the duration of the call it is passed to.
class TaskRef {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, TaskRef>)
      TaskRef(F&& f)  // NOLINT: implicit, it stands for a lambda at the call
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, int64_t i) {
          (*static_cast<std::remove_reference_t<F>*>(object))(i);
        }) {}
  void operator()(int64_t i) const { call_(object_, i); }

 private:
  void* object_;
  void (*call_)(void*, int64_t);
};

/// A fixed set of worker threads. Workers spin for some microseconds after a loop (the next
/// operation of a layer follows at once), then sleep.
class ThreadPool {
 public:
  /// `threads` includes the caller; 1 starts none.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int threads() const;
  /// Calls task(0) .. task(tasks - 1), each once, in any order and on any thread, and returns when
  /// all have returned. The first exception of a task is thrown here after the others have ended. A
  /// call from inside a task runs inline.
  void run(int64_t tasks, TaskRef task);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Sets the number of threads of CPU operations (1 at start). Call from main before any operation,
/// and not while one runs.
void set_cpu_threads(int threads);
[[nodiscard]] int cpu_threads();

/// ThreadPool::run on the process's pool.
void parallel_for(int64_t tasks, TaskRef task);

/// Calls body(begin, end) over [0, n) in tiles of `tile`.
template <class F>
void parallel_ranges(int64_t n, int64_t tile, F&& body) {
  parallel_for((n + tile - 1) / tile,
               [&](int64_t i) { body(i * tile, std::min(n, (i + 1) * tile)); });
}

/// At least `bytes` of this thread's scratch memory, 64-byte aligned, contents undefined; valid
/// until this thread's next call with the same slot. Kernels take their tiles from here: a block
/// per call would be mapped and cleared each time.
[[nodiscard]] void* thread_scratch(int slot, size_t bytes);
inline constexpr int kScratchSlots = 4;

}  // namespace r1
