// Jobs as a user starts them, for the end-to-end tests.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/launch/run_program.h"
#include "tests/support/temp_dir.h"

namespace r1::test {

using namespace r1::launch::test;  // run, job environment

inline std::filesystem::path data(const std::string& name) { return std::filesystem::path(R1RUN_TEST_DATA) / name; }

/// mpirun -np N r1run ARGS...
inline std::vector<std::string> job(int ranks, const std::vector<std::string>& args) {
  std::vector<std::string> argv{"mpirun", "-np", std::to_string(ranks), std::string(R1RUN_BIN_DIR) + "/r1run"};
  argv.insert(argv.end(), args.begin(), args.end());
  return argv;
}

/// r1run ARGS... on this machine, without a launcher.
inline std::vector<std::string> front_door(const std::vector<std::string>& args) {
  std::vector<std::string> argv{std::string(R1RUN_BIN_DIR) + "/r1run"};
  argv.insert(argv.end(), args.begin(), args.end());
  return argv;
}

/// Lines of one type of a metrics.jsonl.
inline std::vector<nlohmann::json> lines_of(const std::filesystem::path& output, const std::string& type) {
  std::ifstream in(output / "metrics.jsonl");
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(in, line);)
    if (nlohmann::json j = nlohmann::json::parse(line); j["type"] == type) lines.push_back(std::move(j));
  return lines;
}

inline std::vector<nlohmann::json> steps_of(const std::filesystem::path& output) { return lines_of(output, "step"); }

inline std::string bytes_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace r1::test
