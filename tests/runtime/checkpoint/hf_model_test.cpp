#include "runtime/checkpoint/hf_model.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "runtime/checkpoint/crc32c.h"
#include "tests/support/expect_error.h"
#include "tests/support/tiny_hf.h"

namespace r1::checkpoint {
namespace {

using test::random_tensor;
using test::TempDir;
using test::TinyTensor;

std::vector<TinyTensor> small_model() {
  return {random_tensor("model.embed_tokens.weight", DType::kBF16, {11, 6}),
          random_tensor("model.layers.0.self_attn.q_proj.weight", DType::kBF16, {8, 6}),
          random_tensor("model.layers.0.self_attn.q_proj.bias", DType::kF32, {8}),
          random_tensor("model.layers.0.mlp.down_proj.weight", DType::kF16, {6, 10}),
          random_tensor("model.norm.weight", DType::kF64, {6}),
          random_tensor("lm_head.weight", DType::kBF16, {11, 6})};
}

TEST(HfModelDir, SingleAndSharded) {
  for (const int files : {1, 2, 3, 6}) {
    const TempDir dir(TempDir::Where::kMemory);
    const std::vector<TinyTensor> tensors = small_model();
    test::write_hf_dir(dir.path(), tensors, files);
    const HfModelDir model = HfModelDir::open(dir.path());
    EXPECT_EQ(model.files().size(), static_cast<size_t>(files));
    EXPECT_EQ(model.config_json(), R"({"architectures":["Qwen2ForCausalLM"]})");
    std::vector<std::string> names;
    uint64_t total = 0;
    for (const TinyTensor& t : tensors) {
      names.push_back(t.decl.name);
      total += t.bytes.size();
      ASSERT_TRUE(model.has(t.decl.name));
      EXPECT_EQ(model.entry(t.decl.name).shape, t.decl.shape);
      EXPECT_EQ(model.entry(t.decl.name).dtype, t.decl.dtype);
      std::string bytes(t.bytes.size(), '\0');
      model.read_shard(t.decl.name, parallel::ShardSpec::replicated(t.decl.shape, 2), 1,
                       t.decl.dtype, bytes.data());
      EXPECT_EQ(bytes, t.bytes);
    }
    std::sort(names.begin(), names.end());
    EXPECT_EQ(model.names(), names);
    EXPECT_EQ(model.total_bytes(), total);
    EXPECT_FALSE(model.has("model.layers.1.x"));
    EXPECT_DATA_ERROR(model.entry("model.layers.1.x"), dir.path().string(), "\"model.layers.1.x\"");
  }
}

TEST(HfModelDir, RandomShardsEqualAPlainSlice) {
  const TempDir dir(TempDir::Where::kMemory);
  const Rng rng(11, "shards");
  uint64_t draw = 0;
  const auto below = [&](uint64_t n) { return rng.below(draw++, n); };
  std::vector<TinyTensor> tensors;
  for (int i = 0; i < 24; ++i) {
    std::vector<int64_t> shape(below(4));
    for (int64_t& d : shape) d = static_cast<int64_t>(1 + below(40));
    const DType dtype = std::array{DType::kF32, DType::kBF16, DType::kF16, DType::kF64}[below(4)];
    tensors.push_back(random_tensor(fmt::format("t{}", i), dtype, shape));
  }
  // Larger than the staging buffer (4 MiB), so that it is refilled, in both directions of cutting.
  tensors.push_back(random_tensor("large", DType::kF64, {1500, 700}));
  test::write_hf_dir(dir.path(), tensors, 3);
  const HfModelDir model = HfModelDir::open(dir.path());
  for (const TinyTensor& t : tensors)
    for (int repeat = 0; repeat < (t.decl.name == "large" ? 4 : 12); ++repeat) {
      const std::vector<int64_t>& shape = t.decl.shape;
      const DType to = std::array{DType::kF32, DType::kBF16, DType::kF16, DType::kF64}[below(4)];
      const int ranks = static_cast<int>(1 + below(5));
      parallel::ShardSpec spec = parallel::ShardSpec::replicated(shape, ranks);
      if (!shape.empty() && repeat % 4 != 0) {
        const auto dim = static_cast<size_t>(below(shape.size()));
        std::vector<parallel::Interval> parts;
        for (int r = 0; r < ranks; ++r) {  // overlapping and empty parts among them
          const auto begin = static_cast<int64_t>(below(static_cast<uint64_t>(shape[dim]) + 1));
          parts.push_back({begin, begin + static_cast<int64_t>(below(
                                              static_cast<uint64_t>(shape[dim] - begin) + 1))});
        }
        parts.push_back({0, shape[dim]});  // their union must cover the dim
        spec = parallel::ShardSpec::cut(shape, static_cast<int>(dim), parts);
      }
      for (int r = 0; r < spec.ranks(); ++r) {
        const auto n = static_cast<size_t>(spec.local_elems(r));
        const auto width = static_cast<size_t>(dtype_bytes(to));
        std::string got(n * width + 8, '\x5a');
        model.read_shard(t.decl.name, spec, r, to, got.data());
        EXPECT_EQ(got.substr(n * width), std::string(8, '\x5a')) << "written beyond the shard";
        // Element by element through global coordinates.
        int64_t inner = 1;
        for (size_t d = static_cast<size_t>(spec.dim()) + 1; d < shape.size(); ++d)
          inner *= shape[d];
        const int64_t extent = shape.empty() ? 1 : shape[static_cast<size_t>(spec.dim())];
        const parallel::Interval part = spec.part(r);
        std::string want(n * width, '\0');
        size_t at = 0;
        const auto from_width = static_cast<size_t>(dtype_bytes(t.decl.dtype));
        for (size_t e = 0; e < t.bytes.size() / from_width; ++e) {
          const int64_t i = static_cast<int64_t>(e) / inner % extent;
          if (i < part.begin || i >= part.end) continue;
          convert_elements(t.decl.dtype, t.bytes.data() + e * from_width, to,
                           want.data() + width * at++, 1);
        }
        ASSERT_EQ(at, n);
        ASSERT_TRUE(got.compare(0, want.size(), want) == 0) << t.decl.name << " rank " << r;
      }
    }
}

TEST(HfModelDir, RefusesWrongShapesAndDtypes) {
  const TempDir dir(TempDir::Where::kMemory);
  TinyTensor ids{{"ids", DType::kI64, {3}}, std::string(24, '\1')};
  test::write_hf_dir(dir.path(), {random_tensor("w", DType::kF32, {4, 3}), ids});
  const HfModelDir model = HfModelDir::open(dir.path());
  std::array<float, 64> out{};
  const std::vector<int64_t> wrong{3, 4}, wrong_rank{12}, right{4, 3}, three{3};
  EXPECT_DATA_ERROR(
      model.read_shard("w", parallel::ShardSpec::replicated(wrong, 1), 0, DType::kF32, out.data()),
      "model.safetensors", "\"w\"", "[4, 3]", "[3, 4]");
  EXPECT_DATA_ERROR(model.read_shard("w", parallel::ShardSpec::replicated(wrong_rank, 1), 0,
                                     DType::kF32, out.data()),
                    "[4, 3]", "[12]");
  EXPECT_DATA_ERROR(
      model.read_shard("w", parallel::ShardSpec::replicated(right, 1), 0, DType::kI32, out.data()),
      "F32", "int32");
  EXPECT_DATA_ERROR(model.read_shard("ids", parallel::ShardSpec::replicated(three, 1), 0,
                                     DType::kF32, out.data()),
                    "I64", "fp32");
  EXPECT_DATA_ERROR(
      model.read_shard("v", parallel::ShardSpec::replicated(three, 1), 0, DType::kF32, out.data()),
      "\"v\"");
}

TEST(HfModelDir, DirectoriesThatAreNoModels) {
  const TempDir dir(TempDir::Where::kMemory);
  EXPECT_DATA_ERROR(HfModelDir::open(dir / "missing"), "missing", "no such directory");
  test::write_file(dir / "file", "x");
  EXPECT_DATA_ERROR(HfModelDir::open(dir / "file"), "not a directory");
  EXPECT_DATA_ERROR(HfModelDir::open(dir.path()), "config.json");
  test::write_file(dir / "config.json", "{}");
  EXPECT_EQ(HfModelDir::open_config_only(dir.path()).config_json(), "{}");
  EXPECT_DATA_ERROR(HfModelDir::open(dir.path()),
                    "neither model.safetensors nor model.safetensors.index.json");
  test::write_file(dir / "adapter_model.safetensors", "");
  EXPECT_DATA_ERROR(HfModelDir::open(dir.path()), "adapter");
  test::write_file(dir / "pytorch_model.bin", "");
  EXPECT_DATA_ERROR(HfModelDir::open(dir.path()), "pytorch_model.bin", "safetensors");
  fs::create_directory(dir / "model.safetensors");
  EXPECT_DATA_ERROR(HfModelDir::open(dir.path()), "model.safetensors", "directory");
  fs::remove(dir / "model.safetensors");
  ASSERT_EQ(::mkfifo((dir / "model.safetensors").c_str(), 0600), 0);
  EXPECT_DATA_ERROR(HfModelDir::open(dir.path()), "model.safetensors", "not a regular file");
  fs::remove(dir / "model.safetensors");
  test::write_file(
      dir / "model.safetensors",
      "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 3554214752\n");
  EXPECT_DATA_ERROR(HfModelDir::open(dir.path()), "Git LFS pointer", "git lfs pull");
}

TEST(HfModelDir, HalfADownload) {
  const TempDir dir(TempDir::Where::kMemory);
  test::write_hf_dir(dir.path(), small_model(), 3);
  const fs::path second = dir / "model-00002-of-00003.safetensors";
  const std::string whole = test::read_file(second);
  for (const size_t keep :
       {whole.size() - 1, whole.size() / 2, size_t{100}, size_t{8}, size_t{3}, size_t{0}}) {
    test::write_file(second, whole.substr(0, keep));
    EXPECT_DATA_ERROR(HfModelDir::open(dir.path()), "model-00002-of-00003.safetensors");
  }
  test::write_file(second, whole.substr(0, whole.size() - 1));
  EXPECT_DATA_ERROR(HfModelDir::open(dir.path()), "cut short");
  fs::remove(second);
  fs::remove(dir / "model-00003-of-00003.safetensors");
  EXPECT_DATA_ERROR(HfModelDir::open(dir.path()), "2 of 3 weight files",
                    "model-00002-of-00003.safetensors, model-00003-of-00003.safetensors");
}

TEST(HfModelDir, FileCutShortWhileOpen) {
  const TempDir dir(TempDir::Where::kMemory);
  const TinyTensor w = random_tensor("w", DType::kF32, {1000});
  test::write_hf_dir(dir.path(), {w});
  const HfModelDir model = HfModelDir::open(dir.path());
  fs::resize_file(dir / "model.safetensors", 2000);
  std::vector<float> out(1000);
  EXPECT_DATA_ERROR(model.read_shard("w", parallel::ShardSpec::replicated(w.decl.shape, 1), 0,
                                     DType::kF32, out.data()),
                    "model.safetensors", "when it was opened");
  EXPECT_DATA_ERROR(model.files()[0].check_unchanged(), "when it was opened");
}

TEST(HfModelDir, IndexAndFilesMustAgree) {
  const TempDir dir(TempDir::Where::kMemory);
  test::write_hf_dir(dir.path(), small_model(), 2);
  const std::string index = test::read_file(dir / "model.safetensors.index.json");
  const auto replace = [&](const std::string& from, const std::string& to) {
    std::string s = index;
    s.replace(s.find(from), from.size(), to);
    test::write_file(dir / "model.safetensors.index.json", s);
  };
  // A tensor that no file has; one said to be in the other file; one in two files.
  replace("\"model.norm.weight\"", "\"model.norm.w\"");
  EXPECT_DATA_ERROR(HfModelDir::open(dir.path()), "\"model.norm.w\"", "is not");
  replace("\"model.norm.weight\": \"model-00002", "\"model.norm.weight\": \"model-00001");
  EXPECT_DATA_ERROR(HfModelDir::open(dir.path()), "\"model.norm.weight\"",
                    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
  test::write_file(dir / "model.safetensors.index.json", index);
  std::vector<TinyTensor> twice{random_tensor("model.norm.weight", DType::kF32, {6})};
  for (const TinyTensor& t : small_model())
    if (t.decl.name.find("embed") != std::string::npos ||
        t.decl.name.find("q_proj") != std::string::npos)
      twice.push_back(t);
  test::write_tensors(dir / "model-00001-of-00002.safetensors", twice);
  EXPECT_DATA_ERROR(HfModelDir::open(dir.path()), "\"model.norm.weight\"",
                    "but it is in model-00001-of-00002.safetensors");
  // A tensor that the index does not name is only worth a warning.
  twice[0] = random_tensor("extra", DType::kF32, {6});
  test::write_tensors(dir / "model-00001-of-00002.safetensors", twice);
  EXPECT_TRUE(HfModelDir::open(dir.path()).has("extra"));
}

TEST(WeightIndex, FileNamesMayNotLeaveTheDirectory) {
  const auto parse = [](std::string_view file) {
    return parse_weight_index(fmt::format(R"({{"weight_map":{{"w":"{}"}}}})", file), "index");
  };
  EXPECT_EQ(parse("model-00001-of-00002.safetensors").at("w"), "model-00001-of-00002.safetensors");
  EXPECT_EQ(parse(std::string(255, 'a')).size(), 1u);
  for (const std::string& bad :
       {std::string("../secret"), std::string("/etc/passwd"), std::string("a/b"),
        std::string(".hidden"), std::string("."), std::string(".."), std::string(""),
        std::string("a\\\\b"), std::string("a b"), std::string("a\\u0000"), std::string("a\\n"),
        std::string("\xc3\xa9"), std::string("~"), std::string("C:x"), std::string(256, 'a')})
    EXPECT_DATA_ERROR(parse(bad), "index", "file names must be plain");
}

TEST(WeightIndex, Strict) {
  EXPECT_EQ(parse_weight_index(R"({"metadata":{"total_size":1e9},"weight_map":{}})", "i").size(),
            0u);
  for (const std::string_view bad :
       {"", "[]", "{}", R"({"weight_map":1})", R"({"weight_map":{"a":1}})",
        R"({"weight_map":{"a":"x"})", R"({"weight_map":{"a":"x"}}})",
        R"({"weight_map":{},"weight_map":{}})", R"({"weight_map":{"a":"x","a":"x"}})",
        R"({"weight_map":{"a":"x","\u0061":"y"}})", R"({"weight_map":{"a\u0000":"x"}})",
        "\xef\xbb\xbf{\"weight_map\":{}}", R"({"weight_map":{"a":null}})"})
    EXPECT_DATA_ERROR(parse_weight_index(bad, "the index"), "the index");
}

TEST(WeightIndex, RoundTrip) {
  const std::map<std::string, std::string> map{{"b\"q\n", "model-00001-of-00002.safetensors"},
                                               {"a", "model-00002-of-00002.safetensors"}};
  const auto back = parse_weight_index(weight_index_json(map, 123), "x");
  EXPECT_EQ((std::map<std::string, std::string>(back.begin(), back.end())), map);
  EXPECT_NE(weight_index_json(map, 123).find("\"total_size\": 123"), std::string::npos);
  EXPECT_EQ(weight_file_name(0, 1), "model.safetensors");
  EXPECT_EQ(weight_file_name(1, 12), "model-00002-of-00012.safetensors");
}

TEST(HfModelDir, SymbolicLinksAsInACache) {
  const TempDir cache;
  test::write_hf_dir(cache / "blobs", {random_tensor("w", DType::kF32, {2})});
  fs::create_directories(cache / "snapshot");
  for (const std::string_view name : {"config.json", "model.safetensors"})
    fs::create_symlink(fs::path("../blobs") / name, cache / "snapshot" / name);
  EXPECT_TRUE(HfModelDir::open(cache / "snapshot").has("w"));
}

TEST(HfModelDir, SideFilesButNoCode) {
  const TempDir dir(TempDir::Where::kMemory);
  test::write_hf_dir(dir / "in", {random_tensor("w", DType::kF32, {2})});
  for (const std::string_view name :
       {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "merges.txt",
        "chat_template.jinja", "modeling_evil.py", "requirements.txt", "run.sh",
        "pytorch_model.bin", "training_args.bin"})
    test::write_file(dir / "in" / name, fmt::format("content of {}", name));
  fs::create_directories(dir / "out");
  const std::vector<FileRecord> copied = HfModelDir::open(dir / "in").copy_side_files(dir / "out");
  std::vector<std::string> names, found;
  for (const FileRecord& f : copied) {
    names.push_back(f.name);
    const std::string text = test::read_file(dir / "out" / f.name);
    EXPECT_EQ(text, test::read_file(dir / "in" / f.name));
    EXPECT_EQ(f.bytes, text.size());
    EXPECT_EQ(f.crc32c, crc32c(text));
  }
  for (const auto& item : fs::directory_iterator(dir / "out"))
    found.push_back(item.path().filename());
  std::sort(names.begin(), names.end());
  std::sort(found.begin(), found.end());
  EXPECT_EQ(names, found);
  EXPECT_EQ(names, (std::vector<std::string>{"chat_template.jinja", "config.json",
                                             "generation_config.json", "merges.txt",
                                             "tokenizer.json", "tokenizer_config.json"}));
}

}  // namespace
}  // namespace r1::checkpoint
