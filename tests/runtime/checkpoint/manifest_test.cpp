#include "runtime/checkpoint/manifest.h"

#include <gtest/gtest.h>

#include "runtime/checkpoint/crc32c.h"
#include "tests/runtime/checkpoint/tiny_checkpoint.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace r1::checkpoint {
namespace {

Manifest small_manifest() {
  Manifest m;
  m.run_id = "0123456789abcdef";
  m.step = 41;
  m.rng_seed = UINT64_MAX;
  m.data_position_rows = INT64_MAX;
  m.config_text = "lr = 1e-5\n# \"quoted\" \\ \t\x01 \xc3\xa9\n";
  m.mesh = {2, 3, 4};
  m.fingerprints = {{"tokenizer", "x"}, {"", ""}};
  m.counters = {{"a", INT64_MIN}, {"b", INT64_MAX}, {"c", 0}};
  m.reals = {{"a", 0.1}, {"b", -1.7976931348623157e308}, {"c", 5e-324}, {"d", -0.0}, {"e", 1e22}};
  m.files = {{"model.safetensors", 100, 0xdeadbeef}, {"r1run/rank-00000.safetensors", 0, 0}};
  Piece p;
  p.tensor = "w";
  p.kind = "weight";
  p.dtype = DType::kBF16;
  p.global_shape = {4, 6};
  p.box = whole_box(p.global_shape);
  p.file = "model.safetensors";
  p.entry = "w";
  p.crc32c = 1;
  m.pieces.push_back(p);
  p.kind = "exp_avg";
  p.dtype = DType::kF32;
  p.file = "r1run/rank-00000.safetensors";
  for (const int64_t row : {0, 1})
    for (const int64_t column : {0, 1}) {  // a 2 x 2 grid of uneven boxes
      p.box = {{row * 3, column * 2}, {row == 0 ? 3 : 1, column == 0 ? 2 : 4}};
      p.entry = fmt::format("exp_avg:w{}", p.box.str());
      m.pieces.push_back(p);
    }
  Piece scalar;
  scalar.tensor = "temperature";
  scalar.kind = "weight";
  scalar.file = "model.safetensors";
  scalar.entry = "temperature";
  m.pieces.push_back(scalar);
  return m;
}

// The text with its checksum made right again after a change.
std::string sealed(std::string text) {
  const size_t at = text.rfind(",\n\"manifest_crc32c\":\"");
  return text.substr(0, at) + fmt::format(",\n\"manifest_crc32c\":\"{:08x}\"}}\n",
                                          crc32c(std::string_view(text).substr(0, at)));
}
std::string changed(const std::string& text, const std::string& from, const std::string& to) {
  std::string s = text;
  const size_t at = s.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  s.replace(at, from.size(), to);
  return sealed(s);
}

TEST(Manifest, RoundTrip) {
  const Manifest m = small_manifest();
  const std::string text = to_json(m);
  EXPECT_EQ(manifest_from_json(text, "x"), m);
  EXPECT_EQ(to_json(manifest_from_json(text, "x")), text);
  Manifest empty;
  empty.run_id = "r";
  EXPECT_EQ(manifest_from_json(to_json(empty), "x"), empty);
  Contribution c{m.files, m.pieces};
  const Contribution back = contribution_from_json(to_json(c), "rank 3");
  EXPECT_EQ(back.files, c.files);
  EXPECT_EQ(back.pieces, c.pieces);
  EXPECT_DATA_ERROR(contribution_from_json("{}", "rank 3"), "rank 3", "\"files\"");
}

TEST(Manifest, EveryChangedByteIsNoticed) {
  const std::string text = to_json(small_manifest());
  for (size_t i = 0; i < text.size(); ++i)
    for (const char c : {'\0', '\xff', '"', ' ', '0', static_cast<char>(text[i] ^ 1),
                         static_cast<char>(text[i] ^ 0x20)}) {
      if (c == text[i]) continue;
      std::string s = text;
      s[i] = c;
      ASSERT_THROW((void)manifest_from_json(s, "m"), DataError) << i;
    }
}

TEST(Manifest, EveryTruncationAndAdditionIsNoticed) {
  const std::string text = to_json(small_manifest());
  for (size_t n = 0; n < text.size(); ++n)
    ASSERT_THROW((void)manifest_from_json(text.substr(0, n), "m"), DataError) << n;
  for (const std::string_view more : {"\n", " ", "}", "x", "{}"})
    EXPECT_DATA_ERROR(manifest_from_json(text + std::string(more), "dir/manifest.json"),
                      "dir/manifest.json");
  EXPECT_DATA_ERROR(manifest_from_json(" " + text, "m"), "CRC32C mismatch");
}

// Changes whose checksum is right: what a faulty or hostile writer could produce.
TEST(Manifest, RulesHoldBehindARightChecksum) {
  const std::string text = to_json(small_manifest());
  ASSERT_EQ(sealed(text), text);
  struct Bad {
    std::string from, to, message;
  };
  for (const Bad& b : std::vector<Bad>{
           {"\"r1run checkpoint\"", "\"other\"", "format"},
           {"\"version\":1", "\"version\":2", "version 2"},
           {"\"version\":1", "\"version\":1.0", "integer"},
           {"\"step\":41", "\"step\":-41", "non-negative"},
           {"\"step\":41", "\"step\":9223372036854775808", "larger"},
           {"\"step\":41,\n", "", "\"step\" is missing"},
           {"\"step\":41", "\"step\":41,\"step\":41", "twice"},
           {"\"step\":41", "\"step\":41,\"extra\":0", "\"extra\""},
           {"\"pp\":2", "\"pp\":0", "mesh"},
           {"\"run_id\":\"0", "\"run_id\":\"../0", "run id"},
           {"\"model.safetensors\"", "\"../model.safetensors\"", "plain file name"},
           {"\"model.safetensors\"", "\"/etc/passwd\"", "plain file name"},
           {"\"model.safetensors\"", "\"a/b/c\"", "plain file name"},
           {"\"model.safetensors\"", "\"r1run/../x\"", "plain file name"},
           {"\"model.safetensors\"", "\"r1run/manifest.json\"", "lists itself"},
           {"\"model.safetensors\",\"bytes\":100", "\"r1run/rank-00000.safetensors\",\"bytes\":100",
            "listed twice"},
           {"\"crc32c\":\"deadbeef\"", "\"crc32c\":\"DEADBEEF\"", "eight hex digits"},
           {"\"crc32c\":\"deadbeef\"", "\"crc32c\":\"deadbee\"", "eight hex digits"},
           {"\"bytes\":100", "\"bytes\":-1", "non-negative"},
           {"\"kind\":\"weight\"", "\"kind\":\"Weight\"", "kind"},
           {"\"kind\":\"weight\"", "\"kind\":\"\"", "kind"},
           {"\"dtype\":\"BF16\"", "\"dtype\":\"bf16\"", "dtype"},
           {"\"file\":\"model.safetensors\",\"entry\":\"w\"", "\"file\":\"other\",\"entry\":\"w\"",
            "not listed"},
           {"\"entry\":\"temperature\"", "\"entry\":\"w\"", "used twice"},
           {"\"start\":[0,0],\"size\":[4,6]", "\"start\":[0],\"size\":[4,6]", "one number a dim"},
           {"\"start\":[0,0],\"size\":[4,6]", "\"start\":[0,1],\"size\":[4,6]", "not within"},
           {"\"start\":[0,0],\"size\":[4,6]", "\"start\":[0,0],\"size\":[4,5]", "20 of its 24"},
           {"\"start\":[0,0],\"size\":[4,6]", "\"start\":[0,0],\"size\":[0,6]", "empty"},
           {"\"start\":[0,0],\"size\":[3,2]", "\"start\":[0,0],\"size\":[3,3]", "overlap"},
           {"\"start\":[0,0],\"size\":[3,2]", "\"start\":[0,0],\"size\":[2,2]", "22 of its 24"},
           {"\"global_shape\":[4,6]", "\"global_shape\":[281474976710655,281474976710655]",
            "63 bits"},
           {"\"a\":-9223372036854775808", "\"a\":-9223372036854775809", "64 bits"},
           {"\"a\":-9223372036854775808", "\"a\":-0", "integer"},
           {"\"a\":0.1", "\"a\":1e999", "double"},
           {"\"a\":0.1", "\"a\":\"0.1\"", "number"},
           {"\"a\":0.1", "\"a\":0.1,\"\\u0061\":0.1", "twice"},
       }) {
    SCOPED_TRACE(b.from + " -> " + b.to);
    EXPECT_DATA_ERROR(manifest_from_json(changed(text, b.from, b.to), "dir/manifest.json"),
                      "dir/manifest.json", b.message);
  }
}

TEST(Manifest, WritingOneThatBreaksARuleIsOurBug) {
  Manifest m = small_manifest();
  m.pieces.pop_back();
  m.pieces.erase(m.pieces.begin() + 2);
  EXPECT_ERROR(InternalError, to_json(m), "its 24 elements");
  m = small_manifest();
  m.reals["nan"] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_ERROR(InternalError, to_json(m), "not finite");
}

}  // namespace
}  // namespace r1::checkpoint
