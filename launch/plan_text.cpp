// A plan as text and as JSON.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "launch/plan.h"
#include "runtime/core/human.h"

namespace r1::launch {
namespace {

using parallel::Candidate;
using parallel::StepTime;

std::string bytes(int64_t n) { return human_bytes(static_cast<double>(n)); }
std::string range(const parallel::Interval& i) { return i.size() == 0 ? "-" : fmt::format("{}-{}", i.begin, i.end - 1); }

/// Names of a step's parts in the order in which they are shown.
std::vector<std::pair<std::string, double>> parts(const StepTime& t) {
  return {{"matrix products", t.gemm + t.head}, {"attention", t.attention}, {"norms, RoPE, SwiGLU", t.elementwise},
          {"recomputation", t.recompute}, {"sums over rows", t.row_sums}, {"host memory, exposed", t.offload}, {"launches and gaps", t.overhead}, {"tp communication, exposed", t.tp_comm},
          {"pp communication, exposed", t.pp_comm}, {"bubble", t.bubble}, {"dp gradient sums", t.dp_comm},
          {"optimizer", t.optimizer}};
}

std::string layer_list(const PlanReport& r, int pp_rank) {
  std::string out;
  const int pp = r.chosen.job.mesh.pp;
  for (int stage = pp_rank; stage < static_cast<int>(r.stages.size()); stage += pp) {
    const parallel::StageSpec& s = r.stages[static_cast<size_t>(stage)];
    out += fmt::format("{}{}{}{}", out.empty() ? "" : ",", s.embedding ? "emb+" : "", range({s.layer_begin, s.layer_end}),
                       s.head ? "+head" : "");
  }
  return out;
}

/// Ranks with the same bytes in every category are one row: "pp 0, tp 0-3".
struct RankGroup {
  const PlannedRank* rank = nullptr;
  std::string who;
};
std::vector<RankGroup> groups(const PlanReport& r) {
  std::vector<RankGroup> out;
  const auto key = [](const PlannedRank& k) {
    std::string s;
    for (const auto& i : k.memory) s += fmt::format("{}:{}:{};", i.category, i.name, i.bytes);
    return s;
  };
  for (size_t i = 0; i < r.ranks.size();) {
    size_t j = i + 1;
    while (j < r.ranks.size() && r.ranks[j].coord.pp == r.ranks[i].coord.pp && key(r.ranks[j]) == key(r.ranks[i])) ++j;
    const auto& a = r.ranks[i].coord;
    const auto& b = r.ranks[j - 1].coord;
    out.push_back({&r.ranks[i], fmt::format("pp {} tp {}", a.pp, a.tp == b.tp ? std::to_string(a.tp) : fmt::format("{}-{}", a.tp, b.tp))});
    i = j;
  }
  return out;
}

void add_shards(std::string& out, const PlanReport& r) {
  out += fmt::format("\nshards (every dp replica the same)\n  {:<14} {:<24} {:>10} {:>9} {:>16} {:>18} {:>16}\n", "rank", "layers", "q heads",
                     "kv heads", "ffn", "vocabulary", "parameters");
  size_t shown = 0;
  for (const PlannedRank& k : r.ranks) {
    if (++shown > 32) {
      out += fmt::format("  ... {} more; --json has them all\n", r.ranks.size() - 32);
      break;
    }
    out += fmt::format("  {:<14} {:<24} {:>10} {:>9} {:>16} {:>18} {:>16}\n", fmt::format("pp {} tp {}", k.coord.pp, k.coord.tp),
                       layer_list(r, k.coord.pp), range(k.shard.q_heads), range(k.shard.kv_heads), range(k.shard.ffn),
                       range(k.shard.vocab), human_count(k.parameters));
  }
}

void add_placement(std::string& out, const PlanReport& r) {
  const Placement& p = r.placement;
  const auto order = p.default_order ? std::string("the launcher's order")
                                     : fmt::format("by search; {} in the launcher's order", human_duration(p.default_cost.seconds()));
  out += fmt::format("\nplacement      {} of communication a step before any overlap (tp {}, pp {}, dp {}); {}\n", human_duration(p.cost.seconds()),
                     human_duration(p.cost.tp), human_duration(p.cost.pp), human_duration(p.cost.dp), order);
  out += fmt::format("  {:>5} {:<18} {:<18} {:>4} {:>5} {:<20} {}\n", "rank", "", "host", "GPU", "NUMA", "CPUs", "adapters");
  const size_t most = 32;
  for (size_t i = 0; i < std::min(p.ranks.size(), most); ++i) {
    const RankPlace& k = p.ranks[i];
    out += fmt::format("  {:>5} {:<18} {:<18} {:>4} {:>5} {:<20} {}\n", i, parallel::coord_of(p.mesh, static_cast<int>(i)).str(),
                       r.hosts.hosts[static_cast<size_t>(k.host)].name, k.gpu >= 0 ? std::to_string(k.gpu) : "-",
                       k.numa_os >= 0 ? std::to_string(k.numa_os) : "-", k.cpus.empty() ? "not bound" : k.cpus.list(),
                       k.nics.empty() ? "-" : fmt::format("{}", fmt::join(k.nics, ",")));
  }
  if (p.ranks.size() > most) out += fmt::format("  ... {} more; --json has them all\n", p.ranks.size() - most);
}

void add_groups(std::string& out, const PlanReport& r) {
  for (const PlannedGroup& g : r.groups)
    out += fmt::format("{:<14} {:<8} {}\n", &g == &r.groups.front() ? "groups" : "", g.kind, group_text(g));
}

void add_memory(std::string& out, const PlanReport& r) {
  std::vector<RankGroup> list = groups(r);
  const size_t all = list.size();
  if (list.size() > 8) list.resize(8);
  out += fmt::format("\nmemory of a rank, {} a {} can be used{}\n  {:<16}", bytes(r.capacity_bytes),
                     r.cluster.gpu() ? "GPU" : "host",
                     r.ranks_per_device > 1 ? fmt::format(" by {} ranks", r.ranks_per_device) : "", "");
  for (const RankGroup& g : list) out += fmt::format(" {:>13}", g.who);
  out += '\n';
  for (const std::string& c : parallel::memory_categories()) {
    if (std::ranges::all_of(list, [&](const RankGroup& g) { return parallel::category_bytes(g.rank->memory, c) == 0; })) continue;
    out += fmt::format("  {:<16}", c);
    for (const RankGroup& g : list) out += fmt::format(" {:>13}", bytes(parallel::category_bytes(g.rank->memory, c)));
    out += '\n';
  }
  out += fmt::format("  {:<16}", "sum");
  for (const RankGroup& g : list) out += fmt::format(" {:>13}", bytes(g.rank->plan.bytes().total()));
  out += '\n';
  int64_t beside = 0;
  for (const parallel::MemoryItem& i : r.beside) beside += i.bytes;
  out += fmt::format("  {:<16} {:>13}   (", "beside the plan", bytes(beside));
  for (size_t i = 0; i < r.beside.size(); ++i) out += fmt::format("{}{} {}", i > 0 ? ", " : "", r.beside[i].category, bytes(r.beside[i].bytes));
  out += r.cluster.gpu() ? "), counted already\n" : ", and 2 GiB a host for the system), counted already\n";
  if (r.chosen.job.offloads()) {
    out += fmt::format("  {:<16}", "on its host");
    for (const RankGroup& g : list) out += fmt::format(" {:>13}", bytes(g.rank->plan.bytes().host));
    out += fmt::format("   (pinned, by --offload {}: {} on a host, of {} that may be pinned)\n", r.chosen.job.offload_text(),
                       bytes(r.chosen.host_bytes), bytes(r.host_capacity_bytes));
  }
  if (all > list.size()) out += fmt::format("  ... {} more columns; --json has them all\n", all - list.size());

  // The fullest rank's activations and head by name.
  const auto fullest = std::ranges::max_element(r.ranks, {}, [](const PlannedRank& k) { return k.plan.bytes().total(); });
  std::string in_flight;
  for (const auto& c : fullest->plan.chunks) in_flight += fmt::format("{}{}", in_flight.empty() ? "" : "+", c.in_flight);
  out += fmt::format("  largest: pp {} tp {}, {} micro-batch{} in flight\n", fullest->coord.pp, fullest->coord.tp, in_flight,
                     in_flight == "1" ? "" : "es");
  std::vector<parallel::MemoryItem> items = fullest->memory;
  std::ranges::stable_sort(items, std::greater<>{}, &parallel::MemoryItem::bytes);
  size_t shown = 0;
  for (const parallel::MemoryItem& i : items) {
    if (i.category == "weights" || i.category == "gradients" || i.category == "optimizer") continue;
    if (++shown > 12 || i.bytes * 1000 < fullest->plan.bytes().total()) break;
    out += fmt::format("    {:<14} {:<26} {:>12}{}\n", i.category, i.name, bytes(i.bytes),
                       i.copies > 1 ? fmt::format("  x{} in flight", i.copies) : "");
  }
}

void add_time(std::string& out, const PlanReport& r) {
  const StepTime& t = r.chosen.time;
  const parallel::JobShape& job = r.chosen.job;
  out += fmt::format("\nstep time      {} for {} tokens: {} ({} a rank), {} model FLOP/s a rank\n", human_duration(t.total),
                     human_count(job.batch * job.seq_len), human_si(t.tokens_per_s, "tok/s"),
                     human_si(t.tokens_per_s / job.mesh.world(), "tok/s"), human_si(t.model_flops_per_s, ""));
  for (const auto& [name, seconds] : parts(t))
    if (seconds > t.total * 5e-4) out += fmt::format("  {:<28} {:>10} {:>5.1f} %\n", name, human_duration(seconds), 100 * seconds / t.total);
  if (r.usd_per_million_tokens)
    out += fmt::format("price          {:.2f} USD/h: {:.3f} USD a million tokens\n", *r.usd_per_hour, *r.usd_per_million_tokens);
}

void add_ranking(std::string& out, const PlanReport& r) {
  if (r.ranking.empty()) return;
  out += fmt::format("\nranking of layouts (the best of each mesh)\n  {:>4} {:<38} {:<26} {:>11} {:>12}  {}\n", "", "layout",
                     "micro-batch, recompute", "memory", "tok/s", "what it loses");
  size_t n = 0;
  for (const Candidate& c : r.ranking) {
    if (++n > 12) {
      out += fmt::format("  ... {} more; --json has them all\n", r.ranking.size() - 12);
      break;
    }
    const std::string schedule = c.job.mesh.pp == 1 ? "" : fmt::format(" {}{}", c.job.schedule, c.job.virtual_stages > 1 ? fmt::format(" v{}", c.job.virtual_stages) : "");
    out += fmt::format("  {:>3}. {:<38} {:<26} {:>11} {:>12}  {}\n", n, c.job.mesh.str() + schedule,
                       fmt::format("{}, {}", c.job.micro_batch, c.job.recompute_text()), bytes(c.device_bytes),
                       c.fits ? human_count(static_cast<int64_t>(c.time.tokens_per_s)) : "does not fit", c.fits ? c.reason : "");
  }
}

nlohmann::ordered_json time_json(const StepTime& t) {
  return {{"seconds", t.total}, {"gemm", t.gemm}, {"head", t.head}, {"attention", t.attention}, {"elementwise", t.elementwise},
          {"recompute", t.recompute}, {"overhead", t.overhead}, {"tp_communication", t.tp_comm},
          {"pp_communication", t.pp_comm}, {"bubble", t.bubble}, {"dp_communication", t.dp_comm}, {"optimizer", t.optimizer}, {"row_sums", t.row_sums}, {"offload", t.offload},
          {"tokens_per_second", t.tokens_per_s}, {"model_flops_per_second_per_rank", t.model_flops_per_s},
          {"bubble_fraction", t.bubble_fraction}};
}

nlohmann::ordered_json layout_json(const parallel::JobShape& job) {
  std::vector<std::string> recompute;
  for (int p = 0; p < job.mesh.pp; ++p) recompute.push_back(parallel::recompute_name(job.recompute_of(p)));
  return {{"pp", job.mesh.pp}, {"dp", job.mesh.dp}, {"tp", job.mesh.tp}, {"schedule", job.schedule},
          {"virtual_stages", job.virtual_stages}, {"batch", job.batch}, {"micro_batch", job.micro_batch},
          {"micro_batches", job.microbatches()}, {"seq_len", job.seq_len}, {"recompute", recompute}, {"zero", job.zero}, {"offload", job.offload_text()},
          {"weights", dtype_name(job.format.weights)}, {"gradients", dtype_name(job.format.gradients)},
          {"moments", dtype_name(job.format.moments)}, {"master_weights", job.format.master}};
}

nlohmann::ordered_json interval_json(const parallel::Interval& i) { return {i.begin, i.end}; }

nlohmann::ordered_json rank_json(const PlanReport& r, const PlannedRank& k) {
  nlohmann::ordered_json memory = nlohmann::ordered_json::array(), host = nlohmann::ordered_json::array(), sums;
  for (const auto& i : k.host) host.push_back({{"category", i.category}, {"name", i.name}, {"bytes", i.bytes}, {"in_flight", i.copies}});
  for (const auto& i : k.memory)
    memory.push_back({{"category", i.category}, {"name", i.name}, {"bytes", i.bytes}, {"in_flight", i.copies}});
  for (const std::string& c : parallel::memory_categories()) sums[c] = parallel::category_bytes(k.memory, c);
  nlohmann::ordered_json stages = nlohmann::ordered_json::array();
  for (const auto& c : k.plan.chunks) {
    const parallel::StageSpec& s = r.stages[static_cast<size_t>(c.stage)];
    stages.push_back({{"stage", c.stage}, {"layers", {s.layer_begin, s.layer_end}}, {"embedding", s.embedding}, {"head", s.head},
                      {"in_flight", c.in_flight}, {"stash", c.stash}});
  }
  return {{"pp", k.coord.pp}, {"tp", k.coord.tp}, {"stages", stages}, {"parameters", k.parameters},
          {"q_heads", interval_json(k.shard.q_heads)}, {"kv_heads", interval_json(k.shard.kv_heads)},
          {"ffn", interval_json(k.shard.ffn)}, {"vocabulary", interval_json(k.shard.vocab)},
          {"bytes", k.plan.bytes().total()}, {"categories", sums}, {"tensors", memory},
          {"host_bytes", k.plan.bytes().host}, {"host_tensors", host}};
}

nlohmann::ordered_json report_json(const PlanReport& r) {
  nlohmann::ordered_json j;
  j["model"] = {{"name", r.model_name}, {"architecture", r.model.architecture_name()}, {"parameters", r.model.parameters()},
                {"layers", r.model.layers}, {"hidden", r.model.hidden}, {"heads", r.model.heads}, {"kv_heads", r.model.kv_heads},
                {"ffn", r.model.ffn}, {"vocabulary", r.model.vocab}};
  j["machine"] = {{"text", r.cluster.text}, {"title", r.cluster.title}, {"hosts", r.cluster.hosts},
                  {"devices_per_host", r.cluster.devices_per_host}, {"device", r.cluster.device.title},
                  {"capacity_bytes", r.capacity_bytes}, {"host_capacity_bytes", r.host_capacity_bytes}, {"ranks_per_device", r.ranks_per_device},
                  {"link_in_host", r.cluster.peer.title}, {"link_between_hosts", r.cluster.network.title}};
  j["fits"] = r.fits();
  j["layout"] = layout_json(r.chosen.job);
  j["device_bytes"] = r.chosen.device_bytes;
  j["host_bytes"] = r.chosen.host_bytes;
  j["step_time"] = time_json(r.chosen.time);
  if (r.usd_per_hour) j["usd_per_hour"] = *r.usd_per_hour;
  if (r.usd_per_million_tokens) j["usd_per_million_tokens"] = *r.usd_per_million_tokens;
  j["beside_plan"] = nlohmann::ordered_json::array();
  for (const parallel::MemoryItem& i : r.beside) j["beside_plan"].push_back({{"category", i.category}, {"name", i.name}, {"bytes", i.bytes}});
  j["groups"] = nlohmann::ordered_json::array();
  for (const PlannedGroup& g : r.groups)
    j["groups"].push_back({{"kind", g.kind}, {"count", g.count}, {"ranks", g.ranks}, {"hosts", g.hosts},
                           {"collectives", comm_backend_name(g.route.collectives)}, {"messages", comm_backend_name(g.route.messages)},
                           {"small_collectives", comm_backend_name(g.route.small_collectives)}, {"any_size", g.route.any_size}});
  j["ranks"] = nlohmann::ordered_json::array();
  for (const PlannedRank& k : r.ranks) j["ranks"].push_back(rank_json(r, k));
  nlohmann::ordered_json places = nlohmann::ordered_json::array();
  for (const RankPlace& p : r.placement.ranks) {
    nlohmann::ordered_json environment = nlohmann::ordered_json::object();
    for (const auto& [name, value] : p.environment) environment[name] = value;
    places.push_back({{"host", r.hosts.hosts[static_cast<size_t>(p.host)].name}, {"local_rank", p.local_rank}, {"gpu", p.gpu},
                      {"gpu_uuid", p.gpu_uuid}, {"numa", p.numa_os}, {"cpus", p.cpus.list()}, {"nics", p.nics}, {"environment", environment}});
  }
  const auto cost = [](const PlacementCost& c) {
    return nlohmann::ordered_json{{"seconds", c.seconds()}, {"tp", c.tp}, {"pp", c.pp}, {"dp", c.dp}};
  };
  j["placement"] = {{"cost", cost(r.placement.cost)}, {"launchers_order", r.placement.default_order},
                    {"cost_of_launchers_order", cost(r.placement.default_cost)}, {"ranks", places}};
  j["schedule"] = parallel::print(r.schedule);
  j["warnings"] = r.warnings;
  j["assumptions"] = r.assumptions;
  j["remedies"] = nlohmann::ordered_json::array();
  for (const auto& m : r.remedies)
    j["remedies"].push_back({{"change", m.change}, {"explanation", m.explanation}, {"bytes", m.largest_bytes}, {"slowdown", m.slowdown},
                             {"seconds", m.seconds}, {"recompute", m.policy}});
  j["ranking"] = nlohmann::ordered_json::array();
  for (const Candidate& c : r.ranking)
    j["ranking"].push_back({{"layout", layout_json(c.job)}, {"fits", c.fits}, {"device_bytes", c.device_bytes},
                            {"tokens_per_second", c.time.tokens_per_s}, {"seconds", c.time.total}, {"reason", c.reason}});
  return j;
}

}  // namespace

std::string layout_flags(const parallel::JobShape& job) {
  std::string s = fmt::format("--pp {} --dp {} --tp {} --micro-batch {} --recompute {}", job.mesh.pp, job.mesh.dp, job.mesh.tp,
                              job.micro_batch, job.recompute_text().find('|') != std::string::npos ? "auto" : job.recompute_text());
  s += fmt::format(" --batch {} --seq-len {}", job.batch, job.seq_len);
  if (job.gpu && job.format.moments == DType::kBF16) s += " --state-dtype bf16";
  if (job.gpu && job.format.weights == DType::kF32) s += " --dtype fp32";
  if (job.mesh.pp > 1 && job.schedule != "1f1b") s += " --schedule " + job.schedule;
  if (job.virtual_stages > 1) s += fmt::format(" --virtual-stages {}", job.virtual_stages);
  if (job.zero > 0) s += " --zero 1";
  if (job.offloads()) s += " --offload " + job.offload_text();
  if (job.tree_rows > 0) s += " --deterministic";
  return s;
}

std::string group_text(const PlannedGroup& g) {
  std::string members;
  for (size_t i = 0; i < g.ranks.size() && i < 4; ++i) members += fmt::format("{}{}", i > 0 ? "," : "", g.ranks[i]);
  if (g.ranks.size() > 4) members += fmt::format(",...,{}", g.ranks.back());
  return fmt::format("{} group{} of {} ranks [{}]{}, {}: {}", g.count, g.count == 1 ? "" : "s", g.ranks.size(), members, g.count > 1 ? " and so on" : "",
                     g.hosts == 1 ? "on one host" : fmt::format("over {} hosts", g.hosts), describe(g.route));
}

std::string plan_text(const PlanReport& r) {
  const parallel::ModelConfig& c = r.model;
  const parallel::JobShape& job = r.chosen.job;
  std::string out = fmt::format("model          {}: {} {} parameters, {} layers, hidden {}, heads {}/{}, ffn {}, vocabulary {}{}\n", r.model_name,
                                c.architecture_name(), human_count(c.parameters()), c.layers, c.hidden, c.heads, c.kv_heads, c.ffn,
                                c.vocab, c.tied_embeddings ? ", tied" : "");
  out += fmt::format("machine        {}", r.cluster.title);
  if (r.cluster.hosts * r.cluster.devices_per_host > 1 || !r.cluster.gpu()) {
    if (r.cluster.devices_per_host > 1) out += fmt::format("; in a host {}", r.cluster.peer.title);
    if (r.cluster.hosts > 1) out += fmt::format("; between hosts {} x {}", r.cluster.nics, r.cluster.network.title);
  }
  out += '\n';
  out += fmt::format("layout         {} ({} rank{}){}, {} micro-batch{} of {} x {} tokens a replica, schedule {}, recompute {}\n", job.mesh.str(),
                     job.mesh.world(), job.mesh.world() == 1 ? "" : "s", r.searched ? ", searched" : "", job.microbatches(),
                     job.microbatches() == 1 ? "" : "es", job.micro_batch, job.seq_len,
                     job.mesh.pp == 1 ? "of one stage" : fmt::format("{}{}", job.schedule, job.virtual_stages > 1 ? fmt::format(" with {} virtual stages", job.virtual_stages) : ""),
                     job.recompute_text());
  out += fmt::format("numbers        weights {}, gradients {}, moments {}{}{}\n", dtype_name(job.format.weights), dtype_name(job.format.gradients),
                     dtype_name(job.format.moments), job.format.master ? ", fp32 master weights" : "",
                     job.zero > 0 ? ", optimizer state cut over dp" : "");
  if (job.tree_rows > 0)
    out += fmt::format("deterministic  rows one by one, gradients summed in a tree: {} a step; the same bits for every pp, schedule and power-of-two dp\n",
                       human_duration(r.chosen.time.row_sums));
  out += fmt::format("as options     {}\n", r.flags);
  add_groups(out, r);
  add_placement(out, r);
  add_shards(out, r);
  add_memory(out, r);
  add_time(out, r);
  if (job.mesh.pp > 1) {
    const std::string text = parallel::print(r.schedule);
    out += "\nschedule (stage, action, micro-batch; S sends, R receives)\n";
    size_t begin = 0;
    int lines = 0;
    while (begin < text.size() && lines++ < 8) {
      const size_t end = text.find('\n', begin);
      std::string line = text.substr(begin, end - begin);
      if (line.size() > 160) line = line.substr(0, 157) + "...";
      out += "  " + line + "\n";
      if (end == std::string::npos) break;
      begin = end + 1;
    }
  }
  add_ranking(out, r);
  if (!r.warnings.empty()) out += "\nwarnings\n";
  for (const auto& w : r.warnings) out += "  " + w + "\n";
  out += "\nassumptions\n";
  for (const auto& a : r.assumptions) out += "  " + a + "\n";
  return out;
}

std::string plan_json(const PlanReport& r) { return report_json(r).dump(1) + "\n"; }

std::string comparison_text(const std::vector<PlanReport>& reports) {
  std::string out;
  if (reports.empty()) return out;
  out += fmt::format("model          {}: {} parameters\n\n", reports.front().model_name, human_count(reports.front().model.parameters()));
  out += fmt::format("  {:<22} {:<26} {:<24} {:>21} {:>12} {:>10} {:>12}\n", "machine", "layout", "micro-batch, recompute", "memory of a device", "tok/s",
                     "USD/h", "USD/M tokens");
  for (const PlanReport& r : reports) {
    const parallel::JobShape& job = r.chosen.job;
    out += fmt::format("  {:<22} {:<26} {:<24} {:>21} {:>12} {:>10} {:>12}\n", r.cluster.text, job.mesh.str(),
                       fmt::format("{}, {}", job.micro_batch, job.recompute_text()),
                       fmt::format("{} of {}", bytes(r.chosen.device_bytes), bytes(r.capacity_bytes)),
                       r.fits() ? human_count(static_cast<int64_t>(r.chosen.time.tokens_per_s)) : "does not fit",
                       r.usd_per_hour ? fmt::format("{:.2f}", *r.usd_per_hour) : "-",
                       r.usd_per_million_tokens && r.fits() ? fmt::format("{:.3f}", *r.usd_per_million_tokens) : "-");
  }
  for (const PlanReport& r : reports) {
    if (r.fits() || r.remedies.empty()) continue;
    out += fmt::format("\n  {} would fit with", r.cluster.text);
    for (size_t i = 0; i < std::min<size_t>(2, r.remedies.size()); ++i)
      out += fmt::format("{} {} ({} a step)", i > 0 ? ", or" : "", r.remedies[i].change, human_duration(r.remedies[i].seconds));
  }
  std::map<std::string, std::vector<std::string>> warnings;
  for (const PlanReport& r : reports)
    for (const auto& w : r.warnings) warnings[w].push_back(r.cluster.text);
  if (!warnings.empty()) out += "\n\nwarnings\n";
  for (const auto& [w, who] : warnings) out += fmt::format("  {}: {}\n", fmt::join(who, ", "), w);
  return out + (warnings.empty() ? "\n" : "");
}

std::string comparison_json(const std::vector<PlanReport>& reports) {
  nlohmann::ordered_json j = nlohmann::ordered_json::array();
  for (const PlanReport& r : reports) j.push_back(report_json(r));
  return j.dump(1) + "\n";
}

}  // namespace r1::launch
