#include "runtime/device/device.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <thread>

#include "runtime/device/cpu/cpu_backend.h"
#include "runtime/kernels/gemm_cpu.h"
#include "runtime/kernels/kernel_table.h"
#include "tests/runtime/kernels/support.h"

namespace r1 {
namespace {

TEST(Shape, PrintsItsDims) {
  EXPECT_EQ(Shape().str(), "[]");
  EXPECT_EQ((Shape{2, 0, 7}).str(), "[2, 0, 7]");
}

TEST(Arena, LaysTensorsOutOneAfterTheOther) {
  const std::vector<TensorSpec> specs = {{"a", {3}, DType::kF32},
                                         {"none", {0, 5}, DType::kF32},
                                         {"b", {65}, DType::kF32},
                                         {"c", {1}, DType::kU8}};
  EXPECT_EQ(arena_bytes(specs), 256U + 0 + 512 + 256);
  const Arena arena({}, specs);
  EXPECT_EQ(arena.bytes(), arena_bytes(specs));
  const auto address = [&](size_t i) { return reinterpret_cast<uintptr_t>(arena.at(i).data); };
  EXPECT_EQ(address(0) % kArenaAlign, 0U);
  EXPECT_EQ(address(2) - address(0), 256U);
  EXPECT_EQ(address(3) - address(2), 512U);
  EXPECT_EQ(arena.at(1).data, nullptr);
  EXPECT_TRUE(arena.at(1).empty());
  EXPECT_EQ(arena.at(2).shape, (Shape{65}));
  EXPECT_THROW(static_cast<void>(arena.at(4)), std::out_of_range);
}

TEST(Arena, TensorsSurviveAMove) {
  Arena first({}, {{"x", {4}, DType::kF32}});
  first.at(0).ptr<float>()[2] = 5;
  const Arena second = std::move(first);
  EXPECT_EQ(second.at(0).ptr<float>()[2], 5);
}

TEST(Buffer, MovesAndReleases) {
  Buffer a({}, 100), b;
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()) % 256, 0U);
  void* p = a.data();
  b = std::move(a);
  EXPECT_EQ(b.data(), p);
  EXPECT_EQ(b.bytes(), 100U);
  const Buffer c = std::move(b);
  EXPECT_EQ(c.data(), p);
  EXPECT_EQ(b.data(), nullptr);  // NOLINT: the state after a move is part of the contract
  EXPECT_EQ(Buffer({}, 0).data(), nullptr);
}

TEST(CpuBackend, CopiesAndFillsAcrossTiles) {
  DeviceBackend& cpu = backend_of(DeviceKind::kCpu);
  const Stream s = cpu.create_stream({});
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{4097}, (size_t{5} << 20) + 3}) {
    const Buffer a({}, bytes), b({}, bytes);
    for (size_t i = 0; i < bytes; ++i)
      static_cast<uint8_t*>(a.data())[i] = static_cast<uint8_t>(i * 7);
    set_cpu_threads(2);
    cpu.copy(b.data(), a.data(), bytes, s);
    cpu.synchronize(s);
    EXPECT_EQ(bytes == 0 ? 0 : std::memcmp(a.data(), b.data(), bytes), 0);
    cpu.fill_zero(b.data(), bytes, s);
    set_cpu_threads(1);
    for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(static_cast<uint8_t*>(b.data())[i], 0);
  }
  cpu.destroy_stream(s);
}

TEST(CpuBackend, SaysHowMuchIsWantedAndHowMuchIsLeft) {
  EXPECT_GT(available_host_bytes(), size_t{1} << 20);
  try {
    const Buffer b({}, size_t{1} << 60);
    FAIL() << "an exbibyte was given";
  } catch (const MemoryError& e) {
    EXPECT_NE(std::string(e.what()).find("1152921504606846976 bytes"), std::string::npos)
        << e.what();
    EXPECT_NE(std::string(e.what()).find("available"), std::string::npos) << e.what();
    EXPECT_EQ(e.code(), ExitCode::kNoMemory);
  }
}

