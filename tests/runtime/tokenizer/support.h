// Test inputs of the tokenizer tests: files, gzip, JSON lines, each tokenizer loaded once.
#pragma once

#include <gtest/gtest.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/tokenizer/tokenizer.h"

namespace r1::text::testing {

using Json = nlohmann::ordered_json;  // keeps the order of members, as templates do

inline std::filesystem::path data_dir() { return std::filesystem::path(R1RUN_TEST_DATA); }

/// The file's bytes; a name that ends in .gz is unpacked.
inline std::string read_data(const std::string& name) {
  const auto path = data_dir() / name;
  gzFile file = gzopen(path.c_str(), "rb");  // reads plain files too
  if (file == nullptr) throw std::runtime_error("cannot open " + path.string());
  std::string text;
  char buffer[1 << 16];
  int n = 0;
  while ((n = gzread(file, buffer, sizeof buffer)) > 0) text.append(buffer, static_cast<size_t>(n));
  gzclose(file);
  if (n < 0) throw std::runtime_error("cannot read " + path.string());
  return text;
}

inline std::vector<Json> read_lines(const std::string& name) {
  std::istringstream in(read_data(name));
  std::vector<Json> rows;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty()) rows.push_back(Json::parse(line));
  }
  return rows;
}

/// The tokenizer of tests/data/tokenizers/<name>, loaded on first use. "llama-3.1" is put together
/// from its parts and the vocabulary it shares with r1-distill-llama.
inline const Tokenizer& tokenizer(const std::string& name) {
  static std::map<std::string, std::unique_ptr<Tokenizer>> loaded;
  auto& slot = loaded[name];
  if (slot) return *slot;
  const std::string dir = "tokenizers/" + name + "/";
  std::string text;
  if (name == "llama-3.1") {
    // Not an ordered object: those search members one by one.
    nlohmann::json file =
        nlohmann::json::parse(read_data("tokenizers/r1-distill-llama/tokenizer.json.gz"));
    file["added_tokens"] = nlohmann::json::parse(read_data(dir + "added_tokens.json"));
    file["post_processor"] = nlohmann::json::parse(read_data(dir + "post_processor.json"));
    text = file.dump();
  } else {
    const bool packed = std::filesystem::exists(data_dir() / (dir + "tokenizer.json.gz"));
    text = read_data(dir + "tokenizer.json" + (packed ? ".gz" : ""));
  }
  slot = std::make_unique<Tokenizer>(Tokenizer::from_json(text, name));
  return *slot;
}

}  // namespace r1::text::testing
