// Makes small Hugging Face directories: safetensors files from values, single or sharded with an
// index.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/core/rng.h"
#include "tests/support/temp_dir.h"

namespace r1::test {

/// A tensor with its bytes.
struct TinyTensor {
  checkpoint::TensorDecl decl;
  std::string bytes;
};

/// Values of N(0, 1) keyed by the name, rounded to `dtype` (a floating type).
inline TinyTensor random_tensor(const std::string& name, DType dtype, std::vector<int64_t> shape,
                                uint64_t seed = 1) {
  TinyTensor t{{name, dtype, std::move(shape)}, {}};
  int64_t n = 1;
  for (const int64_t d : t.decl.shape) n *= d;
  std::vector<float> values(static_cast<size_t>(n));
  const Rng rng(seed, name);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(rng.normal(i));
  t.bytes.resize(static_cast<size_t>(n * dtype_bytes(dtype)));
  checkpoint::convert_elements(DType::kF32, values.data(), dtype, t.bytes.data(), values.size());
  return t;
}

inline checkpoint::FileSummary write_tensors(const std::filesystem::path& path,
                                             const std::vector<TinyTensor>& tensors,
                                             const std::map<std::string, std::string>& metadata = {
                                                 {"format", "pt"}}) {
  std::vector<checkpoint::TensorDecl> decls;
  for (const TinyTensor& t : tensors) decls.push_back(t.decl);
  checkpoint::sort_for_file(decls);
  checkpoint::SafetensorsWriter writer(path, decls, metadata);
  for (const checkpoint::TensorDecl& d : decls)
    for (const TinyTensor& t : tensors)
      if (t.decl.name == d.name) writer.write(d.name, t.bytes.data(), t.bytes.size());
  return writer.finish();
}

/// `files` weight files with the tensors dealt out in order; one file has no index.
inline void write_hf_dir(const std::filesystem::path& dir, const std::vector<TinyTensor>& tensors,
                         int files = 1,
                         std::string_view config = R"({"architectures":["Qwen2ForCausalLM"]})") {
  std::filesystem::create_directories(dir);
  write_file(dir / "config.json", config);
  std::map<std::string, std::string> map;
  uint64_t total = 0;
  for (int f = 0; f < files; ++f) {
    std::vector<TinyTensor> part;
    for (size_t i = 0; i < tensors.size(); ++i)
      if (static_cast<int>(i * static_cast<size_t>(files) / tensors.size()) == f)
        part.push_back(tensors[i]);
    const std::string name = checkpoint::weight_file_name(f, files);
    write_tensors(dir / name, part);
    for (const TinyTensor& t : part) {
      map[t.decl.name] = name;
      total += t.bytes.size();
    }
  }
  if (files > 1)
    write_file(dir / "model.safetensors.index.json", checkpoint::weight_index_json(map, total));
}

}  // namespace r1::test