TEST(CpuBackend, ATableWithoutGaps) {
  const kernels::KernelTable& table = kernels::kernel_table(DeviceKind::kCpu);
  EXPECT_EQ(table.struct_bytes, sizeof table);
  constexpr size_t kPointers = sizeof(kernels::KernelTable) / sizeof(void*);
  std::array<const void*, kPointers> words{};
  std::memcpy(words.data(), &table, sizeof table);
  for (const void* word : words) EXPECT_NE(word, nullptr);
}

TEST(CudaLibrary, ItsAbsenceIsAnErrorThatNamesThePathsTried) {
  if (std::filesystem::exists(std::string(R1RUN_BIN_DIR) + "/libr1run_cuda.so"))
    GTEST_SKIP() << "the CUDA library is built";
  try {
    static_cast<void>(backend_of(DeviceKind::kCuda));
    FAIL() << "a CUDA backend from nowhere";
  } catch (const DeviceError& e) {
    const std::string text = e.what();
    EXPECT_NE(text.find("/libr1run_cuda.so: no such file"), std::string::npos) << text;
    EXPECT_NE(text.find("lib/r1run/libr1run_cuda.so"), std::string::npos) << text;
  }
  EXPECT_THROW(static_cast<void>(kernels::kernel_table(DeviceKind::kCuda)), DeviceError);
}

TEST(ThreadPool, RunsEachTaskOnce) {
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t tasks : {0, 1, 2, 3, 100, 10000}) {
      std::vector<std::atomic<int>> count(static_cast<size_t>(tasks));
      pool.run(tasks, [&](int64_t i) { ++count[static_cast<size_t>(i)]; });
      for (const auto& c : count) ASSERT_EQ(c.load(), 1);
    }
  }
}

TEST(ThreadPool, ManyShortLoopsAndPausesBetweenThem) {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  for (int loop = 0; loop < 5000; ++loop) {
    pool.run(4, [&](int64_t i) { sum += i; });
    if (loop % 1000 == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));  // workers fall asleep
  }
  EXPECT_EQ(sum.load(), 5000 * 6);
}

TEST(ThreadPool, ThrowsATasksErrorAndStaysUsable) {
  ThreadPool pool(2);
  for (int repeat = 0; repeat < 50; ++repeat)
    EXPECT_THROW(pool.run(20,
                          [](int64_t i) {
                            if (i == 13) throw DataError("task {}", i);
                          }),
                 DataError);
  std::atomic<int> done{0};
  pool.run(20, [&](int64_t) { ++done; });
  EXPECT_EQ(done.load(), 20);
}

TEST(ThreadPool, NestedLoopsAndSeveralCallersFinish) {
  ThreadPool pool(3);
  std::atomic<int> done{0};
  const auto work = [&] {
    for (int loop = 0; loop < 200; ++loop)
      pool.run(5, [&](int64_t) { pool.run(3, [&](int64_t) { ++done; }); });
  };
  std::thread other(work), third(work);
  work();
  other.join();
  third.join();
  EXPECT_EQ(done.load(), 3 * 200 * 15);
}

TEST(ThreadScratch, IsAlignedAndOfItsThreadAndSlot) {
  auto* a = static_cast<char*>(thread_scratch(0, 100));
  auto* b = static_cast<char*>(thread_scratch(1, 100));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a) % 64, 0U);
  EXPECT_NE(a, b);
  std::memset(a, 1, 100);
  std::memset(b, 2, 100);
  void* c = nullptr;
  std::thread([&] { c = thread_scratch(0, 100), std::memset(c, 3, 100); }).join();
  EXPECT_EQ(a[50], 1);
  EXPECT_EQ(b[50], 2);
  auto* larger = static_cast<char*>(thread_scratch(0, 1 << 20));
  std::memset(larger, 4, 1 << 20);
  EXPECT_EQ(b[50], 2);
}

TEST(GemmTiles, CoverTheProductWithoutTinyOnes) {
  for (const int64_t m : {1, 7, 255, 512, 513, 2048, 5000})
    for (const int64_t n : {1, 16, 768, 1280, 4096, 32000}) {
      const auto t = kernels::cpu::gemm_tiles(m, n);
      EXPECT_GE(t.tile_m, std::min<int64_t>(m, 128)) << m << "x" << n;
      EXPECT_GE(t.tile_n, std::min<int64_t>(n, 64)) << m << "x" << n;
    }
}

}  // namespace
}  // namespace r1
