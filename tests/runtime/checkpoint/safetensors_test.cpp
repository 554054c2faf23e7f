// The safetensors writer, own-file rules, reading, and headers too large for the table of cases.
#include "runtime/checkpoint/safetensors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <set>

#include "runtime/checkpoint/crc32c.h"
#include "tests/support/expect_error.h"
#include "tests/support/tiny_hf.h"

namespace r1::checkpoint {
namespace {

using test::TempDir;
using test::TinyTensor;

std::vector<TinyTensor> some_tensors() {
  return {test::random_tensor("z", DType::kF64, {3}),
          test::random_tensor("a", DType::kF32, {2, 0, 4}),
          test::random_tensor("b\n\"\\\xc3\xa9\x01", DType::kF32, {}),
          test::random_tensor("", DType::kBF16, {5, 3}),
          test::random_tensor("d", DType::kF16, {7}),
          {{"e", DType::kU8, {3}}, "abc"}};
}

TEST(SafetensorsWriter, RoundTripInPieces) {
  const TempDir dir(TempDir::Where::kMemory);
  const std::vector<TinyTensor> tensors = some_tensors();
  const std::map<std::string, std::string> metadata{{"format", "pt"}, {"k\n", "\xf0\x9f\x98\x80"}};
  for (const size_t piece : {1u, 3u, 1000u}) {
    const fs::path path = dir / "x.safetensors";
    std::vector<TensorDecl> decls;
    for (const TinyTensor& t : tensors) decls.push_back(t.decl);
    SafetensorsWriter writer(path, decls, metadata);
    for (const TinyTensor& t : tensors)
      for (size_t at = 0; at < t.bytes.size(); at += piece)
        writer.write(t.decl.name, t.bytes.data() + at, std::min(piece, t.bytes.size() - at));
    EXPECT_FALSE(fs::exists(path) && piece == 1) << "the file appears in finish() only";
    const FileSummary summary = writer.finish();
    const std::string content = test::read_file(path);
    EXPECT_EQ(summary.name, "x.safetensors");
    EXPECT_EQ(summary.bytes, content.size());
    EXPECT_EQ(summary.bytes, SafetensorsWriter::file_bytes(decls, metadata));
    EXPECT_EQ(summary.crc32c, crc32c(content));
    // As the format wants of writers: begins with {, padded with spaces to 8.
    const size_t header =
        static_cast<unsigned char>(content[0]) + 256 * static_cast<unsigned char>(content[1]);
    EXPECT_EQ(header % 8, 0u);
    EXPECT_EQ(content[8], '{');
    const SafetensorsFile file = SafetensorsFile::open(path, HeaderRules::kOwn);
    EXPECT_EQ(file.metadata(), metadata);
    ASSERT_EQ(file.tensors().size(), tensors.size());
    ASSERT_EQ(summary.tensors.size(), tensors.size());
    EXPECT_EQ(file.header_crc32c(), crc32c(content.substr(0, 8 + header)));
    for (size_t i = 0; i < tensors.size(); ++i) {
      const TensorEntry& t = file.at(tensors[i].decl.name);
      EXPECT_EQ(t.shape, tensors[i].decl.shape);
      EXPECT_EQ(t.dtype, tensors[i].decl.dtype);
      std::string bytes(static_cast<size_t>(t.bytes()), '\0');
      file.read_bytes(t, 0, bytes.data(), bytes.size());
      EXPECT_EQ(bytes, tensors[i].bytes);
      EXPECT_EQ(summary.tensors[i].name, tensors[i].decl.name);
      EXPECT_EQ(summary.tensors[i].crc32c, crc32c(tensors[i].bytes));
      if (bytes.size() > 2) {
        std::string middle(bytes.size() - 2, '\0');
        file.read_bytes(t, 1, middle.data(), middle.size());
        EXPECT_EQ(middle, bytes.substr(1, middle.size()));
        EXPECT_THROW(file.read_bytes(t, 3, middle.data(), middle.size()), InternalError);
      }
    }
  }
}

TEST(SafetensorsWriter, NoTensors) {
  const TempDir dir(TempDir::Where::kMemory);
  EXPECT_EQ(SafetensorsWriter(dir / "x", {}).finish().bytes, 16u);
  EXPECT_TRUE(SafetensorsFile::open(dir / "x").tensors().empty());
}

TEST(SafetensorsWriter, MisuseIsNoticed) {
  const TempDir dir(TempDir::Where::kMemory);
  const fs::path path = dir / "x";
  using Decls = std::vector<TensorDecl>;
  EXPECT_ERROR(InternalError,
               SafetensorsWriter(path, Decls{{"a", DType::kF32, {1}}, {"a", DType::kF32, {1}}}),
               "twice");
  EXPECT_ERROR(InternalError,
               SafetensorsWriter(path, Decls{{"a", DType::kU8, {1}}, {"b", DType::kF32, {1}}}),
               "wider elements first");
  EXPECT_ERROR(InternalError, SafetensorsWriter(path, Decls{{"\xff", DType::kF32, {1}}}), "\\xff");
  EXPECT_ERROR(InternalError, SafetensorsWriter(path, Decls{{"__metadata__", DType::kF32, {1}}}),
               "__metadata__");
  EXPECT_ERROR(
      InternalError,
      SafetensorsWriter(path, Decls{{"a", DType::kF32, {int64_t{1} << 40, int64_t{1} << 40}}}),
      "64 bits");
  const std::string data(64, 'x');
  {
    SafetensorsWriter w(path, Decls{{"a", DType::kF32, {2}}, {"b", DType::kF32, {1}}});
    EXPECT_ERROR(InternalError, w.write("b", data.data(), 4), "\"a\" has 0 of 8");
    EXPECT_ERROR(InternalError, w.write("a", data.data(), 9), "too many");
    w.write("a", data.data(), 8);
    EXPECT_ERROR(InternalError, w.finish(), "\"b\" has 0 of 4");
    w.write("b", data.data(), 4);
    EXPECT_ERROR(InternalError, w.write("b", data.data(), 4), "after the last");
  }
  EXPECT_TRUE(fs::is_empty(dir.path())) << "a writer that never finished leaves nothing";
  Decls decls{{"u", DType::kU8, {1}},
              {"h", DType::kBF16, {1}},
              {"f", DType::kF32, {1}},
              {"g", DType::kBF16, {1}}};
  sort_for_file(decls);
  std::string order;
  for (const TensorDecl& d : decls) order += d.name;
  EXPECT_EQ(order, "fhgu");
}

TEST(SafetensorsWriter, ReplacesAFileButNeverFollowsALink) {
  const TempDir dir(TempDir::Where::kMemory);
  test::write_file(dir / "victim", "precious");
  fs::create_symlink(dir / "victim", dir / "x");
  SafetensorsWriter(dir / "x", {}).finish();
  EXPECT_EQ(test::read_file(dir / "victim"), "precious");
  EXPECT_FALSE(fs::is_symlink(dir / "x"));
  EXPECT_ERROR(StorageError, SafetensorsWriter(dir / "missing" / "x", {}), "missing/x",
               "No such file");
}

TEST(SafetensorsFile, OwnRulesAreStricter) {
  const TempDir dir(TempDir::Where::kMemory);
  const std::string header = R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"note":1}})";
  std::string file(8, '\0');
  file[0] = static_cast<char>(header.size());
  test::write_file(dir / "x", file + header + "d");
  EXPECT_EQ(SafetensorsFile::open(dir / "x").tensors().size(), 1u);
  EXPECT_DATA_ERROR(SafetensorsFile::open(dir / "x", HeaderRules::kOwn), "\"w\"",
                    "unknown field \"note\"");
}

