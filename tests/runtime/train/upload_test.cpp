// Bands and pieces of a tensor on its way to a device: every element arrives, whatever the rows are.
#include "runtime/train/upload.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>

#include "runtime/core/error.h"
#include "runtime/device/cpu/thread_pool.h"

namespace r1::train {
namespace {

/// What element (row, column) of the stored tensor holds.
float stored(int64_t row, int64_t column) { return static_cast<float>(row * 1000 + column); }

/// Reads like a file of a [rows, columns] tensor of fp32.
void read_box(const checkpoint::Box& box, DType dtype, void* dst) {
  ASSERT_EQ(dtype, DType::kF32);
  auto* out = static_cast<float*>(dst);
  const int64_t columns = box.size.size() > 1 ? box.size[1] : 1, first = box.size.size() > 1 ? box.start[1] : 0;
  for (int64_t r = 0; r < box.size[0]; ++r)
    for (int64_t c = 0; c < columns; ++c) *out++ = stored(box.start[0] + r, first + c);
}

TEST(Uploader, EveryElementArrivesInBandsOfAnySize) {
  set_cpu_threads(3);
  const std::vector<checkpoint::Box> boxes{{{0, 0}, {37, 19}}, {{5, 3}, {64, 16}}, {{2, 0}, {3, 5000}}, {{7}, {1001}}, {{4, 2}, {0, 8}}};
  for (const bool staged : {false, true})
    for (const int64_t bytes : {int64_t{1}, int64_t{256}, int64_t{1000}, int64_t{1} << 20})
      for (const checkpoint::Box& box : boxes) {
        SCOPED_TRACE(box.str() + (staged ? " staged " : " direct ") + std::to_string(bytes));
        Uploader upload(Stream{}, {.copy_bytes = 4 * bytes, .read_bytes = bytes, .always_staged = staged});
        std::vector<float> to(static_cast<size_t>(box.elems()) + 1, -1.0F), again = to;
        const auto tensor = [&](std::vector<float>& v) {
          return Tensor{.data = v.data(), .dtype = DType::kF32, .shape = {box.elems()}, .device = {}};
        };
        upload.fill(tensor(to), box, read_box);
        upload.fill(tensor(again), box, read_box);  // the memory between is used again
        std::vector<float> want(to.size(), -1.0F);
        if (box.elems() > 0) read_box(box, DType::kF32, want.data());
        EXPECT_EQ(to, want);
        EXPECT_EQ(again, want);
      }
  set_cpu_threads(1);
}

TEST(Uploader, WhatReadingThrowsIsThrownOn) {
  std::vector<float> to(4096);
  for (const bool staged : {false, true}) {
    Uploader upload(Stream{}, {.copy_bytes = 1024, .read_bytes = 256, .always_staged = staged});
    std::atomic<int> calls{0};
    EXPECT_THROW(upload.fill({.data = to.data(), .dtype = DType::kF32, .shape = {4096}, .device = {}}, {{0}, {4096}},
                             [&](const checkpoint::Box& box, DType dtype, void* dst) {
                               if (++calls == 20) throw DataError("{}", "cut short");
                               read_box(box, dtype, dst);
                             }),
                 DataError);
  }
}

}  // namespace
}  // namespace r1::train
