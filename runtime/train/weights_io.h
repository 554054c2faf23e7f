// Weights and optimizer state between files and ranks: each rank reads its own slices; each stage's writer gathers
// tensor by tensor over tp, never the whole model.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/commit.h"
#include "runtime/checkpoint/hf_model.h"
#include "runtime/train/engine.h"

namespace r1::train {

/// Bytes of a checkpoint: weights, masters where they are written, two moments; 2 % for headers and side files.
[[nodiscard]] uint64_t checkpoint_bytes(const parallel::ModelConfig& config, const parallel::NumericFormat& format);

/// Checks every shape and name of the model against the directory before anything is allocated. Throws DataError.
void check_model_dir(const checkpoint::HfModelDir& dir, const parallel::ModelConfig& config);
/// Reads this rank's slices of all weights.
void load_weights(Engine& engine, const checkpoint::HfModelDir& dir);
/// The same for stages without an engine.
void load_weights(std::span<const models::StageParameters> stages, const checkpoint::HfModelDir& dir, const Stream& s);
/// Reads weights and optimizer state of a committed checkpoint of any layout, bit for bit.
void load_checkpoint_state(Engine& engine, const checkpoint::CheckpointReader& reader);

/// Gathers a parameter's block over tp onto tp rank 0 as a whole fp32 tensor (others get an empty vector). Collective over tp.
[[nodiscard]] std::vector<float> gather_parameter(Engine& engine, const models::StageParameters& params,
                                                  const Tensor& block, size_t index);

/// What a checkpoint says beside tensors.
struct CheckpointMeta {
  std::string run_id;
  int64_t step = 0, data_position_rows = 0;
  uint64_t seed = 0;
  std::string config_text;
  std::map<std::string, std::string> fingerprints;
  std::map<std::string, int64_t> counters;
};

/// Writes a committed checkpoint root/step-NNNNNN: a Hugging Face directory with `state` (masters, moments, manifest) beside
/// it. Side files come from `source`. Returns its path on every rank. Collective over the world. Throws StorageError on every
/// rank when any rank cannot write; then nothing is left behind.
[[nodiscard]] std::filesystem::path save_checkpoint(Engine& engine, const checkpoint::HfModelDir& source,
                                                    const std::filesystem::path& root, const CheckpointMeta& meta);
/// Writes the weights alone into an existing directory as model*.safetensors (the default model's initial weights).
void write_model_weights(Engine& engine, const std::filesystem::path& dir);

}  // namespace r1::train
