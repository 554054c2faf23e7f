// Our decision on each case against what the case says and what the reference reader decided.
#include "tests/runtime/checkpoint/safetensors_cases.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

#include "runtime/checkpoint/json_scanner.h"
#include "runtime/checkpoint/safetensors.h"
#include "tests/support/temp_dir.h"

namespace r1::checkpoint {
namespace {

using test::Decision;
using test::SafetensorsCase;

// Name to accepted; lines "accept NAME" or "reject NAME", names as JSON strings.
std::map<std::string, bool> reference_decisions() {
  std::map<std::string, bool> out;
  const std::string text = test::read_file(R1RUN_TEST_DATA "/safetensors/reference_decisions.txt");
  size_t at = 0;
  while (at < text.size()) {
    const size_t end = text.find('\n', at);
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    if (line.empty() || line[0] == '#') continue;
    const std::string name = line.substr(7);
    if (!out.emplace(name, line.starts_with("accept ")).second) ADD_FAILURE() << "twice: " << line;
  }
  return out;
}

// Names without what a line of text cannot hold.
std::string line_name(const std::string& name) {
  std::string out;
  for (const char c : name)
    out += (static_cast<unsigned char>(c) < 0x21 || static_cast<unsigned char>(c) > 0x7e)
               ? fmt::format("%{:02x}", static_cast<unsigned char>(c))
               : std::string(1, c);
  return out;
}

TEST(SafetensorsCases, DecisionsAreOursAndTheReferences) {
  const std::vector<SafetensorsCase> cases = test::safetensors_cases();
  // For tests/data/safetensors/record_reference.py: one file a case.
  if (const char* dir = std::getenv("R1RUN_WRITE_SAFETENSORS_CASES"); dir != nullptr) {
    std::string names;
    for (size_t i = 0; i < cases.size(); ++i) {
      test::write_file(fs::path(dir) / fmt::format("{:05}.safetensors", i), cases[i].bytes);
      names += line_name(cases[i].name) + "\n";
    }
    test::write_file(fs::path(dir) / "names.txt", names);
    GTEST_SKIP() << "wrote " << cases.size() << " cases to " << dir;
  }
  const std::map<std::string, bool> reference = reference_decisions();
  EXPECT_EQ(reference.size(), cases.size())
      << "record them again: tests/data/safetensors/ORIGIN.md";
  EXPECT_GE(cases.size(), 300u);
  const test::TempDir dir(test::TempDir::Where::kMemory);
  size_t accepted = 0, stricter = 0;
  for (const SafetensorsCase& c : cases) {
    SCOPED_TRACE(line_name(c.name));
    const auto it = reference.find(line_name(c.name));
    ASSERT_NE(it, reference.end()) << "record the cases again: tests/data/safetensors/ORIGIN.md";
    const fs::path path = dir / "case.safetensors";
    fs::remove(path);  // truncating a file in place makes some file systems flush it
    test::write_file(path, c.bytes);
    std::string error;
    bool ours = true;
    try {
      const SafetensorsFile f = SafetensorsFile::open(path);
      ++accepted;
      // An accepted file can be read to its last byte.
      uint64_t end = 0;
      for (const TensorEntry& t : f.tensors()) {
        std::string bytes(static_cast<size_t>(t.bytes()), '\0');
        f.read_bytes(t, 0, bytes.data(), bytes.size());
        end = std::max(end, t.end);
        EXPECT_EQ(f.find(t.name), &t);
      }
      EXPECT_LE(end + 8, f.file_bytes());
    } catch (const DataError& e) {
      ours = false;
      error = e.what();
      EXPECT_NE(error.find("case.safetensors: "), std::string::npos) << error;
      EXPECT_EQ(invalid_utf8_at(error), std::string::npos) << "errors are printable";
      EXPECT_EQ(error.find('\x1b'), std::string::npos);
    }
    if (c.ours != Decision::kAsReference) {
      EXPECT_EQ(ours, c.ours == Decision::kAccept) << error;
    }
    if (c.stricter.empty()) {
      EXPECT_EQ(ours, it->second) << "the reference decides otherwise; " << error;
    } else {
      ++stricter;
      EXPECT_FALSE(ours);
      EXPECT_TRUE(it->second) << "not stricter than the reference";
    }
  }
  EXPECT_GT(accepted, 100u);
  std::printf("%zu cases, %zu accepted, %zu stricter than the reference\n", cases.size(), accepted,
              stricter);
}

}  // namespace
}  // namespace r1::checkpoint
