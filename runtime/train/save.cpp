#include "runtime/train/save.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <set>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/io.h"
#include "runtime/core/log.h"
#include "runtime/device/cpu/thread_pool.h"
#include "runtime/train/weights_io.h"

namespace r1::train {

namespace fs = std::filesystem;
using checkpoint::Box;
using checkpoint::Contribution;
using checkpoint::Piece;
using checkpoint::SourcePiece;
using models::StageParameters;
using parallel::ParamSpec;
using Clock = std::chrono::steady_clock;

namespace {

/// The writer runs beside the training: it yields to it where cores are short.
constexpr int kWriterNice = 5;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// What tp rank `tp_rank` is the first to hold of a tensor, within `held`.
std::vector<Box> owned_boxes(const ParamSpec& p, int tp_rank, const Box& held) {
  std::vector<Box> boxes;
  for (const parallel::Interval& i : p.shard.owned(tp_rank)) {
    Box box = checkpoint::intersect(checkpoint::slice_box(p.shape, p.shard.dim(), i.begin, i.end), held);
    if (box.elems() > 0) boxes.push_back(std::move(box));
  }
  return boxes;
}

std::string state_file(int rank, int world) { return fmt::format("r1run/state-{:05}-of-{:05}.safetensors", rank + 1, world); }
std::string weights_file(int rank) { return fmt::format("r1run/weights-{:05}.safetensors", rank); }

constexpr std::string_view kStateNote = "state", kWeightsNote = "weights", kModelNote = "model";

}  // namespace

std::vector<StatePart> owned_state(Engine& engine) {
  std::vector<StatePart> parts;
  const bool first_replica = engine.groups().coord().dp == 0;
  const auto add = [&](const StageParameters& params, std::string_view kind, const Tensor& block) {
    // What is not cut over dp is the same on all replicas.
    const bool cut = params.shards() > 1 && block.data != params.weights().data;
    if (!cut && !first_replica) return;
    for (size_t i = 0; i < params.specs().size(); ++i) {
      const ParamSpec& p = params.specs()[i];
      if (p.tied_copy) continue;
      Box held = cut ? state_box(params, i) : checkpoint::box_of(p.shard, params.tp_rank());
      std::vector<Box> owned = owned_boxes(p, params.tp_rank(), held);
      if (owned.empty()) continue;
      parts.push_back({.tensor = p.name, .kind = kind, .global_shape = p.shape, .held = std::move(held),
                       .owned = std::move(owned), .memory = cut ? params.state(block, i) : params.part(block, i)});
    }
  };
  const auto& stages = engine.model().parameters();
  for (const StageParameters& p : stages)
    add(p, checkpoint::kKindMaster, p.master().data != nullptr ? p.master() : p.weights());
  for (const StageParameters& p : stages) add(p, checkpoint::kKindExpAvg, p.exp_avg());
  for (const StageParameters& p : stages) add(p, checkpoint::kKindExpAvgSq, p.exp_avg_sq());
  return parts;
}

int64_t snapshot_bytes(const parallel::RankPlan& plan) {
  const bool first_replica = plan.coord.dp == 0;
  int64_t bytes = 0;
  for (const parallel::RankPlan::Chunk& c : plan.chunks) {
    if (first_replica && !plan.format.master) bytes += c.param_elems * dtype_bytes(plan.format.weights);
    if (first_replica || plan.shards() > 1)
      bytes += c.state_elems * (2 * dtype_bytes(plan.format.moments) + (plan.format.master ? dtype_bytes(DType::kF32) : 0));
  }
  return bytes;
}

uint64_t checkpoint_bytes(const parallel::ModelConfig& config, const parallel::NumericFormat& format) {
  const bool masters = (format.master ? DType::kF32 : format.weights) != config.storage;
  const int64_t per_parameter = dtype_bytes(config.storage) + (masters ? 4 : 0) + 2 * dtype_bytes(format.moments);
  return static_cast<uint64_t>(static_cast<double>(config.parameters() * per_parameter) * 1.02);
}

int CheckpointSaver::StopHook::before(checkpoint::Syscall& call) {
  using checkpoint::SyscallKind;
  const bool removes = call.kind == SyscallKind::kUnlink || call.kind == SyscallKind::kRmdir;
  if (tick_) tick_();
  if (stop.load() && !removes) return ECANCELED;
  return inner_ != nullptr ? inner_->before(call) : 0;
}

CheckpointSaver::CheckpointSaver(Engine& engine, const checkpoint::HfModelDir& source, SaveOptions options)
    : engine_(engine), source_(source), options_(std::move(options)), hook_(options_.hook, options_.tick), parts_(owned_state(engine)) {
  if (!options_.snapshot) return;
  size_t bytes = 0;
  for (const StatePart& p : parts_) {
    offsets_.push_back(bytes);
    bytes = align_up(bytes + p.memory.bytes());
  }
  snapshot_ = Buffer(Device{}, bytes);
  // Touched now: pages that the kernel hands out during the first copy would stall the step.
  std::memset(snapshot_.data(), 0, bytes);
}

CheckpointSaver::~CheckpointSaver() {
  hook_.stop = true;
  join();
}

void CheckpointSaver::join() {
  if (worker_.joinable()) worker_.join();
}

void CheckpointSaver::begin(const CheckpointMeta& meta) {
  R1_CHECK(!busy(), "a checkpoint of step {} begins while that of step {} is under way", meta.step, meta_.step);
  meta_ = meta;
  failure_.clear();
  begun_ = Clock::now();
  DeviceBackend& backend = backend_of(engine_.stream().device.kind);
  engine_.finish_update();
  backend.synchronize(engine_.stream());
  if (options_.snapshot) {
    for (size_t i = 0; i < parts_.size(); ++i) {
      char* to = static_cast<char*>(snapshot_.data()) + offsets_[i];
      const Tensor& from = parts_[i].memory;
      if (from.device.kind != DeviceKind::kCpu) {
        backend.copy(to, from.data, from.bytes(), engine_.stream());
        continue;
      }
      parallel_ranges(static_cast<int64_t>(from.bytes()), int64_t{4} << 20, [&](int64_t a, int64_t b) {
        std::memcpy(to + a, static_cast<const char*>(from.data) + a, static_cast<size_t>(b - a));
      });
    }
    backend.synchronize(engine_.stream());
  }
  copy_seconds_ = seconds_since(begun_);
  start(Phase::kStage);
}

CheckpointSaver::Vote CheckpointSaver::vote() const {
  if (running_.load(std::memory_order_acquire)) return {.running = 1, .failed = 0};
  const comm::Communicator& world = engine_.groups().world();
  return {.running = 0, .failed = error_ ? world.size() - world.rank() : 0};
}

std::optional<SaveOutcome> CheckpointSaver::advance(const Vote& all) {
  if (phase_ == Phase::kIdle || all.running != 0) return std::nullopt;
  join();
  if (all.failed != 0 && phase_ != Phase::kCleanUp) {
    if (error_ && all.failed == vote().failed) {
      try {
        std::rethrow_exception(error_);
      } catch (const InternalError&) {
        throw;  // our own mistake is not a failed write
      } catch (const std::exception& e) {
        failure_ = e.what();
      }
    }
    start(Phase::kCleanUp);
    return std::nullopt;
  }
  switch (phase_) {
    case Phase::kStage:
      start(Phase::kPieces);
      return std::nullopt;
    case Phase::kPieces:
      start(Phase::kWhole);
      return std::nullopt;
    case Phase::kWhole:
      start(Phase::kCommit);
      return std::nullopt;
    case Phase::kIdle:
    case Phase::kCommit:
    case Phase::kCleanUp:
      break;
  }
  SaveOutcome outcome{.committed = phase_ == Phase::kCommit, .step = meta_.step,
                      .path = options_.root / checkpoint::step_directory(meta_.step), .error = failure_,
                      .copy_seconds = copy_seconds_, .total_seconds = seconds_since(begun_)};
  phase_ = Phase::kIdle;
  staged_.reset();
  return outcome;
}

SaveOutcome CheckpointSaver::finish() {
  R1_CHECK(busy(), "no checkpoint is under way");
  comm::Communicator& world = engine_.groups().world();
  while (true) {
    // Each rank waits for its own writer first: a reduction that is waited in spins.
    while (running_.load(std::memory_order_acquire)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const Vote mine = vote();
    int64_t votes[2] = {mine.running, mine.failed};
    world.all_reduce({.data = votes, .dtype = DType::kI64, .shape = {2}, .device = {}}, comm::ReduceOp::kMax, {});
    if (auto outcome = advance({.running = votes[0], .failed = votes[1]})) return *outcome;
  }
}

void CheckpointSaver::start(Phase phase) {
  phase_ = phase;
  error_ = nullptr;
  if (!options_.snapshot) {
    run_phase();
    return;
  }
  running_.store(true, std::memory_order_release);
  worker_ = std::thread([this] {
    setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kWriterNice);
    run_phase();
    running_.store(false, std::memory_order_release);
  });
}

void CheckpointSaver::run_phase() {
  try {
    switch (phase_) {
      case Phase::kStage:
        stage();
        break;
      case Phase::kPieces:
        write_own_pieces();
        break;
      case Phase::kWhole:
        write_whole();
        break;
      case Phase::kCommit:
        commit();
        break;
      case Phase::kCleanUp:
        staged_.reset();  // the first rank's removes the directory
        break;
      case Phase::kIdle:
        break;
    }
  } catch (...) {
    error_ = std::current_exception();
  }
}

bool CheckpointSaver::assembles() const {
  const parallel::MeshCoord c = engine_.groups().coord();
  return c.dp == 0 && c.tp == 0;
}

std::vector<int> CheckpointSaver::ranks_of_stage() const {
  const parallel::ProcessGroups& groups = engine_.groups();
  std::vector<int> ranks;
  for (int r = 0; r < groups.mesh().world(); ++r)
    if (parallel::coord_of(groups.mesh(), r).pp == groups.coord().pp) ranks.push_back(r);
  return ranks;
}

const char* CheckpointSaver::host_data(size_t part) {
  if (options_.snapshot) return static_cast<const char*>(snapshot_.data()) + offsets_[part];
  const Tensor& memory = parts_[part].memory;
  if (memory.device.kind == DeviceKind::kCpu) return static_cast<const char*>(memory.data);
  staging_.resize(memory.bytes());
  DeviceBackend& backend = backend_of(memory.device.kind);
  backend.copy(staging_.data(), memory.data, memory.bytes(), engine_.stream());
  backend.synchronize(engine_.stream());
  return staging_.data();
}

SourcePiece CheckpointSaver::source_of(size_t part, const Box& box, std::string_view kind, DType dtype) {
  const StatePart& p = parts_[part];
  return {.piece = {.tensor = p.tensor, .kind = std::string(kind), .dtype = dtype, .global_shape = p.global_shape, .box = box},
          .held = p.held, .held_dtype = p.memory.dtype, .data = [this, part] { return host_data(part); }};
}

void CheckpointSaver::stage() {
  if (engine_.groups().world().rank() == 0)
    staged_ = checkpoint::StagedCheckpoint::create(
        options_.root, meta_.step, meta_.run_id, checkpoint_bytes(engine_.spec().config(), engine_.plan().format), &hook_);
}

void CheckpointSaver::write_own_pieces() {
  comm::Communicator& world = engine_.groups().world();
  if (world.rank() != 0)
    staged_ = checkpoint::StagedCheckpoint::join(options_.root, meta_.step, meta_.run_id, &hook_);
  const DType storage = engine_.spec().config().storage;
  std::vector<SourcePiece> state, weights;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const StatePart& p = parts_[i];
    // Weights that the model's files hold exactly are not written twice: tensors that the stage's writer holds whole go
    // there from memory, others through a file of pieces.
    const bool twin = p.kind == checkpoint::kKindMaster && p.memory.dtype == storage;
    if (twin && assembles() && p.owned.front() == checkpoint::whole_box(p.global_shape)) continue;
    for (const Box& box : p.owned)
      (twin ? weights : state).push_back(source_of(i, box, twin ? checkpoint::kKindWeight : p.kind, p.memory.dtype));
  }
  const auto write = [&](const std::string& file, std::vector<SourcePiece>& sources) {
    return sources.empty() ? Contribution{} : checkpoint::write_pieces(staged_->stage(), file, std::move(sources), &hook_);
  };
  checkpoint::write_note(staged_->stage(), world.rank(), kStateNote, write(state_file(world.rank(), world.size()), state), &hook_);
  checkpoint::write_note(staged_->stage(), world.rank(), kWeightsNote, write(weights_file(world.rank()), weights), &hook_);
}

