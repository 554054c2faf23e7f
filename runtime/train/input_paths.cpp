#include "runtime/train/input_paths.h"

#include <cerrno>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "runtime/core/error.h"
#include "runtime/data/dataset.h"

namespace r1::train {
namespace {

namespace fs = std::filesystem;

void check_path(std::string_view option, const fs::path& path, std::string_view expected) {
  if (path.empty()) return;
  std::error_code error;
  if (fs::exists(path, error)) return;
  throw UsageError("--{} {}: {}; expected {}", option, path.string(),
                   error ? error.message() : std::generic_category().message(ENOENT), expected);
}

}  // namespace

void check_input_paths(const JobConfig& cfg) {
  check_path("model", cfg.model,
             "a Hugging Face model directory (names such as R1-Distill-Qwen-7B are for `r1run plan`, which needs no weights: download "
             "the model, and give its directory)");
  for (const std::string& text : cfg.data) check_path("data", data::parse_data_source(text).path, "a file of JSON or JSON lines");
  for (const std::string& text : cfg.eval_data)
    check_path("eval-data", data::parse_data_source(text).path, "a file of JSON or JSON lines");
  check_path("reference", cfg.reference, "a safetensors file");
  check_path("checkpoint", cfg.checkpoint, "a directory with r1run/manifest.json");
  if (cfg.resume != "auto") check_path("resume", cfg.resume, "a checkpoint (a directory with r1run/manifest.json) or an output that holds some");
}

}  // namespace r1::train
