#include "runtime/checkpoint/checkpoint.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/runtime/checkpoint/tiny_checkpoint.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace r1::checkpoint {
namespace {

using test::TempDir;
using test::TinyParameter;

TEST(CheckpointReader, WhatOneLayoutWroteEveryOtherReads) {
  const TempDir dir(TempDir::Where::kMemory);
  for (const auto& [dp, tp] :
       std::vector<std::pair<int, int>>{{1, 1}, {2, 1}, {1, 3}, {2, 2}, {3, 4}, {8, 1}, {1, 8}}) {
    SCOPED_TRACE(fmt::format("dp {} tp {}", dp, tp));
    const fs::path path = test::write_tiny_checkpoint(dir.path(), 100 * dp + tp, "run", dp, tp);
    const CheckpointReader reader = CheckpointReader::open(path);
    EXPECT_EQ(reader.manifest().mesh, (MeshRecord{2, dp, tp}));
    EXPECT_EQ(reader.manifest().counters.at("negative"), -5);
    EXPECT_EQ(reader.manifest().rng_seed, 0xfedcba9876543210ull);
    const CheckpointReader::Verified v = reader.verify_all();
    EXPECT_EQ(v.files, reader.manifest().files.size());
    for (const TinyParameter& p : test::tiny_parameters())
      for (const std::string_view kind : {kKindWeight, kKindMaster, kKindExpAvg, kKindExpAvgSq}) {
        ASSERT_TRUE(reader.has(kind, p.name));
        EXPECT_EQ(reader.global_shape(kind, p.name), p.shape);
        EXPECT_EQ(reader.dtype(kind, p.name), kind == kKindWeight ? DType::kBF16 : DType::kF32);
        for (const auto& [dp2, tp2] :
             std::vector<std::pair<int, int>>{{1, 1}, {1, 2}, {2, 3}, {4, 1}, {2, 8}})
          for (int d = 0; d < dp2; ++d)
            for (int t = 0; t < tp2; ++t)
              for (const PartialReads partial :
                   {PartialReads::kUnchecked, PartialReads::kChecked}) {
                const Box want = test::tiny_state_box(p, dp2, d, tp2, t);
                for (const DType to : {DType::kF32, DType::kBF16}) {
                  std::string got(static_cast<size_t>(want.elems() * dtype_bytes(to)), '\0');
                  reader.read_box(kind, p.name, p.shape, want, to, got.data(), partial);
                  if (kind == kKindWeight) {  // stored as bf16
                    const std::string stored =
                        test::tiny_bytes("weight", p, want, 100 * dp + tp, DType::kBF16);
                    std::string expected(got.size(), '\0');
                    convert_elements(DType::kBF16, stored.data(), to, expected.data(),
                                     static_cast<size_t>(want.elems()));
                    ASSERT_EQ(got, expected);
                  } else {
                    ASSERT_EQ(got, test::tiny_bytes(std::string(kind), p, want, 100 * dp + tp, to));
                  }
                }
              }
        // By ShardSpec, as the runtime asks.
        if (p.cut_dim < 0) continue;
        std::vector<parallel::Interval> parts;
        for (int t = 0; t < 3; ++t)
          parts.push_back(parallel::even_part(p.shape[static_cast<size_t>(p.cut_dim)], t, 3));
        const auto spec = parallel::ShardSpec::cut(p.shape, p.cut_dim, parts);
        for (int t = 0; t < 3; ++t) {
          std::vector<float> got(static_cast<size_t>(spec.local_elems(t)));
          reader.read(kKindMaster, p.name, spec, t, DType::kF32, got.data());
          const std::string want =
              test::tiny_bytes("master", p, box_of(spec, t), 100 * dp + tp, DType::kF32);
          ASSERT_EQ(std::memcmp(got.data(), want.data(), want.size()), 0);
        }
      }
  }
}

TEST(CheckpointReader, IsAHuggingFaceDirectory) {
  const TempDir dir(TempDir::Where::kMemory);
  const HfModelDir model = HfModelDir::open(test::write_tiny_checkpoint(dir.path(), 7, "run"));
  EXPECT_EQ(model.names().size(), test::tiny_parameters().size());
  for (const TinyParameter& p : test::tiny_parameters()) {
    std::string got(static_cast<size_t>(whole_box(p.shape).elems() * 2), '\0');
    model.read_shard(p.name, parallel::ShardSpec::replicated(p.shape, 1), 0, DType::kBF16,
                     got.data());
    EXPECT_EQ(got, test::tiny_bytes("weight", p, whole_box(p.shape), 7, DType::kBF16));
  }
  EXPECT_EQ(model.files()[0].metadata().at("format"), "pt");
}

TEST(CheckpointReader, Refusals) {
  const TempDir dir(TempDir::Where::kMemory);
  EXPECT_DATA_ERROR(CheckpointReader::open(dir / "missing"), "missing", "no such directory");
  EXPECT_DATA_ERROR(CheckpointReader::open(dir.path()), "not a checkpoint of r1run",
                    "r1run/manifest.json");
  const fs::path path = test::write_tiny_checkpoint(dir.path(), 7, "run");
  const CheckpointReader reader = CheckpointReader::open(path);
  std::array<float, 100> out{};
  const std::vector<int64_t> wrong{6, 13}, norm{6};
  EXPECT_DATA_ERROR(
      reader.read("master", "model.embed_tokens.weight", parallel::ShardSpec::replicated(wrong, 1),
                  0, DType::kF32, out.data()),
      path.string(), "master", "[13, 6]", "[6, 13]");
  EXPECT_DATA_ERROR(
      reader.read("momentum", "model.norm.weight", parallel::ShardSpec::replicated(norm, 1), 0,
                  DType::kF32, out.data()),
      "momentum", "model.norm.weight");
  EXPECT_DATA_ERROR(
      reader.read("master", "model.norm.weight", parallel::ShardSpec::replicated(norm, 1), 0,
                  DType::kI32, out.data()),
      "F32", "int32");
  const fs::path rank0 = path / "r1run/rank-00000.safetensors";
  const std::string content = test::read_file(rank0);
  test::write_file(rank0, content.substr(0, content.size() - 1));
  EXPECT_DATA_ERROR(CheckpointReader::open(path), "rank-00000.safetensors",
                    fmt::format("{}", content.size() - 1), fmt::format("{}", content.size()));
  fs::remove(rank0);
  EXPECT_DATA_ERROR(CheckpointReader::open(path), "rank-00000.safetensors", "No such file");
}

// Everything that a checkpoint consists of, with one bit flipped: noticed, and the file named.
TEST(CheckpointReader, EveryBitFlipIsNoticedAndNamed) {
  const TempDir dir(TempDir::Where::kMemory);
  const fs::path path = test::write_tiny_checkpoint(dir.path(), 7, "run", 1, 2);
  const auto flip_and_check = [&](const fs::path& file, uint64_t bit) {
    std::string content = test::read_file(file);
    const char original = content[bit / 8];
    content[bit / 8] = static_cast<char>(original ^ (1 << (bit % 8)));
    {
      std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
      f.seekp(static_cast<std::streamoff>(bit / 8));
      f.put(content[bit / 8]);
    }
    EXPECT_DATA_ERROR(CheckpointReader::open(path).verify_all(), file.filename().string());
    std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
    f.seekp(static_cast<std::streamoff>(bit / 8));
    f.put(original);
  };
  int flips = 0, random_flips = 0;
  int64_t files = 0;
  for (const auto& item : fs::recursive_directory_iterator(path)) files += item.is_regular_file() ? 1 : 0;
  for (const auto& item : fs::recursive_directory_iterator(path)) {
    if (!item.is_regular_file()) continue;
    const uint64_t bytes = item.file_size();
    const Rng rng(5, item.path().filename().string());
    // Every byte of the safetensors headers, of the manifest and of the other small files; random bits besides.
    uint64_t every = bytes;
    if (item.path().extension() == ".safetensors") {
      uint64_t header = 0;
      std::memcpy(&header, test::read_file(item.path()).data(), sizeof header);
      every = 8 + header;
    }
    for (uint64_t b = 0; b < every; ++b, ++flips)
      flip_and_check(item.path(), b * 8 + rng.below(b, 8));
    const auto random = static_cast<uint64_t>(10'000 / files);
    for (uint64_t i = 0; i < random; ++i, ++random_flips)
      flip_and_check(item.path(), rng.below(every + i, bytes * 8));
    if (HasFailure()) break;
  }
  EXPECT_GE(random_flips, 9'990);
  std::printf("%d bits flipped, %d of them at random places\n", flips + random_flips, random_flips);
  CheckpointReader::open(path).verify_all();  // as it was
}

// A flip in a piece is noticed by reading it, without verify_all().
TEST(CheckpointReader, ReadingNoticesDamage) {
  const TempDir dir(TempDir::Where::kMemory);
  const fs::path path = test::write_tiny_checkpoint(dir.path(), 7, "run", 2, 2);
  const CheckpointReader good = CheckpointReader::open(path);
  const Piece* piece = nullptr;
  for (const Piece& p : good.manifest().pieces)
    if (p.kind == "exp_avg" && p.tensor == "model.embed_tokens.weight" && p.box.start[0] > 0)
      piece = &p;
  ASSERT_NE(piece, nullptr);
  std::string content = test::read_file(path / piece->file);
  content[content.size() - 1] =
      static_cast<char>(content.back() ^ 1);  // in the last entry of the file
  const SafetensorsFile file = SafetensorsFile::open(path / piece->file);
  const std::string last = file.tensors().back().name;
  test::write_file(path / piece->file, content);
  for (const Piece& p : good.manifest().pieces)
    if (p.file == piece->file && p.entry == last) piece = &p;
  const CheckpointReader reader = CheckpointReader::open(path);
  const auto spec = parallel::ShardSpec::replicated(piece->global_shape, 1);
  std::vector<float> out(static_cast<size_t>(spec.local_elems(0)));
  EXPECT_DATA_ERROR(reader.read(piece->kind, piece->tensor, spec, 0, DType::kF32, out.data()),
                    piece->file, piece->tensor, "CRC32C mismatch",
                    fmt::format("{:08x}", piece->crc32c));
  // A part of the piece that is not damaged: only the checked read refuses.
  Box part = piece->box;
  part.size[0] = 1;
  if (part != piece->box) {
    reader.read_box(piece->kind, piece->tensor, piece->global_shape, part, DType::kF32, out.data());
    EXPECT_DATA_ERROR(reader.read_box(piece->kind, piece->tensor, piece->global_shape, part,
                                      DType::kF32, out.data(), PartialReads::kChecked),
                      "CRC32C mismatch");
  }
}

TEST(CheckpointReader, PartsOfTheVerificationMakeTheWhole) {
  const TempDir dir(TempDir::Where::kMemory);
  const fs::path path = test::write_tiny_checkpoint(dir.path(), 7, "run", 2, 2);
  const CheckpointReader reader = CheckpointReader::open(path);
  const CheckpointReader::Verified all = reader.verify_all();
  for (const int parts : {1, 2, 3, 7, 64}) {
    uint64_t bytes = 0;
    for (int i = 0; i < parts; ++i) bytes += reader.verify_part(i, parts).bytes;
    EXPECT_EQ(bytes, all.bytes);
  }
  // A damaged byte is found by exactly one of the parts.
  const fs::path file = path / "r1run/rank-00001.safetensors";
  std::string content = test::read_file(file);
  content.back() = static_cast<char>(content.back() ^ 4);
  test::write_file(file, content);
  int found = 0;
  for (int i = 0; i < 5; ++i) try {
      (void)CheckpointReader::open(path).verify_part(i, 5);
    } catch (const DataError&) {
      ++found;
    }
  EXPECT_EQ(found, 1);
}

}  // namespace
}  // namespace r1::checkpoint
