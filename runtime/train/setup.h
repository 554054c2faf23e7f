// From the configuration to an engine: what train, eval, generate and verify share.
#pragma once

#include <filesystem>
#include <memory>

#include "runtime/data/dataset.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/train/batches.h"
#include "runtime/train/engine.h"
#include "runtime/train/model_source.h"

namespace r1::train {

/// Threads of this rank (--threads, or its fair share of the cores it may use); warns about more threads than cores. Sets the
/// CPU backend's pool. Collective over the world.
int setup_threads(const RankContext& ctx);
/// Checks --pp/--dp/--tp against the world. Throws UsageError with factorisations that fit.
[[nodiscard]] parallel::MeshShape mesh_of(const RankContext& ctx, int ranks_per_host);
/// The device of this rank: --device, where auto takes GPUs when every rank sees one; GPUs by local rank, several ranks on one GPU
/// when there are more ranks (warned). Sets GEMM tuning and --deterministic. Collective over the world. Throws UsageError,
/// DeviceError.
[[nodiscard]] Device choose_device(const RankContext& ctx, const std::filesystem::path& cache);
/// A number for every rank's device, equal where ranks share one: the GPU, or the host of CPU ranks. Collective over the world.
[[nodiscard]] std::vector<int64_t> device_of_rank(comm::Communicator& world, const Device& device);
/// Ranks on this rank's device (this one included). Collective over the world.
[[nodiscard]] int ranks_on_this_device(comm::Communicator& world, const Device& device);
/// Storage, accumulation and reduction dtypes of --dtype and --state-dtype on a device. Throws UsageError.
[[nodiscard]] parallel::NumericFormat numeric_format(const JobConfig& cfg, const Device& device);
/// Engine options of a training job. Collective over the world.
[[nodiscard]] EngineOptions engine_options(comm::Communicator& world, const JobConfig& cfg, const parallel::ModelConfig& model,
                                           const parallel::MeshShape& mesh, const BatchLayout& rows, const Device& device,
                                           bool training);
/// Whether the ranks of each host fit into its memory together with their copies of the state (see save.h). Collective over the
/// world; the same answer everywhere.
[[nodiscard]] bool snapshot_fits(const RankContext& ctx, const parallel::ModelConfig& config, const EngineOptions& options);
/// Options of the data set for files `sources` ("FILE[:WEIGHT]").
[[nodiscard]] data::DataOptions data_options(const RankContext& ctx, const std::vector<std::string>& sources,
                                             const std::filesystem::path& cache, int64_t seq_len,
                                             const parallel::ModelConfig& model);
/// --seq-len, or its default for the model; throws UsageError when it is beyond the model's positions.
[[nodiscard]] int64_t seq_len_of(const JobConfig& cfg, const parallel::ModelConfig& model);
/// GEMM rate (FLOP/s) in the training dtype that all ranks reach together: the ceiling a step's rate is compared with. Collective.
[[nodiscard]] double measure_gemm_rate(const RankContext& ctx, const Device& device, DType dtype);
/// Peak resident memory of this process, bytes.
[[nodiscard]] int64_t peak_rss_bytes();

}  // namespace r1::train