TEST(SafetensorsFile, NamesAreShownEscaped) {
  const std::string header =
      "{\"\\u001b[31m\\u0007\xc3\xa9\":{\"dtype\":\"F99\",\"shape\":[],\"data_offsets\":[0,4]}}";
  EXPECT_DATA_ERROR(parse_safetensors_header(header, 4, "file"), R"("\x1b[31m\x07\xc3\xa9")",
                    "\"F99\"", "BF16");
}

// Errors say where: the byte of the header, or the tensor.
TEST(SafetensorsFile, ErrorsNameThePlace) {
  EXPECT_DATA_ERROR(parse_safetensors_header(R"({"w":1})", 0, "m.safetensors"),
                    "m.safetensors: header: byte 5: ");
  EXPECT_DATA_ERROR(parse_safetensors_header(
                        R"({"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,20]}})", 20, "m"),
                    "\"w\"", "F32 [2, 3] needs 24 bytes", "hold 20");
  EXPECT_DATA_ERROR(
      parse_safetensors_header(
          R"({"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"v":{"dtype":"U8","shape":[4],"data_offsets":[6,10]}})",
          10, "m"),
      "tensor \"v\" begins at byte 6", "tensor \"w\" ends at 4", "holes");
  EXPECT_DATA_ERROR(
      parse_safetensors_header(R"({"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 3, "m"),
      "4 bytes of data, the file has 3", "cut short");
}

