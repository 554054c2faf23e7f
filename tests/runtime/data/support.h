// What the data tests share: a directory that goes away, files, and the message of an error.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "runtime/core/error.h"
#include "tests/support/temp_dir.h"

namespace r1::data::test {

class TempDir : public r1::test::TempDir {
 public:
  std::filesystem::path write(const std::string& name, std::string_view content) const {
    const auto file = path() / name;
    std::ofstream out(file, std::ios::binary);
    out.write(content.data(), static_cast<std::streamsize>(content.size()));
    if (!out.flush()) throw std::runtime_error("cannot write " + file.string());
    return file;
  }
};

[[nodiscard]] inline std::string slurp(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  EXPECT_TRUE(in) << file;
  return {std::istreambuf_iterator<char>(in), {}};
}

[[nodiscard]] inline std::filesystem::path sft(const std::string& name) {
  return std::filesystem::path(R1RUN_TEST_DATA) / "sft" / name;
}

/// The message of the Error that `f` throws, checked for its code; "" and a failure when it throws
/// none.
template <class F>
[[nodiscard]] std::string message_of(ExitCode code, F f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

}  // namespace r1::data::test
