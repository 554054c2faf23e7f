#include "runtime/train/weights_io.h"

#include <algorithm>
#include <cstring>
#include <exception>

#include "runtime/checkpoint/crc32c.h"
#include "runtime/checkpoint/io.h"
#include "runtime/train/context.h"
#include "runtime/train/upload.h"

namespace r1::train {

namespace fs = std::filesystem;
using checkpoint::Contribution;
using checkpoint::Piece;
using models::StageParameters;
using parallel::ParamSpec;

namespace {

/// fp32 values of `n` elements in `dtype`.
std::vector<char> converted(const std::vector<float>& values, DType dtype) {
  std::vector<char> out(values.size() * static_cast<size_t>(dtype_bytes(dtype)));
  checkpoint::convert_elements(DType::kF32, values.data(), dtype, out.data(), values.size());
  return out;
}

/// Text from tp 0 / dp 0 of each stage to world rank 0, over pp.
std::vector<std::string> gather_text(parallel::ProcessGroups& groups, const std::string& mine) {
  comm::Communicator& pp = groups.pp();
  std::vector<std::string> all;
  if (pp.rank() != 0) {
    send_text(pp, mine, 0);
    return all;
  }
  all.push_back(mine);
  for (int r = 1; r < pp.size(); ++r) all.push_back(recv_text(pp, r));
  return all;
}

/// Runs `work` on this rank and tells all ranks whether any of them failed: a rank that cannot write must not leave the
/// others waiting. Throws StorageError where it happened and a secondary CommError elsewhere.
void together(comm::Communicator& world, const std::function<void()>& work) {
  int64_t failed = 0;
  std::string message;
  try {
    work();
  } catch (const StorageError& e) {
    failed = 1;
    message = e.what();
  }
  world.all_reduce(host_tensor(&failed, 1, DType::kI64), comm::ReduceOp::kMax, {});
  if (failed == 0) return;
  if (!message.empty()) throw StorageError("{}", message);
  throw CommError("another rank cannot write the checkpoint");
}

struct Written {
  Contribution contribution;
};

/// One file of pieces on the writer of a stage, and nothing on the other tp ranks. A write that fails is remembered until
/// finish(): the other ranks of the group are in the middle of gathering and must not be left there.
class StageFile {
 public:
  StageFile(bool writer, const fs::path& dir, const std::string& name, std::vector<Piece> pieces) : writer_(writer) {
    if (writer)
      guard([&] { file_ = std::make_unique<checkpoint::PieceWriter>(dir, name, std::move(pieces)); });
  }
  void write(const ParamSpec& p, std::string_view kind, const std::vector<float>& values, DType dtype) {
    if (!writer_) return;
    guard([&] {
      if (!file_) return;
      const Piece& piece = file_->pieces()[next_];
      R1_CHECK(piece.tensor == p.name && piece.kind == kind, "file order changed at {}", p.name);
      if (dtype == DType::kF32) {
        file_->write(next_++, values.data(), values.size() * sizeof(float));
        return;
      }
      const std::vector<char> bytes = converted(values, dtype);
      file_->write(next_++, bytes.data(), bytes.size());
    });
  }
  void finish(Written& out) {
    if (!writer_) return;
    if (error_) std::rethrow_exception(error_);
    const Contribution c = file_->finish();
    out.contribution.files.insert(out.contribution.files.end(), c.files.begin(), c.files.end());
    out.contribution.pieces.insert(out.contribution.pieces.end(), c.pieces.begin(), c.pieces.end());
  }

