// A small real training job for the tests on several hosts: the reference model of four layers on
// rows of token ids.
#pragma once

#include <nlohmann/json.hpp>

#include "tests/launch/hosts_rig.h"

namespace r1::test {

using namespace r1::launch::test;
namespace fs = std::filesystem;
using nlohmann::json;

inline constexpr int kRows = 64, kRowTokens = 64;

/// Rows that differ so much that a row out of order shows in the loss.
inline void write_rows(const fs::path& file) {
  std::ofstream out(file);
  uint32_t state = 1;
  for (int row = 0; row < kRows; ++row) {
    std::vector<int> ids;
    for (int i = 0; i < kRowTokens; ++i)
      ids.push_back(2 + static_cast<int>((state = state * 1664525u + 1013904223u) >> 16) %
                            (2 + 4 * row));
    out << json{{"input_ids", ids}, {"labels", ids}}.dump() << "\n";
  }
}

inline std::vector<std::string> training(const fs::path& data, const fs::path& output, int pp,
                                         int steps, const std::vector<std::string>& more) {
  std::vector<std::string> args{"--pp=" + std::to_string(pp),
                                "--steps=" + std::to_string(steps),
                                "--batch=2",
                                "--seq-len=" + std::to_string(kRowTokens),
                                "--lr=1e-3",
                                "--data=" + data.string(),
                                "--model=" + std::string(R1RUN_TEST_DATA) + "/hf/qwen2-untied",
                                "--device=cpu",
                                "--threads=1",
                                "--output=" + output.string()};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

/// The loss of each step, by step; of a step that was computed twice the last.
inline std::map<int, double> losses(const fs::path& output) {
  std::map<int, double> out;
  std::ifstream in(output / "metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    const json j = json::parse(line, nullptr, false);
    if (j.is_object() && j["type"] == "step") out[j["step"].get<int>()] = j["loss"].get<double>();
  }
  return out;
}

/// The highest step in metrics.jsonl so far; 0 when there is none.
inline int last_step(const fs::path& output) {
  const auto all = losses(output);
  return all.empty() ? 0 : all.rbegin()->first;
}

inline std::vector<std::string> operator+(std::vector<std::string> a,
                                          const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace r1::test
