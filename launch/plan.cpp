#include "launch/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "launch/hostfile.h"
#include "launch/launch_job.h"
#include "runtime/core/error.h"
#include "runtime/core/human.h"

namespace r1::launch {

namespace fs = std::filesystem;
using parallel::Candidate;
using parallel::JobShape;

namespace {

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw UsageError("{}: cannot be read", path.string());
  return {std::istreambuf_iterator<char>(in), {}};
}

int64_t this_machines_memory() {
  std::ifstream info("/proc/meminfo");
  for (std::string key; info >> key;) {
    int64_t kib = 0;
    if (key == "MemTotal:" && info >> kib) return kib * 1024;
    info.ignore(256, '\n');
  }
  return int64_t{8} << 30;
}

/// This machine as a host of CPU ranks. A core's rate is this project's own measurement (95 GFLOP/s in fp32 GEMM).
PlannedCluster this_machine() {
  PlannedCluster c;
  c.cores = local_machine().cores;
  c.text = c.title = fmt::format("this machine, {} CPU core{}", c.cores, c.cores == 1 ? "" : "s");
  c.device = {.name = "CPU", .title = "CPU", .gpu = false, .cores = c.cores, .numa = 1};
  c.device.fp32_flops = 120e9 * c.cores;
  c.device.gemm = 0.8;
  c.device.attention_forward = 0.25;
  c.device.attention_backward = 0.2;
  c.device.bytes_per_s = std::min(200e9, 12e9 * c.cores);
  c.device.copy = 0.7;
  c.device.basis = "estimate";
  c.host_memory_bytes = this_machines_memory();
  c.device.memory_bytes = c.host_memory_bytes;
  const Catalogue catalogue = Catalogue::built_in();
  c.peer = catalogue.link("shared-memory", "plan");
  c.network = catalogue.link("10GbE", "plan");
  return c;
}

/// The hosts of a hostfile with the machine each is said to be: --cluster, or the file's annotation "tier".
PlannedCluster hosts_of_file(const Cluster& file, const std::string& shape, const Catalogue& catalogue) {
  std::string tier = shape;
  for (const Host& h : file.hosts) {
    const auto it = h.annotations.find("tier");
    if (it == h.annotations.end() || !shape.empty()) continue;
    if (!tier.empty() && tier != it->second)
      throw UsageError("{}:{}: tier {} after tier {}: hosts of several kinds are not planned together", file.source, h.line,
                       it->second, tier);
    tier = it->second;
  }
  if (tier.empty())
    throw UsageError("{}: what its hosts are is not known: name a shape of the catalogue, either in the file (\"# r1run: "
                     "tier=production\" on a line of its own) or with --cluster (such as production, or 4xA100-80 for each host)",
                     file.source);
  PlannedCluster c = catalogue.cluster(tier);
  if (c.hosts != 1) throw UsageError("--cluster {}: with a hostfile it says what one host is", tier);
  c.hosts = static_cast<int>(file.hosts.size());
  if (c.usd_per_hour) c.usd_per_hour = *c.usd_per_hour * c.hosts;
  c.title = fmt::format("{} host{} of {}: {}", c.hosts, c.hosts == 1 ? "" : "s", file.source, c.title);
  c.text = file.source;
  return c;
}

JobShape shape_of(const JobConfig& cfg, const parallel::ModelConfig& model, const PlannedCluster& cluster) {
  JobShape job;
  job.gpu = cluster.gpu() && cfg.device != "cpu";
  job.schedule = cfg.schedule.empty() ? "1f1b" : cfg.schedule;
  job.virtual_stages = cfg.virtual_stages;
  job.batch = cfg.batch;
  job.micro_batch = cfg.row_tree() ? 1 : std::max<int64_t>(1, cfg.micro_batch);
  job.tree_rows = cfg.row_tree() ? cfg.batch : 0;
  job.seq_len = cfg.seq_len > 0 ? cfg.seq_len : std::min<int64_t>(1024, model.max_positions);
  if (job.seq_len > model.max_positions)
    throw UsageError("--seq-len {}: the model has max_position_embeddings {}", job.seq_len, model.max_positions);
  if (cfg.recompute != "auto" && !cfg.recompute.empty()) job.recompute = {parallel::parse_recompute(cfg.recompute)};
  std::string dtype = cfg.dtype;
  if (job.gpu && dtype == "auto" && cluster.device.bf16_flops <= 0) dtype = "fp32";
  if (job.gpu && dtype == "bf16" && cluster.device.bf16_flops <= 0)
    throw UsageError("--dtype bf16: {} has no bf16 arithmetic; --dtype fp32 works", cluster.device.title);
  job.format = parallel::numeric_format(job.gpu, dtype, cfg.state_dtype);
  job.zero = cfg.zero;
  const auto offloads = [&](const char* what) { return std::ranges::find(cfg.offload, what) != cfg.offload.end(); };
  if (!cfg.offload.empty() && !job.gpu) throw UsageError("--offload needs a GPU: on a CPU everything is in host memory already");
  job.offload_optimizer = offloads("optimizer");
  job.offload_activations = offloads("activations");
  return job;
}

/// Options that say what the layout is; without any of them the plan searches for it.
bool layout_given(const JobConfig& cfg) {
  return std::ranges::any_of(std::initializer_list<const char*>{"pp", "dp", "tp"}, [&](const char* o) { return cfg.is_set(o); });
}

bool machine_given(const JobConfig& cfg) { return !cfg.cluster.empty() || !cfg.hostfile.empty() || !cfg.host.empty(); }

parallel::SearchSpace space_of(const JobConfig& cfg, bool on_a_machine) {
  const bool free = on_a_machine && !layout_given(cfg);
  parallel::SearchSpace s;
  s.pp = cfg.pp == 0 || free;
  s.tp = cfg.tp == 0 || free;
  s.dp = cfg.dp == 0 || free || (s.mesh() && !cfg.is_set("dp"));
  s.recompute = cfg.recompute == "auto" || (free && !cfg.is_set("recompute"));
  s.micro_batch = !cfg.row_tree() && (cfg.micro_batch == 0 || (free && !cfg.is_set("micro-batch")));
  s.schedule = s.pp && !cfg.is_set("schedule") && !cfg.is_set("virtual-stages");
  return s;
}

struct Decision {
  parallel::Candidate chosen;
  bool searched = false;
  std::vector<parallel::Candidate> ranking;
};

/// The job of a command line on a machine: as it is given, or the best of what it leaves open.
Decision decide(const JobConfig& cfg, const parallel::ModelConfig& model, const PlannedCluster& cluster) {
  JobShape job = shape_of(cfg, model, cluster);
  const parallel::SearchSpace space = space_of(cfg, machine_given(cfg));
  job.mesh = {.pp = std::max(1, cfg.pp), .dp = std::max(1, cfg.dp), .tp = std::max(1, cfg.tp)};
  if (job.gpu && messages_through_ipc(cluster.comm))
    job.ipc_ranks_a_host = space.mesh() ? cluster.devices_per_host : cluster.ranks_per_host(job.mesh);
  // A search picks full by itself; --recompute auto does not when the job runs, and is refused there too.
  if (job.offload_activations && (cfg.recompute == "auto" || (job.recompute_of(0) != parallel::Recompute::kFull && !space.recompute)))
    throw UsageError("--offload activations goes with --recompute full, where the inputs of the blocks are all that is kept");
  Decision d{.searched = space.any()};
  if (!d.searched) {
    d.chosen = parallel::evaluate(model, job, cluster);
    return d;
  }
  d.ranking = parallel::search(model, job, space, cluster);
  if (d.ranking.empty())
    throw UsageError("no layout of {} ranks is possible for {} layers, {} heads and --batch {}", cluster.most_ranks(), model.layers,
                     model.heads, job.batch);
  d.chosen = d.ranking.front();
  return d;
}

/// Changes that would fit, each priced as the changed command would be planned.
std::vector<parallel::Remedy> remedies_for(const JobConfig& cfg, const parallel::ModelConfig& model, const PlannedCluster& cluster,
                                           const JobShape& job) {
  const auto changed = [&](const JobShape&, const std::vector<parallel::OptionValue>& options) -> std::optional<parallel::ChangedJob> {
    try {
      JobConfig with = cfg;
      for (const parallel::OptionValue& o : options) with.give(o.option, o.value);
      const parallel::Candidate c = decide(with, model, cluster).chosen;
      return parallel::ChangedJob{c.job, c.fits, c.largest_bytes, c.time.total};
    } catch (const UsageError&) {
      return std::nullopt;  // not with the rest of this command line
    }
  };
  // A search has tried every layout there is.
  return parallel::remedies(model, job, cluster, 6, changed, !space_of(cfg, machine_given(cfg)).mesh());
}

void add_warnings(PlanReport& r, const JobConfig& cfg) {
  const JobShape& job = r.chosen.job;
  const DeviceKind& d = r.cluster.device;
  if (r.ranks_per_device > 1 && r.cluster.gpu()) {
    const int devices = r.cluster.hosts * r.cluster.devices_per_host;
    std::string better;
    for (const auto& m : parallel::factorisations(devices, r.cluster.devices_per_host)) {
      if (m.dp > 1 && job.mesh.dp == 1) continue;
      if (!better.empty() && std::ranges::count(better, ',') >= 1) break;
      better += fmt::format("{}--pp {} --dp {} --tp {}", better.empty() ? "" : ", ", m.pp, m.dp, m.tp);
    }
    r.warnings.push_back(fmt::format("{} ranks on {} GPU{}: {} share each, correct but slower than one rank a GPU; better: {}",
                                     job.mesh.world(), devices, devices == 1 ? "" : "s", r.ranks_per_device, better));
  }
  for (const std::string& w : r.placement.warnings) r.warnings.push_back(w);
  if (r.cluster.gpu() && d.bf16_flops <= 0)
    r.warnings.push_back(fmt::format("{} has no bf16 arithmetic: weights and activations are fp32 and no tensor cores are used",
                                     d.title));
  if (r.cluster.gpu() && d.sm > 0 && d.sm < 75)
    r.warnings.push_back(fmt::format("{} (compute capability {}.{}) is no target of CUDA 13: it needs a build with CUDA 12 or earlier",
                                     d.title, d.sm / 10, d.sm % 10));
  if (!r.cluster.mig.empty() && job.mesh.world() > 1)
    r.warnings.push_back("MIG instances reach each other neither over NVLink nor as PCIe peers: ranks exchange through host memory");
  if (!r.cluster.gpu() && r.model.parameters() > 1'000'000'000)
    r.warnings.push_back(fmt::format("CPU ranks are meant for models below 1B parameters; this one has {}",
                                     human_si(static_cast<double>(r.model.parameters()), "")));
  const int devices = r.cluster.hosts * r.cluster.devices_per_host;
  if (r.cluster.gpu() && job.mesh.world() < devices)
    r.warnings.push_back(fmt::format("{} of {} GPUs are left idle", devices - job.mesh.world(), devices));
  if (job.batch % job.mesh.dp != 0 || job.microbatches() * job.micro_batch * job.mesh.dp != job.batch)
    r.warnings.push_back(fmt::format("--batch {} is not a multiple of dp {} x micro-batch {}: masked rows fill the rest", job.batch,
                                     job.mesh.dp, job.micro_batch));
  if (job.mesh.pp > 1 && job.microbatches() < job.mesh.pp)
    r.warnings.push_back(fmt::format("{} micro-batch{} for {} stages: most stages wait; raise --batch", job.microbatches(),
                                     job.microbatches() == 1 ? "" : "es", job.mesh.pp));
  static_cast<void>(cfg);
}

}  // namespace

std::string PlanReport::refusal() const {
  const auto h = [](int64_t n) { return human_bytes(static_cast<double>(n)); };
  const bool device_short = chosen.device_bytes > capacity_bytes;
  std::string text = fmt::format("{} does not fit: ", chosen.job.mesh.str());
  if (device_short) {
    text += fmt::format("{} needs {} of {}", cluster.gpu() ? "a GPU" : "a host", h(chosen.device_bytes), h(capacity_bytes));
    if (ranks_per_device > 1) text += fmt::format(" for its {} ranks", ranks_per_device);
  }
  if (chosen.host_bytes > host_capacity_bytes)
    text += fmt::format("{}--offload {} pins {} on a host, of {} that its ranks may pin", device_short ? "; " : "", chosen.job.offload_text(),
                        h(chosen.host_bytes), h(host_capacity_bytes));
  if (remedies.empty())
    return text + fmt::format(". No single change of recompute, micro-batch, layout or state dtype, no two of them{}, would make it fit on "
                              "this machine: take more or larger devices, or a shorter --seq-len",
                              cluster.gpu() ? ", and none with --offload" : "");
  text += ". Changes that would fit, the fastest first:";
  for (const parallel::Remedy& m : remedies)
    text += fmt::format("\n  {:<40} {} a rank, {}{:.0f} % step time, {} ({}; recompute {})", m.change, h(m.largest_bytes),
                        m.slowdown < 0 ? "-" : "+", std::abs(100 * m.slowdown), human_duration(m.seconds), m.explanation, m.policy);
  return text;
}

parallel::ModelConfig planned_model(const std::string& model, std::string* name) {
  if (model.empty()) {
    *name = "the built-in small model";
    const auto built_in = model_by_name("built-in");
    R1_CHECK(built_in.has_value(), "the model catalogue lacks the built-in model");
    return *built_in;
  }
  *name = model;
  std::error_code ignored;
  fs::path path(model);
  if (fs::is_directory(path, ignored)) path /= "config.json";
  if (fs::exists(path, ignored)) return parallel::parse_model_config(read_file(path), path.string());
  if (const auto known = model_by_name(model)) return *known;
  const std::vector<std::string> names = model_names();
  const std::string near = nearest(model, names);
  std::string list;
  for (const std::string& n : names) list += (list.empty() ? "" : ", ") + n;
  throw UsageError("--model {}: neither a directory with a config.json nor a name that is known without one{}; known are {}", model,
                   near.empty() ? "" : fmt::format(" (did you mean {}?)", near), list);
}

PlanReport make_plan(const JobConfig& cfg, const std::string& model_name, const parallel::ModelConfig& model,
                     const PlannedCluster& machine, const Cluster* hosts, const Topology* topology) {
  PlannedCluster cluster = machine;
  cluster.comm = parse_comm_choice(cfg.comm);
  PlanReport r{.model_name = model_name, .model = model, .cluster = cluster};
  Decision decision = decide(cfg, model, cluster);
  r.searched = decision.searched;
  r.ranking = std::move(decision.ranking);
  r.chosen = std::move(decision.chosen);
  const JobShape& job = r.chosen.job;
  r.schedule = parallel::schedule_of(job);
  r.simulation = parallel::simulate(r.schedule, r.chosen.time.costs);
  const parallel::ModelSpec spec(model, job.mesh.tp, job.stages());
  r.stages = spec.stages();
  for (int pp = 0; pp < job.mesh.pp; ++pp)
    for (int tp = 0; tp < job.mesh.tp; ++tp) {
      PlannedRank rank{.coord = {.pp = pp, .dp = job.mesh.dp - 1, .tp = tp}};  // the replica that holds most
      rank.plan = parallel::plan_rank(spec, job, r.schedule, rank.coord);
      rank.memory = parallel::memory_items(rank.plan);
      rank.host = parallel::host_items(rank.plan);
      rank.shard = spec.local(tp);
      for (const auto& c : rank.plan.chunks) rank.parameters += c.param_elems;
      r.ranks.push_back(std::move(rank));
    }
  r.ranks_per_device = cluster.ranks_per_device(job.mesh);
  r.capacity_bytes = cluster.capacity_bytes(job.mesh);
  if (const auto hosts_memory = cluster.host_domains(job.mesh); !hosts_memory.empty())
    r.host_capacity_bytes = hosts_memory.front().capacity_bytes;
  r.beside = cluster.beside_plan(job.mesh);
  r.assumptions = parallel::assumptions(job, cluster.rates(job.mesh, job.format), cluster.links(job.mesh));
  r.assumptions.push_back(fmt::format("rates of {}: {}", cluster.device.title,
                                      cluster.device.basis == "measured"    ? "measured by this project"
                                      : cluster.device.basis == "published" ? "derived from published training rates"
                                                                            : "estimated, not measured"));
  r.assumptions.push_back(cluster.gpu() ? "memory beside the plan: measured on one H200 with CUDA 13.0; NCCL's buffers are estimated"
                                        : "96 MiB a rank are kept for code and libraries, 2 GiB a host for the system");
  if (job.offloads() && cluster.host_assumed)
    r.assumptions.push_back(fmt::format("a host of {} for {} such GPUs is assumed, {} of it for pinning: a shape of the catalogue or --hostfile "
                                        "says what yours has",
                                        human_bytes(static_cast<double>(cluster.host_memory_bytes)), cluster.devices_per_host,
                                        human_bytes(static_cast<double>(r.host_capacity_bytes))));
  r.usd_per_hour = cfg.price > 0 ? std::optional<double>(cfg.price) : cluster.usd_per_hour;
  if (r.usd_per_hour) {
    r.usd_per_million_tokens = *r.usd_per_hour / 3600 / r.chosen.time.tokens_per_s * 1e6;
    if (cfg.price <= 0) r.assumptions.push_back("price: " + cluster.price_note);
  }
  r.flags = layout_flags(job);
  r.hosts = hosts != nullptr ? *hosts : planned_hosts(cluster, cluster.ranks_per_host(job.mesh));
  if (hosts != nullptr && hosts->total_slots() < job.mesh.world())
    throw UsageError("{} needs {} ranks but {} offers {} slots", job.mesh.str(), job.mesh.world(), hosts->source, hosts->total_slots());
  // What is known of each host, and what its kind promises of the others.
  Topology map = planned_topology(cluster, r.hosts);
  if (hosts != nullptr)
    for (Topology::Member& m : map.hosts) m.kind_only = true;
  if (topology != nullptr) {
    map.fabric = topology->fabric;
    for (const Topology::Member& known : topology->hosts)
      for (Topology::Member& m : map.hosts)
        if (m.name == known.name) m = known;
  }
  r.placement = place(r.hosts, map, job.mesh, parallel::step_traffic(spec, job));
  r.groups = planned_groups(job.mesh, model.tied_embeddings, cluster.comm, [&](int rank) {
    const RankPlace& p = r.placement.ranks[static_cast<size_t>(rank)];
    const int gpu = cluster.gpu() ? (p.gpu >= 0 ? p.gpu : p.local_rank % cluster.devices_per_host) : -1;
    return RankSpot{p.host, gpu};
  });
  add_warnings(r, cfg);
  if (!r.fits()) r.remedies = remedies_for(cfg, model, cluster, job);
  return r;
}

namespace {

/// Machines to plan for; `hosts` and `topology` are set where a hostfile names them.
std::vector<PlannedCluster> machines_of(const JobConfig& cfg, std::optional<Cluster>* hosts, Topology* topology) {
  Catalogue catalogue = Catalogue::built_in();
  if (!cfg.catalogue.empty()) catalogue.add(read_file(cfg.catalogue), cfg.catalogue);
  if (!cfg.hostfile.empty() || !cfg.host.empty()) {
    *hosts = given_hosts(cfg);
    *topology = annotated_topology(**hosts, catalogue, cfg.topology);
    return {hosts_of_file(**hosts, cfg.cluster, catalogue)};
  }
  if (!cfg.cluster.empty()) return catalogue.clusters(cfg.cluster);
  if (cfg.device == "cuda")
    throw UsageError("plan --device cuda: which GPUs? Name them with --cluster, such as --cluster 4xA100-80");
  return {this_machine()};
}

void write_result(const std::string& path, const std::string& text) {
  if (path == "-") {
    std::fwrite(text.data(), 1, text.size(), stdout);
    return;
  }
  std::ofstream out(path, std::ios::binary);
  out << text;
  if (!out.flush()) throw StorageError("{}: cannot be written", path);
}

}  // namespace

parallel::StepTraffic planned_traffic(const JobConfig& cfg) {
  parallel::ModelConfig model;
  try {
    std::string name;
    model = planned_model(cfg.model, &name);
  } catch (const Error&) {
    model = *model_by_name("R1-Distill-Qwen-7B");  // the ranks will say what is wrong with the model
  }
  JobShape job;
  job.mesh = {.pp = cfg.pp, .dp = cfg.dp, .tp = cfg.tp};
  job.virtual_stages = cfg.virtual_stages;
  job.batch = std::max<int64_t>(1, cfg.batch);
  job.micro_batch = std::max<int64_t>(1, cfg.micro_batch);
  job.seq_len = cfg.seq_len > 0 ? cfg.seq_len : std::min<int64_t>(1024, model.max_positions);
  if (job.stages() > model.layers) return {};  // refused where it can be explained
  return parallel::step_traffic(parallel::ModelSpec(model, job.mesh.tp, job.stages()), job);
}

int run_plan(const JobConfig& cfg) {
  std::string name;
  const parallel::ModelConfig model = planned_model(cfg.model, &name);
  std::vector<PlanReport> reports;
  std::optional<Cluster> hosts;
  Topology topology;
  for (const PlannedCluster& machine : machines_of(cfg, &hosts, &topology))
    reports.push_back(make_plan(cfg, name, model, machine, hosts ? &*hosts : nullptr, &topology));
  const bool one = reports.size() == 1;
  if (cfg.json != "-" && cfg.html != "-")
    std::printf("%s", (one ? plan_text(reports.front()) : comparison_text(reports)).c_str());
  if (!cfg.json.empty()) write_result(cfg.json, one ? plan_json(reports.front()) : comparison_json(reports));
  if (!cfg.html.empty()) write_result(cfg.html, one ? plan_html(reports.front()) : comparison_html(reports));
  if (cfg.schedule_print && one && cfg.json != "-") std::printf("\n%s", parallel::print(reports.front().schedule).c_str());
  std::fflush(stdout);
  if (one && !reports.front().fits()) {
    std::fprintf(stderr, "r1run: error: %s\n", reports.front().refusal().c_str());
    return static_cast<int>(ExitCode::kNoMemory);
  }
  return 0;
}

}  // namespace r1::launch