 private:
  template <class Work>
  void guard(const Work& work) {
    if (error_) return;
    try {
      work();
    } catch (const StorageError&) {
      error_ = std::current_exception();
      file_.reset();
    }
  }
  bool writer_;
  std::unique_ptr<checkpoint::PieceWriter> file_;
  size_t next_ = 0;
  std::exception_ptr error_;
};

/// Writes the model weights of this pipeline rank's stages into `dir`. Collective over tp; the writer is tp 0.
void write_stage_weights(Engine& engine, const fs::path& dir, Written& out) {
  const parallel::ProcessGroups& groups = engine.groups();
  const DType dtype = engine.spec().config().storage;
  std::vector<Piece> pieces;
  for (const StageParameters& params : engine.model().parameters())
    for (const ParamSpec& p : params.specs())
      if (!p.tied_copy)
        pieces.push_back({.tensor = p.name, .kind = std::string(checkpoint::kKindWeight), .dtype = dtype,
                          .global_shape = p.shape, .box = checkpoint::whole_box(p.shape)});
  StageFile file(groups.tp().rank() == 0, dir, checkpoint::weight_file_name(groups.coord().pp, groups.mesh().pp), pieces);
  for (const StageParameters& params : engine.model().parameters())
    for (size_t i = 0; i < params.specs().size(); ++i) {
      if (params.specs()[i].tied_copy) continue;
      // A master that is cut over dp is on no rank whole.
      const bool master = params.master().data != nullptr && params.shards() == 1;
      const Tensor block = master ? params.master() : params.weights();
      file.write(params.specs()[i], checkpoint::kKindWeight, gather_parameter(engine, params, block, i), dtype);
    }
  file.finish(out);
}

/// Writes model.safetensors.index.json of a sharded model.
checkpoint::FileRecord write_index(const fs::path& dir, const std::vector<Piece>& pieces) {
  std::map<std::string, std::string> files;
  uint64_t bytes = 0;
  for (const Piece& p : pieces) {
    if (p.kind != checkpoint::kKindWeight) continue;
    files[p.tensor] = p.file;
    bytes += static_cast<uint64_t>(p.box.elems() * dtype_bytes(p.dtype));
  }
  const std::string text = checkpoint::weight_index_json(files, bytes);
  const std::string name = "model.safetensors.index.json";
  checkpoint::write_text_file(dir / name, text);
  return {.name = name, .bytes = text.size(), .crc32c = checkpoint::crc32c(text)};
}

}  // namespace

void check_model_dir(const checkpoint::HfModelDir& dir, const parallel::ModelConfig& config) {
  const parallel::ModelSpec spec(config, 1, 1);
  for (const ParamSpec& p : spec.all_params()) {
    const checkpoint::TensorEntry& e = dir.entry(p.name);
    if (e.shape != p.shape)
      throw DataError("{}: tensor '{}' has shape {}, but config.json asks for {}", dir.file_of(p.name).path().string(),
                      p.name, checkpoint::shape_text(e.shape), checkpoint::shape_text(p.shape));
    if (!e.dtype || !checkpoint::convertible(*e.dtype, DType::kF32))
      throw DataError("{}: tensor '{}' has dtype {}; F32, F16, BF16 and F64 weights are read",
                      dir.file_of(p.name).path().string(), p.name, e.dtype_name);
  }
}

namespace {

/// Weights of parameter i, and the master's part of them where there is one: each rounded once from what is stored.
void fill_weights(Uploader& upload, const StageParameters& params, size_t i, const ReadBox& read) {
  upload.fill(params.part(params.weights(), i), checkpoint::box_of(params.specs()[i].shard, params.tp_rank()), read);
  if (params.master().data != nullptr) upload.fill(params.state(params.master(), i), state_box(params, i), read);
}

}  // namespace

void load_weights(Engine& engine, const checkpoint::HfModelDir& dir, const BetweenTensors& between) {
  load_weights(engine.model().parameters(), dir, engine.stream(), between);
}

void load_weights(std::span<const StageParameters> stages, const checkpoint::HfModelDir& dir, const Stream& s,
                  const BetweenTensors& between) {
  Uploader upload(s);
  for (const StageParameters& params : stages)
    for (size_t i = 0; i < params.specs().size(); ++i) {
      const ParamSpec& p = params.specs()[i];
      fill_weights(upload, params, i, [&](const checkpoint::Box& box, DType dtype, void* dst) {
        dir.read_box(p.name, p.shape, box, dtype, dst);
      });
      if (between) between();
    }
}

checkpoint::Box state_box(const StageParameters& params, size_t i) {
  checkpoint::Box box = checkpoint::box_of(params.specs()[i].shard, params.tp_rank());
  const parallel::Interval rows = params.state_layout().rows[i];
  box.start.front() += rows.begin;
  box.size.front() = rows.size();
  return box;
}

void load_checkpoint_state(Engine& engine, const checkpoint::CheckpointReader& reader, const BetweenTensors& between) {
  Uploader upload(engine.stream());
  for (const StageParameters& params : engine.model().parameters())
    for (size_t i = 0; i < params.specs().size(); ++i) {
      if (between) between();
      const ParamSpec& p = params.specs()[i];
      const auto read_as = [&](std::string_view kind) -> ReadBox {
        return [&reader, &p, kind](const checkpoint::Box& box, DType dtype, void* dst) {
          reader.read_box(kind, p.name, p.shape, box, dtype, dst);
        };
      };
      fill_weights(upload, params, i, read_as(reader.has(checkpoint::kKindMaster, p.name) ? checkpoint::kKindMaster : checkpoint::kKindWeight));
      for (const auto& [kind, block] : {std::pair{checkpoint::kKindExpAvg, params.exp_avg()},
                                        std::pair{checkpoint::kKindExpAvgSq, params.exp_avg_sq()}})
        if (block.data != nullptr) upload.fill(params.state(block, i), state_box(params, i), read_as(kind));
    }
}

std::vector<float> gather_parameter(Engine& engine, const StageParameters& params, const Tensor& block, size_t index) {
  comm::Communicator& tp = engine.groups().tp();
  const ParamSpec& p = params.specs()[index];
  std::vector<float> mine = models::host_values(params, block, index, engine.stream());
  if (tp.size() == 1) return mine;
  // A rank that owns nothing of the tensor (replicated: rank 0 has it all) sends nothing.
  if (tp.rank() != 0) {
    if (!p.shard.owned(tp.rank()).empty() && !mine.empty())
      tp.send(host_tensor(mine.data(), static_cast<int64_t>(mine.size()), DType::kF32), 0, {});
    return {};
  }
  int64_t elems = 1;
  for (const int64_t d : p.shape) elems *= d;
  std::vector<float> whole(static_cast<size_t>(elems)), part;
  for (int r = 0; r < tp.size(); ++r) {
    const auto n = p.shard.local_elems(r);
    if (r > 0) {
      if (p.shard.owned(r).empty() || n == 0) continue;
      part.resize(static_cast<size_t>(n));
      tp.recv(host_tensor(part.data(), n, DType::kF32), r, {});
    }
    const std::vector<float>& from = r == 0 ? mine : part;
    for (const parallel::Interval& owned : p.shard.owned(r))
      for (const parallel::Run& run : runs_of(p.shard, r, owned))
        std::memcpy(&whole[static_cast<size_t>(run.global)], &from[static_cast<size_t>(run.local)],
                    static_cast<size_t>(run.count) * sizeof(float));
  }
  return whole;
}

void write_model_weights(Engine& engine, const fs::path& dir) {
  parallel::ProcessGroups& groups = engine.groups();
  Written written;
  together(groups.world(), [&] {
    if (groups.coord().dp == 0) write_stage_weights(engine, dir, written);
  });
  std::vector<std::string> contributions;
  if (groups.coord().dp == 0 && groups.tp().rank() == 0)
    contributions = gather_text(groups, checkpoint::to_json(written.contribution));
  together(groups.world(), [&] {
    if (groups.world().rank() != 0 || groups.mesh().pp == 1) return;
    std::vector<Piece> pieces;
    for (const std::string& text : contributions) {
      const Contribution c = checkpoint::contribution_from_json(text, "contribution");
      pieces.insert(pieces.end(), c.pieces.begin(), c.pieces.end());
    }
    static_cast<void>(write_index(dir, pieces));
  });
}

}  // namespace r1::train
