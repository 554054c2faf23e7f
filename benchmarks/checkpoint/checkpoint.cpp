// Speed of what checkpoints are made of: bench_checkpoint [DIR [MIB]]
//
// Files go to DIR (default: the system's directory for temporary files) and are read back from the
// page cache, so the reading figures are the program's own limit and not the disk's; the bound
// beside them is memcpy of the same bytes.
#include "runtime/checkpoint/checkpoint.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "runtime/checkpoint/commit.h"
#include "runtime/checkpoint/crc32c.h"

namespace {

namespace fs = std::filesystem;
using namespace r1::checkpoint;
using r1::DType;

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Median of five runs, with the slowest and the fastest; and the median rate by the time on a core, which does not
// count what other programs take from the machine.
void report(const char* what, double bytes, const std::function<void()>& f) {
  std::vector<double> seconds, cpu;
  for (int i = 0; i < 5; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const double cpu_begin = cpu_seconds();
    f();
    cpu.push_back(cpu_seconds() - cpu_begin);
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(seconds.begin(), seconds.end());
  std::sort(cpu.begin(), cpu.end());
  std::printf("%-52s %8.3f GB/s   (%.3f to %.3f)   %8.3f GB/s a core\n", what, bytes / seconds[2] * 1e-9,
              bytes / seconds[4] * 1e-9, bytes / seconds[0] * 1e-9, bytes / cpu[2] * 1e-9);
}

}  // namespace

int main(int argc, char** argv) {
  const fs::path dir = fs::path(argc > 1 ? argv[1] : fs::temp_directory_path().string()) /
                       ("r1run-bench-" + make_run_id());
  const int64_t mib = argc > 2 ? std::atoll(argv[2]) : 256;
  const int64_t rows = 4096, columns = mib * (1 << 20) / 2 / rows;  // bf16
  const auto bytes = static_cast<size_t>(2 * rows * columns);
  const auto total = static_cast<double>(bytes);
  std::vector<char> data(bytes), copy(2 * bytes);
  for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<char>(i * 2654435761u >> 13);
  std::printf("%zu bytes in %s\n", bytes, dir.c_str());

  report("memcpy", total, [&] { std::memcpy(copy.data(), data.data(), bytes); });
  uint32_t sum = 0;
  report("CRC-32C, hardware", total, [&] { sum ^= crc32c(data.data(), bytes); });
  report("CRC-32C, tables", total, [&] { sum ^= crc32c_portable(data.data(), bytes); });
  report("bf16 to fp32 (bytes of bf16)", total,
         [&] { convert_elements(DType::kBF16, data.data(), DType::kF32, copy.data(), bytes / 2); });
  report("fp32 to bf16 (bytes of fp32)", 2 * total,
         [&] { convert_elements(DType::kF32, copy.data(), DType::kBF16, data.data(), bytes / 2); });

  fs::create_directories(dir);
  const std::vector<int64_t> shape{rows, columns};
  int64_t step = 0;
  fs::path path;
  const auto write = [&] {
    StagedCheckpoint staged = StagedCheckpoint::create(dir, ++step, "bench", bytes);
    Piece piece;
    piece.tensor = "w";
    piece.kind = kKindWeight;
    piece.dtype = DType::kBF16;
    piece.global_shape = shape;
    piece.box = whole_box(shape);
    PieceWriter writer(staged.stage(), "model.safetensors", {piece});
    writer.write(0, data.data(), bytes);
    Manifest m;
    m.run_id = "bench";
    m.step = step;
    m.add(writer.finish());
    m.files.push_back(write_staged_text(staged.stage(), "config.json", "{}"));
    path = staged.commit(m);
    apply_retention(dir, {.keep_last = 1});
  };
  report("write and commit a checkpoint, with fsync", total, write);
  const CheckpointReader reader = CheckpointReader::open(path);
  report("verify all checksums (page cache)", total, [&] { (void)reader.verify_all(); });
  const HfModelDir model = HfModelDir::open(path);
  const auto replicated = r1::parallel::ShardSpec::replicated(shape, 1);
  report("read a whole tensor, bf16", total,
         [&] { model.read_shard("w", replicated, 0, DType::kBF16, copy.data()); });
  report("read a whole tensor, bf16 to fp32", total,
         [&] { model.read_shard("w", replicated, 0, DType::kF32, copy.data()); });
  for (const int tp : {2, 8}) {
    std::vector<r1::parallel::Interval> parts;
    for (int r = 0; r < tp; ++r) parts.push_back(r1::parallel::even_part(columns, r, tp));
    const auto cut = r1::parallel::ShardSpec::cut(shape, 1, parts);
    const std::string name =
        fmt::format("read column part 1 of {} ({} B a row), bf16 to fp32", tp, 2 * columns / tp);
    report(name.c_str(), total / tp,
           [&] { model.read_shard("w", cut, 1, DType::kF32, copy.data()); });
  }
  std::string header = "{";
  for (int i = 0; i < 100'000; ++i)
    header += fmt::format(
        "\"model.layers.{}.mlp.experts.gate_proj.weight\":{{\"dtype\":\"BF16\",\"shape\":[128,256],"
        "\"data_offsets\":[{},{}]}},",
        i, int64_t{65536} * i, int64_t{65536} * (i + 1));
  header.back() = '}';
  report("parse a header of 100,000 tensors", static_cast<double>(header.size()), [&] {
    sum ^= static_cast<uint32_t>(
        parse_safetensors_header(header, uint64_t{65536} * 100'000, "bench").tensors.size());
  });
  fs::remove_all(dir);
  return sum == 1 ? 1 : 0;
}
