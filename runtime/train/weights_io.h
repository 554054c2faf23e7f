// Weights and optimizer state from files to ranks: each rank reads its own slices. (The other way: runtime/train/save.h.)
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

/// Called between tensors of a long read: shows that it goes on, and may stop it by throwing.
using BetweenTensors = std::function<void()>;

/// Checks every shape and name of the model against the directory before anything is allocated. Throws DataError.
void check_model_dir(const checkpoint::HfModelDir& dir, const parallel::ModelConfig& config);
/// Reads this rank's slices of all weights.
void load_weights(Engine& engine, const checkpoint::HfModelDir& dir, const BetweenTensors& between);
/// The box of the global tensor whose optimizer state this rank holds of parameter i: its shard of its local part.
[[nodiscard]] checkpoint::Box state_box(const models::StageParameters& params, size_t i);
/// The same for stages without an engine.
void load_weights(std::span<const models::StageParameters> stages, const checkpoint::HfModelDir& dir, const Stream& s,
                  const BetweenTensors& between);
/// Reads weights and optimizer state of a committed checkpoint of any layout, bit for bit. Reads pieces of tensors, whose
/// checksums it cannot check: CheckpointReader::verify_part() comes before.
void load_checkpoint_state(Engine& engine, const checkpoint::CheckpointReader& reader, const BetweenTensors& between = {});

/// Gathers a parameter's block over tp onto tp rank 0 as a whole fp32 tensor (others get an empty vector). Collective over tp.
[[nodiscard]] std::vector<float> gather_parameter(Engine& engine, const models::StageParameters& params,
                                                  const Tensor& block, size_t index);

/// Writes the weights alone into an existing directory as model*.safetensors (the default model's initial weights).
void write_model_weights(Engine& engine, const std::filesystem::path& dir);

}  // namespace r1::train
