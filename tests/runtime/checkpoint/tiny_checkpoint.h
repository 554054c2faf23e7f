// Small checkpoints of r1run in any layout, for tests.
#pragma once

#include <string>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/commit.h"
#include "runtime/core/rng.h"

namespace r1::test {

/// A parameter and how tensor parallelism cuts it: dim, or -1 for not at all.
struct TinyParameter {
  std::string name;
  std::vector<int64_t> shape;
  int cut_dim;
};

inline std::vector<TinyParameter> tiny_parameters() {
  return {{"model.embed_tokens.weight", {13, 6}, 0},
          {"model.layers.0.self_attn.o_proj.weight", {6, 10}, 1},
          {"model.layers.0.mlp.up_proj.weight", {9, 6}, 0},
          {"model.norm.weight", {6}, -1}};
}

/// The value of element `i` of a tensor of some kind at some step: what every layout must read
/// back.
inline float tiny_value(const std::string& kind, const std::string& tensor, int64_t step,
                        int64_t i) {
  return static_cast<float>(
      Rng(static_cast<uint64_t>(step), kind + tensor).normal(static_cast<uint64_t>(i)));
}

/// The values of a box, as `dtype`.
inline std::string tiny_bytes(const std::string& kind, const TinyParameter& p,
                              const checkpoint::Box& box, int64_t step, DType dtype) {
  std::string out(static_cast<size_t>(box.elems() * dtype_bytes(dtype)), '\0');
  checkpoint::for_each_run(
      box, checkpoint::whole_box(p.shape), box, [&](const checkpoint::BoxRun& r) {
        for (int64_t i = 0; i < r.elems; ++i) {
          const float v = tiny_value(kind, p.name, step, r.from + i);
          checkpoint::convert_elements(DType::kF32, &v, dtype,
                                       out.data() + (r.to + i) * dtype_bytes(dtype), 1);
        }
      });
  return out;
}

/// The box of optimizer state that rank (dp_rank, tp_rank) keeps: tp cuts its dim, ZeRO then cuts
/// dim 0. Replicated parameters are kept by tp rank 0 alone.
inline checkpoint::Box tiny_state_box(const TinyParameter& p, int dp, int dp_rank, int tp,
                                      int tp_rank) {
  checkpoint::Box box = checkpoint::whole_box(p.shape);
  if (p.cut_dim >= 0) {
    const auto part = parallel::even_part(p.shape[static_cast<size_t>(p.cut_dim)], tp_rank, tp);
    box = checkpoint::slice_box(p.shape, p.cut_dim, part.begin, part.end);
  } else if (tp_rank != 0) {
    box.size[0] = 0;
  }
  const auto rows = parallel::even_part(box.size[0], dp_rank, dp);
  box.start[0] += rows.begin;
  box.size[0] = rows.size();
  return box;
}

/// Writes and commits a checkpoint as dp x tp ranks of two "stages" would; bf16 weights, fp32
/// state.
inline std::filesystem::path write_tiny_checkpoint(const std::filesystem::path& root, int64_t step,
                                                   const std::string& run_id, int dp = 2,
                                                   int tp = 2,
                                                   checkpoint::SyscallHook* hook = nullptr) {
  using namespace checkpoint;
  StagedCheckpoint staged = StagedCheckpoint::create(root, step, run_id, 1000, hook);
  Manifest m;
  m.run_id = run_id;
  m.step = step;
  m.rng_seed = 0xfedcba9876543210ull;
  m.data_position_rows = 8 * step;
  m.config_text = "[train]\nlr = 1e-5\n";
  m.mesh = {2, dp, tp};
  m.fingerprints = {{"model_config", "aa"}, {"data", "bb"}};
  m.counters = {{"skipped_steps", 3}, {"negative", -5}};
  m.reals = {{"loss_average", 0.1}, {"tiny", 5e-324}};
  const std::vector<TinyParameter> parameters = tiny_parameters();
  for (int stage = 0; stage < 2; ++stage) {
    std::vector<Piece> pieces;
    for (size_t i = 0; i < parameters.size(); ++i)
      if (static_cast<int>(i / 2) == stage) {
        Piece p;
        p.tensor = parameters[i].name;
        p.kind = kKindWeight;
        p.dtype = DType::kBF16;
        p.global_shape = parameters[i].shape;
        p.box = whole_box(p.global_shape);
        pieces.push_back(p);
      }
    PieceWriter writer(staged.stage(), weight_file_name(stage, 2), pieces, hook);
    for (size_t i = 0; i < writer.pieces().size(); ++i)
      for (const TinyParameter& p : parameters)
        if (p.name == writer.pieces()[i].tensor) {
          const std::string bytes =
              tiny_bytes("weight", p, writer.pieces()[i].box, step, DType::kBF16);
          writer.write(i, bytes.data(), bytes.size() / 2);  // in two parts
          writer.write(i, bytes.data() + bytes.size() / 2, bytes.size() - bytes.size() / 2);
        }
    m.add(writer.finish());
  }
  for (int d = 0; d < dp; ++d)
    for (int t = 0; t < tp; ++t) {
      std::vector<Piece> pieces;
      for (const TinyParameter& parameter : parameters)
        for (const std::string_view kind : {kKindMaster, kKindExpAvg, kKindExpAvgSq}) {
          Piece p;
          p.tensor = parameter.name;
          p.kind = kind;
          p.global_shape = parameter.shape;
          p.box = tiny_state_box(parameter, dp, d, tp, t);
          if (p.box.elems() > 0) pieces.push_back(p);
        }
      if (pieces.empty()) continue;
      const StagedCheckpoint joined = StagedCheckpoint::join(root, step, run_id, hook);
      PieceWriter writer(joined.stage(), fmt::format("r1run/rank-{:05}.safetensors", d * tp + t),
                         pieces, hook);
      for (size_t i = 0; i < writer.pieces().size(); ++i) {
        const Piece& piece = writer.pieces()[i];
        for (const TinyParameter& p : parameters)
          if (p.name == piece.tensor) {
            const std::string bytes = tiny_bytes(piece.kind, p, piece.box, step, DType::kF32);
            writer.write(i, bytes.data(), bytes.size());
          }
      }
      // Over the wire and back, as between ranks.
      m.add(contribution_from_json(to_json(writer.finish()), "rank"));
    }
  m.files.push_back(write_staged_text(staged.stage(), "config.json",
                                      R"({"architectures":["Qwen2ForCausalLM"]})", hook));
  if (const auto index = write_weight_index(staged.stage(), m.pieces, hook))
    m.files.push_back(*index);
  return staged.commit(m);
}

}  // namespace r1::test
