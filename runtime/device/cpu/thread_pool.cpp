#include "runtime/device/cpu/thread_pool.h"

#include <immintrin.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/core/error.h"

namespace r1 {
namespace {

// About 50 us of pauses on current x86: longer than the gaps between a layer's operations, much
// shorter than a time slice.
constexpr int kSpins = 2000;

// Set while this thread runs tasks: a nested loop runs inline instead of waiting for its own pool.
thread_local bool inside_task = false;

}  // namespace

struct ThreadPool::State {
  // One loop at a time; its fields below are written while the gate is closed and nobody is inside.
  std::mutex callers;
  int64_t tasks = 0;
  const TaskRef* task = nullptr;
  std::atomic<int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;

  // Generation of the loop (high half), whether workers may still enter, and how many are inside. A
  // worker that wakes up late finds the gate closed, so that the caller never waits for a thread
  // the system has not scheduled.
  static constexpr uint64_t kOpen = uint64_t{1} << 31;
  static constexpr uint64_t kInside = kOpen - 1;
  std::atomic<uint64_t> gate{0};

  std::mutex sleep_mutex;
  std::condition_variable wake;
  std::atomic<bool> stop{false};
  std::vector<std::thread> workers;

  static uint64_t generation(uint64_t g) { return g >> 32; }

  void work() {
    inside_task = true;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      try {
        (*task)(i);
      } catch (...) {
        const std::scoped_lock lock(error_mutex);
        if (!error) error = std::current_exception();
      }
    }
    inside_task = false;
  }

  bool enter(uint64_t& g) {
    while ((g & kOpen) != 0)
      if (gate.compare_exchange_weak(g, g + 1, std::memory_order_acquire)) return true;
    return false;
  }

  void worker() {
    uint64_t seen = 0;
    while (true) {
      uint64_t g = 0;
      const auto news = [&] {
        return generation(g = gate.load(std::memory_order_acquire)) != seen;
      };
      bool found = false;
      for (int spin = 0; spin < kSpins && !(found = news()); ++spin) _mm_pause();
      if (!found) {
        std::unique_lock lock(sleep_mutex);
        wake.wait(lock, news);
      }
      if (stop.load(std::memory_order_relaxed)) return;
      const bool entered = enter(g);
      seen = generation(g);
      if (!entered) continue;
      work();
      gate.fetch_sub(1, std::memory_order_release);
    }
  }

  // Shows a new loop (or stop) to the workers. The lock pairs with a worker's check before it
  // sleeps.
  void publish(uint64_t open) {
    {
      const std::scoped_lock lock(sleep_mutex);
      const uint64_t next_generation = (generation(gate.load(std::memory_order_relaxed)) + 1) << 32;
      gate.store(next_generation | open, std::memory_order_release);
    }
    wake.notify_all();
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  R1_CHECK(threads >= 1, "a thread pool of {} threads", threads);
  for (int i = 1; i < threads; ++i)
    state_->workers.emplace_back([s = state_.get()] { s->worker(); });
}

ThreadPool::~ThreadPool() {
  state_->stop = true;
  state_->publish(0);
  for (std::thread& t : state_->workers) t.join();
}

int ThreadPool::threads() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::run(int64_t tasks, TaskRef task) {
  if (tasks <= 0) return;
  std::unique_lock lock(state_->callers, std::defer_lock);
  if (tasks == 1 || state_->workers.empty() || inside_task || !lock.try_lock()) {
    for (int64_t i = 0; i < tasks; ++i) task(i);
    return;
  }
  State& s = *state_;
  s.tasks = tasks;
  s.task = &task;
  s.error = nullptr;
  s.next.store(0, std::memory_order_relaxed);
  s.publish(State::kOpen);
  s.work();
  s.gate.fetch_and(~State::kOpen, std::memory_order_acq_rel);
  for (int spin = 0; (s.gate.load(std::memory_order_acquire) & State::kInside) != 0; ++spin) {
    if (spin < kSpins)
      _mm_pause();
    else
      std::this_thread::yield();
  }
  if (s.error) std::rethrow_exception(std::exchange(s.error, nullptr));
}

namespace {

std::unique_ptr<ThreadPool>& process_pool() {
  static auto pool = std::make_unique<ThreadPool>(1);
  return pool;
}

}  // namespace

void set_cpu_threads(int threads) {
  if (process_pool()->threads() != threads) process_pool() = std::make_unique<ThreadPool>(threads);
}

int cpu_threads() { return process_pool()->threads(); }

void parallel_for(int64_t tasks, TaskRef task) { process_pool()->run(tasks, task); }

void* thread_scratch(int slot, size_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  struct Slot {
    std::unique_ptr<void, Free> block;
    size_t bytes = 0;
  };
  thread_local std::array<Slot, kScratchSlots> slots;
  Slot& s = slots.at(static_cast<size_t>(slot));
  if (s.bytes < bytes) {
    s.block.reset();  // before the new block: the old contents are not kept
    s.bytes = 0;
    const size_t rounded = (bytes + 63) / 64 * 64;
    s.block.reset(std::aligned_alloc(64, rounded));
    if (!s.block) throw MemoryError("cannot allocate {} bytes of scratch memory", rounded);
    s.bytes = rounded;
  }
  return s.block.get();
}

}  // namespace r1
