#include "parallel/cost/job_shape.h"

#include <algorithm>
#include <map>

#include "runtime/core/comm_route.h"
#include "runtime/core/error.h"

namespace r1::parallel {
namespace {

/// Which category a scratch tensor belongs to. Unlisted names are workspaces: that is what device code adds.
const std::map<std::string, std::string, std::less<>>& scratch_categories() {
  static const std::map<std::string, std::string, std::less<>> table{
      {"gathered", "communication"},       {"gathered gradient", "communication"}, {"summed", "communication"},
      {"partial", "communication"},        {"shared gradients", "communication"},
      {"head norm", "head"},               {"head rstd", "head"},
      {"logits", "head"},                  {"head stats", "head"},                 {"head all stats", "head"},
      {"head lse", "head"},                {"token loss", "head"},
      {"token ids", "batch"},              {"targets", "batch"},
      {"positions", "batch"},              {"cu_seqlens", "batch"},                {"rope table", "batch"},
      {"norm1", "recompute"},              {"rstd1", "recompute"},                 {"qkv_raw", "recompute"},
      {"qk_rstd", "recompute"},            {"qkv", "recompute"},                   {"attention", "recompute"},
      {"lse", "recompute"},                {"mid", "recompute"},                   {"norm2", "recompute"},
      {"rstd2", "recompute"},              {"gate_up", "recompute"},               {"swiglu", "recompute"},
  };
  return table;
}

std::string scratch_category(const std::string& name) {
  if (name.starts_with("input gradient ")) return "communication";
  if (name.starts_with("offload ring ")) return "activations";
  const auto it = scratch_categories().find(name);
  return it == scratch_categories().end() ? "workspaces" : it->second;
}

/// "layer 3 swiglu" -> "swiglu"; other names as they are.
std::string without_layer(const std::string& name) {
  if (!name.starts_with("layer ")) return name;
  const size_t space = name.find(' ', 6);
  return space == std::string::npos ? name : name.substr(space + 1);
}

/// Sums tensors of one name, in order of first mention.
void add_tensors(std::vector<MemoryItem>& items, const std::string& category, const std::vector<PlannedTensor>& tensors,
                 int copies) {
  for (const PlannedTensor& t : tensors) {
    const int64_t bytes = laid_out_bytes({t}) * copies;
    if (bytes == 0) continue;
    const std::string name = without_layer(t.name);
    const auto it = std::ranges::find_if(items, [&](const MemoryItem& i) { return i.category == category && i.name == name; });
    if (it == items.end()) {
      items.push_back({category, name, bytes, copies});
    } else {
      it->bytes += bytes;
      it->copies = std::max(it->copies, copies);
    }
  }
}

}  // namespace

int microbatches_of(int64_t batch, int64_t micro_batch, int dp) {
  const int64_t rows = (batch + dp - 1) / dp;
  return static_cast<int>((rows + micro_batch - 1) / micro_batch);
}

NumericFormat numeric_format(bool gpu, const std::string& dtype, const std::string& state_dtype) {
  if (!gpu) {
    if (dtype == "bf16") throw UsageError("--dtype bf16 needs a GPU; the CPU backend computes in fp32");
    if (state_dtype == "bf16") throw UsageError("--state-dtype bf16 needs a GPU; the CPU backend keeps fp32 state");
    return {};
  }
  if (dtype == "fp32") {
    if (state_dtype == "bf16") throw UsageError("--state-dtype bf16 goes with --dtype bf16; --dtype fp32 keeps fp32 state");
    return {};
  }
  if (state_dtype == "bf16")
    return {.weights = DType::kBF16, .gradients = DType::kBF16, .moments = DType::kBF16, .master = false};
  return {.weights = DType::kBF16, .gradients = DType::kF32, .moments = DType::kF32, .master = true};
}

DeviceNeeds device_needs(bool gpu, const ModelConfig& model, int tp, int64_t tokens) {
  DeviceNeeds needs;
  if (!gpu) return needs;
  // With tp > 1 a layer's sums go through a communicator, which no graph holds (DECISIONS.md).
  needs.graphs = tp == 1;
  // A chunk of the head large enough for full GEMM rate: 2048 tokens of a 152k vocabulary take 0.6 GB in bf16.
  needs.head_budget_elems = int64_t{320} << 20;
  const int64_t q = (model.heads + tp - 1) / tp, kv = std::min(q, (model.kv_heads + tp - 1) / tp + 1);
  // Attention backward: delta [NQ, T], dq [T, NQ, D], dk and dv [T, NKV, D] in fp32, each rounded up as arenas are.
  const auto fp32 = [](int64_t elems) { return (elems * 4 + 255) / 256 * 256; };
  if (tokens > 0)
    needs.workspace_bytes =
        fp32(q * tokens) + fp32(tokens * q * model.head_dim) + 2 * fp32(tokens * kv * model.head_dim);
  return needs;
}

std::string JobShape::recompute_text() const {
  if (std::ranges::all_of(recompute, [&](Recompute r) { return r == recompute.front(); }))
    return recompute_name(recompute.front());
  std::string out;
  for (const Recompute r : recompute) {
    if (!out.empty()) out += '|';
    out += recompute_name(r);
  }
  return out;
}

std::string JobShape::offload_text() const {
  return std::string(offload_optimizer ? "optimizer" : "") + (offload_optimizer && offload_activations ? "," : "") +
         (offload_activations ? "activations" : "");
}

Schedule schedule_of(const JobShape& job) {
  Schedule s = make_schedule(job.schedule, job.mesh.pp, job.virtual_stages, job.microbatches());
  validate(s);
  return s;
}

RankPlan plan_rank(const ModelSpec& spec, const JobShape& job, const Schedule& schedule, const MeshCoord& coord) {
  std::optional<RowTree> tree;
  if (job.tree_rows > 0 && job.training) tree = rank_row_tree(job.tree_rows, job.mesh.dp, coord.dp, schedule.microbatches);
  DeviceNeeds needs = device_needs(job.gpu, spec.config(), job.mesh.tp, job.tokens());
  needs.offload_optimizer = job.offload_optimizer;
  needs.offload_activations = job.offload_activations;
  const int here = job.ipc_ranks_a_host;
  const auto host_of = [&](int pp) { return rank_of(job.mesh, {.pp = pp, .dp = coord.dp, .tp = coord.tp}) / here; };
  if (here > 0 && host_of(0) == host_of(job.mesh.pp - 1)) needs.message_slots = static_cast<int>(kMessageSlots);
  return plan_rank(spec, job.mesh, coord, schedule, job.tokens(), job.recompute_of(coord.pp), job.format, needs, job.training, job.zero,
                   std::move(tree));
}

const std::vector<std::string>& memory_categories() {
  static const std::vector<std::string> names{"weights",       "gradients", "optimizer", "activations",
                                              "communication", "head",      "recompute", "workspaces", "batch"};
  return names;
}

std::vector<MemoryItem> memory_items(const RankPlan& plan) {
  std::vector<MemoryItem> items;
  const RankPlan::Bytes b = plan.bytes();
  items.push_back({"weights", std::string(dtype_name(plan.format.weights)), b.weights});
  int64_t once = 0;  // without the partial sums of --deterministic
  for (const RankPlan::Chunk& c : plan.chunks) once += c.param_elems * dtype_bytes(plan.format.gradients);
  once = std::min(once, b.gradients);
  if (b.gradients > 0) items.push_back({"gradients", std::string(dtype_name(plan.format.gradients)), once});
  if (b.gradients > once) items.push_back({"gradients", "partial sums of rows", b.gradients - once});
  if (b.optimizer > 0)
    items.push_back({"optimizer", plan.format.master ? "master weights and moments" : "moments", b.optimizer});
  for (const RankPlan::Chunk& c : plan.chunks) {
    add_tensors(items, "activations", c.slot, c.in_flight);
    std::vector<PlannedTensor> stash = c.stash_slot;
    for (PlannedTensor& t : stash) t.name = "stash of " + without_layer(t.name);
    add_tensors(items, "activations", stash, c.stash);
  }
  for (const PlannedTensor& t : plan.scratch) add_tensors(items, scratch_category(t.name), {t}, 1);
  if (b.messages > 0)
    items.push_back({"communication", "message slots", b.messages, plan.messages.slots * static_cast<int>(plan.messages.peers.size())});
  return items;
}

std::vector<MemoryItem> host_items(const RankPlan& plan) {
  std::vector<MemoryItem> items;
  int64_t inputs = 0;
  int copies = 1;
  for (const RankPlan::Chunk& c : plan.chunks) {
    inputs += c.in_flight * laid_out_bytes(c.host_slot);
    copies = std::max(copies, c.in_flight);
  }
  if (const int64_t state = plan.bytes().host - inputs; state > 0)
    items.push_back({"optimizer", plan.format.master ? "master weights and moments" : "moments", state});
  if (inputs > 0) items.push_back({"activations", "block inputs", inputs, copies});
  return items;
}

int64_t category_bytes(const std::vector<MemoryItem>& items, const std::string& category) {
  int64_t n = 0;
  for (const MemoryItem& i : items)
    if (i.category == category) n += i.bytes;
  return n;
}

}  // namespace r1::parallel