// ---- large headers

std::string with_length(const std::string& header) {
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>((header.size() >> (8 * i)) & 0xff);
  return out + header;
}

TEST(SafetensorsFile, HeaderOfTheLargestSize) {
  const TempDir dir(TempDir::Where::kMemory);
  for (const uint64_t n : {kMaxHeaderBytes, kMaxHeaderBytes + 1}) {
    std::string header = "{}";
    header.resize(n, ' ');
    test::write_file(dir / "x", with_length(header));
    if (n <= kMaxHeaderBytes) {
      EXPECT_TRUE(SafetensorsFile::open(dir / "x").tensors().empty());
    } else {
      EXPECT_DATA_ERROR(SafetensorsFile::open(dir / "x"), "100000001", "at most 100000000");
    }
    EXPECT_DATA_ERROR(SafetensorsFile::open(dir / "x", HeaderRules::kOwn), "at most 67108864");
  }
}

long peak_kib() {
  rusage u{};
  ::getrusage(RUSAGE_SELF, &u);
  return u.ru_maxrss;
}

TEST(SafetensorsFile, AHundredMillionHostileBytes) {
  // What is refused must be refused before much is held: brackets without end, one endless string,
  // metadata, numbers.
  std::string brackets(kMaxHeaderBytes, '[');
  brackets[0] = '{';
  std::string string = "{\"" + std::string(kMaxHeaderBytes - 2, 'a');
  std::string number = R"({"a":{"dtype":"F32","shape":[)" + std::string(kMaxHeaderBytes - 40, '9');
  std::string dims = R"({"a":{"dtype":"F32","shape":[)";
  while (dims.size() < kMaxHeaderBytes - 8) dims += "1,1,1,1,";
  const long before = peak_kib();
  for (const std::string* s : {&brackets, &string, &number, &dims})
    EXPECT_DATA_ERROR(parse_safetensors_header(*s, 0, "file"), "header: byte ");
#ifndef __SANITIZE_ADDRESS__  // which keeps freed memory for a while
  EXPECT_LT(peak_kib() - before, 280 * 1024) << "an endless name is held once while it is read";
#else
  (void)before;
#endif
}

TEST(SafetensorsFile, MillionsOfTensors) {
  // 1,000,000 are accepted, one more is not.
  std::string header = "{";
  for (size_t i = 0; i < kMaxTensors; ++i) {
    header += '"';
    header += std::to_string(i);
    header += R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)";
  }
  header.back() = '}';
  EXPECT_EQ(parse_safetensors_header(header, 0, "file").tensors.size(), kMaxTensors);
  header.back() = ',';
  header += R"("x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})";
  EXPECT_DATA_ERROR(parse_safetensors_header(header, 0, "file"), "more than 1000000 tensors");
}

}  // namespace
}  // namespace r1::checkpoint