void CheckpointSaver::write_whole() {
  if (!assembles()) return;
  const fs::path& stage = staged_->stage();
  std::map<std::string, std::vector<Piece>> pieces;  // of weights or masters, by tensor
  std::vector<std::string> temporary;
  for (const int r : ranks_of_stage()) {
    for (const std::string_view note : {kStateNote, kWeightsNote}) {
      const Contribution c = checkpoint::read_note(stage, r, note);
      for (const Piece& p : c.pieces)
        if (p.kind == checkpoint::kKindMaster || p.kind == checkpoint::kKindWeight) pieces[p.tensor].push_back(p);
      if (note == kWeightsNote)
        for (const checkpoint::FileRecord& f : c.files) temporary.push_back(f.name);
    }
    temporary.push_back(checkpoint::note_name(r, kWeightsNote));
  }
  std::map<std::string_view, size_t> whole;  // tensors in this rank's memory
  for (size_t i = 0; i < parts_.size(); ++i)
    if (parts_[i].kind == checkpoint::kKindMaster && parts_[i].owned.front() == checkpoint::whole_box(parts_[i].global_shape))
      whole[parts_[i].tensor] = i;
  const DType storage = engine_.spec().config().storage;
  std::vector<checkpoint::WholeTensor> tensors;
  for (const StageParameters& params : engine_.model().parameters())
    for (const ParamSpec& p : params.specs()) {
      if (p.tied_copy) continue;
      checkpoint::WholeTensor t{.name = p.name, .shape = p.shape, .memory = {}, .pieces = {}};
      if (const auto it = whole.find(p.name); it != whole.end())
        t.memory = source_of(it->second, checkpoint::whole_box(p.shape), checkpoint::kKindWeight, storage);
      else
        t.pieces = pieces[p.name];
      tensors.push_back(std::move(t));
    }
  const parallel::ProcessGroups& groups = engine_.groups();
  Contribution model = checkpoint::write_whole_tensors(
      stage, checkpoint::weight_file_name(groups.coord().pp, groups.mesh().pp), storage, tensors, &hook_);
  for (const std::string& name : temporary) checkpoint::remove_tree(stage / name, &hook_);
  if (groups.world().rank() == 0)
    for (checkpoint::FileRecord& f : source_.copy_side_files(stage, &hook_)) model.files.push_back(std::move(f));
  checkpoint::write_note(stage, groups.world().rank(), kModelNote, model, &hook_);
}

void CheckpointSaver::commit() {
  const parallel::ProcessGroups& groups = engine_.groups();
  if (groups.world().rank() != 0) return;
  const fs::path& stage = staged_->stage();
  checkpoint::Manifest m;
  m.run_id = meta_.run_id;
  m.step = meta_.step;
  m.rng_seed = meta_.seed;
  m.data_position_rows = meta_.data_position_rows;
  m.config_text = meta_.config_text;
  m.mesh = {groups.mesh().pp, groups.mesh().dp, groups.mesh().tp};
  m.fingerprints = meta_.fingerprints;
  m.counters = meta_.counters;
  for (int r = 0; r < groups.mesh().world(); ++r) {
    const parallel::MeshCoord c = parallel::coord_of(groups.mesh(), r);
    for (const std::string_view note : {kStateNote, kModelNote}) {
      if (note == kModelNote && (c.dp != 0 || c.tp != 0)) continue;
      m.add(checkpoint::read_note(stage, r, note));
      checkpoint::remove_tree(stage / checkpoint::note_name(r, note), &hook_);
    }
  }
  if (const auto index = checkpoint::write_weight_index(stage, m.pieces, &hook_)) m.files.push_back(*index);
  static_cast<void>(staged_->commit(m));
  try {
    static_cast<void>(checkpoint::apply_retention(options_.root, options_.retention, &hook_));
  } catch (const StorageError& e) {
    log::warn("the checkpoint of step {} is written, but older ones could not be removed: {}", meta_.step, e.what());
  }
}

}  // namespace r1::train
