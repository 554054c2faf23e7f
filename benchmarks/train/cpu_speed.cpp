// Training speed on CPU ranks against what the same machine gives: the GEMM rate of the same BLAS, one rank alone, the
// simulated bubble. All cases in one run, one after the other in each round, so that what else the machine does hits them alike;
// figures are medians over rounds of ratios within a round.
//
//     mpirun -np 2 --bind-to none cpu_speed [--rounds 3] [--rows 4] [--cases tp,pp,cheap,full] [--cpu-time]
//
// A Qwen2-shaped model: hidden 768, 12 layers, 12/4 heads, ffn 2048, vocabulary 32k tied, rows of 512 tokens, fp32. One rank has 2
// threads, two ranks have 1 each. The peer beside it: benchmarks/peers/torch_cpu_train.py.
#include <time.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "runtime/core/rng.h"
#include "runtime/device/cpu/thread_pool.h"
#include "runtime/kernels/ops.h"
#include "runtime/train/batches.h"
#include "runtime/train/engine.h"

namespace r1 {
namespace {

constexpr int64_t kTokens = 512;

/// Seconds of the wall, or of the processor (--cpu-time): with one thread, what a rank does costs the same processor time whatever
/// else the machine does (but for what the others leave of the caches).
struct Clock {
  using time_point = double;
  static inline clockid_t id = CLOCK_MONOTONIC;
  static time_point now() {
    timespec t{};
    clock_gettime(id, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
};
double seconds_since(Clock::time_point start) { return Clock::now() - start; }

parallel::ModelConfig model() {
  return parallel::parse_model_config(
      R"({"architectures": ["Qwen2ForCausalLM"], "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
          "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 2048, "vocab_size": 32000, "max_position_embeddings": 512,
          "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "hidden_act": "silu", "initializer_range": 0.02, "rope_theta": 10000.0})",
      "cpu_speed");
}

std::vector<models::HostBatch> random_rows(int rows, int64_t vocab) {
  std::vector<models::HostBatch> out(static_cast<size_t>(rows));
  const Rng rng(1, "rows");
  uint64_t n = 0;
  for (models::HostBatch& b : out) {
    data::Row row;
    for (int64_t t = 0; t < kTokens; ++t) row.ids.push_back(static_cast<int32_t>(rng.below(n++, static_cast<uint64_t>(vocab))));
    row.targets.assign(row.ids.begin() + 1, row.ids.end());
    row.targets.push_back(-1);
    row.segments = {static_cast<int32_t>(kTokens)};
    row.trained_tokens = kTokens - 1;
    train::append_row(b, row);
  }
  return out;
}

/// One rank waits for the other without using its core: a collective that is waited in polls.
class Turnstile {
 public:
  explicit Turnstile(comm::Communicator& world) : world_(world) {}
  /// `work` on rank 0 alone, while the others sleep.
  void alone(const std::function<void()>& work) {
    world_.barrier();
    if (world_.rank() == 0) work();
    const std::string done = "/dev/shm/cpu_speed-" + std::to_string(getppid()) + "-" + std::to_string(++turn_);
    if (world_.rank() == 0) std::ofstream(done) << "x";
    while (world_.rank() != 0 && !std::ifstream(done)) {
      const timespec nap{.tv_sec = 0, .tv_nsec = 20'000'000};
      nanosleep(&nap, nullptr);
    }
    world_.barrier();
    if (world_.rank() == 0) std::remove(done.c_str());
  }

 private:
  comm::Communicator& world_;
  int turn_ = 0;
};

/// FLOP/s of products of 1024^3 on the pool's threads, as the layers call them.
double gemm_rate() {
  constexpr int64_t n = 1024;
  const Rng rng(2, "gemm");
  std::vector<float> a(static_cast<size_t>(n * n)), b(a), c(a);
  for (size_t i = 0; i < a.size(); ++i) {
    a[i] = static_cast<float>(rng.normal(2 * i));
    b[i] = static_cast<float>(rng.normal(2 * i + 1));
  }
  const auto matrix = [&](std::vector<float>& v) { return Tensor{.data = v.data(), .dtype = DType::kF32, .shape = {n, n}, .device = {}}; };
  const auto run = [&] { kernels::linear_forward(matrix(a), matrix(b), {}, matrix(c), {}); };
  for (int i = 0; i < 3; ++i) run();
  const auto start = Clock::now();
  int count = 0;
  do {
    for (int i = 0; i < 10; ++i) run();
    count += 10;
  } while (seconds_since(start) < 1.0);
  return 2.0 * static_cast<double>(n * n * n) * count / seconds_since(start);
}

struct Timed {
  double step = 0;       ///< seconds of a whole step, optimizer included
  double pipeline = 0;   ///< of forward and backward
  double ideal = 0;      ///< pp: the simulated time of the same actions at their own measured mean times
  double bubble = 0;     ///< pp: of the schedule simulated with the stages' FLOPs
};

/// Simulated makespan with the measured mean of each action kind per stage.
class ActionClock {
 public:
  explicit ActionClock(const parallel::Schedule& s) : schedule_(s), sums_(static_cast<size_t>(s.stages())) {}
  void observe(const parallel::Action& a) {
    stop();
    current_ = &sums_[static_cast<size_t>(a.stage)];
    kind_ = a.kind;
    started_ = Clock::now();
  }
  void stop() {
    if (current_ == nullptr) return;
    const double s = seconds_since(started_);
    if (kind_ == parallel::ActionKind::kForward) current_->forward += s, ++current_->forwards;
    if (kind_ == parallel::ActionKind::kBackward) current_->backward += s, ++current_->backwards;
    current_ = nullptr;
  }
  /// Collective over the pipeline: every rank's stages.
  double makespan(comm::Communicator& pp) const {
    std::vector<double> means;
    for (const Sum& s : sums_) {
      means.push_back(s.forwards > 0 ? s.forward / s.forwards : 0);
      means.push_back(s.backwards > 0 ? s.backward / s.backwards : 0);
    }
    pp.all_reduce({.data = means.data(), .dtype = DType::kF64, .shape = {static_cast<int64_t>(means.size())}, .device = {}},
                  comm::ReduceOp::kSum, {});
    parallel::ScheduleCosts costs{.forward = {}, .backward_input = {}, .backward_weight = {}};
    for (size_t i = 0; i < means.size(); i += 2) {
      costs.forward.push_back(means[i]);
      costs.backward_input.push_back(means[i + 1] / 2);
      costs.backward_weight.push_back(means[i + 1] / 2);
    }
    return parallel::simulate(schedule_, costs).makespan;
  }

 private:
  struct Sum {
    double forward = 0, backward = 0;
    int forwards = 0, backwards = 0;
  };
  const parallel::Schedule& schedule_;
  std::vector<Sum> sums_;
  Sum* current_ = nullptr;
  parallel::ActionKind kind_ = parallel::ActionKind::kForward;
  Clock::time_point started_ = 0;
};

/// Idle share of the schedule when stages cost their FLOPs.
double flop_bubble(const train::Engine& engine) {
  const parallel::ModelConfig& c = engine.spec().config();
  const double layer = static_cast<double>(2 * c.hidden * c.q_dim() + 2 * c.hidden * c.kv_dim() + 3 * c.hidden * c.ffn) +
                       static_cast<double>(c.q_dim() * kTokens);  // attention, causal: half of 2 T q_dim
  parallel::ScheduleCosts costs{.forward = {}, .backward_input = {}, .backward_weight = {}};
  for (const parallel::StageSpec& s : engine.spec().stages()) {
    const double layers = static_cast<double>(s.layer_end - s.layer_begin) * layer;
    // The head's gradients are made in the forward.
    const double head = s.head ? static_cast<double>(c.vocab * c.hidden) : 0.0;
    costs.forward.push_back(layers + 3 * head);
    costs.backward_input.push_back(layers);
    costs.backward_weight.push_back(layers);
  }
  return parallel::simulate(engine.schedule(), costs).bubble_fraction;
}

Timed train_steps(comm::Communicator& world, const train::EngineOptions& o, const std::vector<models::HostBatch>& rows, int steps) {
  const parallel::ModelConfig config = model();
  train::Engine engine(config, o, world);
  for (const models::StageParameters& p : engine.model().parameters()) models::initialise(p, config, 1, engine.stream());
  int64_t trained = 0;
  for (const models::HostBatch& b : rows) trained += b.trained_tokens;
  Timed best{.step = 1e300, .pipeline = 1e300, .ideal = 0, .bubble = o.mesh.pp > 1 ? flop_bubble(engine) : 0};
  for (int i = 0; i <= steps; ++i) {  // the first one warms up
    ActionClock actions(engine.schedule());
    world.barrier();
    const auto start = Clock::now();
    double pipeline = 0;
    static_cast<void>(engine.train_step(
        rows, trained, 1e-4, i + 1, [&](const parallel::Action& a) { actions.observe(a); },
        [&](train::Engine::StepPart) {
          actions.stop();
          pipeline = seconds_since(start);
        }));
    world.barrier();
    const double step = seconds_since(start);
    if (i == 0 || step >= best.step) continue;
    best.step = step;
    best.pipeline = pipeline;
    if (o.mesh.pp > 1) best.ideal = actions.makespan(engine.groups().pp());
  }
  engine.close();
  return best;
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0 : v[v.size() / 2];
}

void print_machine(int ranks) {
  std::ifstream cpu("/proc/cpuinfo"), load("/proc/loadavg");
  std::string line, name = "unknown CPU", average;
  while (std::getline(cpu, line))
    if (line.starts_with("model name")) {
      name = line.substr(line.find(':') + 2);
      break;
    }
  std::getline(load, average);
  std::printf("# cpu_speed: %d ranks, %s, load %s\n", ranks, name.c_str(), average.c_str());
}

int run(comm::Communicator& world, int rounds, int row_count, int steps, const std::string& cases) {
  const int threads = Clock::id == CLOCK_MONOTONIC ? 2 : 1;
  if (world.size() != 2) {
    std::fprintf(stderr, "cpu_speed: 2 ranks are needed: mpirun -np 2 --bind-to none cpu_speed\n");
    return 64;
  }
  const auto wanted = [&](const std::string& name) { return ("," + cases + ",").find("," + name + ",") != std::string::npos; };
  const parallel::ModelConfig config = model();
  const std::vector<models::HostBatch> rows = random_rows(row_count, config.vocab), eight = random_rows(8, config.vocab);
  Turnstile turn(world);
  const auto self = comm::make_self();
  std::map<std::string, std::vector<double>> ratios;
  std::vector<double> rate, gemm;
  if (world.rank() == 0) print_machine(world.size());
  const double flops = config.train_flops_per_token(static_cast<double>(kTokens));
  for (int round = 0; round < rounds; ++round) {
    train::EngineOptions one{.mesh = {}, .microbatches = row_count, .tokens = kTokens};
    double gemm_now = 0, one_rate = 0;
    const double tokens = static_cast<double>(row_count * kTokens);
    set_cpu_threads(threads);
    turn.alone([&] { gemm_now = gemm_rate(); });
    turn.alone([&] {
      one_rate = tokens / train_steps(*self, one, rows, steps).step;
      rate.push_back(one_rate);
      gemm.push_back(gemm_now);
      ratios[fmt::format("one rank, {} thread(s) / GEMM", threads)].push_back(one_rate * flops / gemm_now);
    });
    for (const auto& [name, policy] : {std::pair{"cheap", parallel::Recompute::kCheap}, std::pair{"full", parallel::Recompute::kFull}})
      if (wanted(name))
        turn.alone([&] {
          train::EngineOptions o = one;
          o.recompute = policy;
          ratios[std::string("recompute ") + name + ", time / none"].push_back(one_rate * train_steps(*self, o, rows, steps).step / tokens);
        });
    set_cpu_threads(1);
    if (wanted("tp")) {
      train::EngineOptions o = one;
      o.mesh.tp = 2;
      const double tp = tokens / train_steps(world, o, rows, steps).step;
      ratios["tp 2 x 1 thread / one rank"].push_back(tp / one_rate);
    }
    if (wanted("pp")) {
      train::EngineOptions o = one;
      o.mesh.pp = 2;
      o.microbatches = 8;
      const Timed t = train_steps(world, o, eight, steps);
      const double pp = 8.0 * static_cast<double>(kTokens) / t.step;
      ratios["pp 2 / (one rank, less its bubble)"].push_back(pp / (one_rate * (1 - t.bubble)));
      ratios["pp 2, simulated / measured time"].push_back(t.ideal / t.pipeline);
      ratios["pp 2, bubble"].push_back(t.bubble);
    }
    if (world.rank() != 0) continue;
    std::printf("round %d: GEMM %.1f GFLOP/s, one rank %.0f tokens/s", round + 1, gemm_now / 1e9, one_rate);
    for (const auto& [name, values] : ratios) std::printf("; %s %.3f", name.c_str(), values.back());
    std::printf("\n");
    std::fflush(stdout);
  }
  if (world.rank() == 0) {
    std::printf("median over %d rounds: GEMM %.1f GFLOP/s, one rank %.0f tokens/s\n", rounds, median(gemm) / 1e9, median(rate));
    for (const auto& [name, values] : ratios)
      std::printf("  %-40s %.3f  (%.3f .. %.3f)\n", name.c_str(), median(values), *std::min_element(values.begin(), values.end()),
                  *std::max_element(values.begin(), values.end()));
  }
  return 0;
}

}  // namespace
}  // namespace r1

int main(int argc, char** argv) {
  namespace po = boost::program_options;
  r1::comm::MpiWorld mpi(&argc, &argv);
  int rounds = 3, rows = 4, steps = 2;
  std::string cases;
  po::options_description options("cpu_speed: training on CPU ranks");
  options.add_options()("help,h", "this text")("rounds", po::value(&rounds)->default_value(3), "rounds over all cases")(
      "rows", po::value(&rows)->default_value(4), "rows of 512 tokens a step, but for pp (8)")(
      "steps", po::value(&steps)->default_value(2), "timed steps of a case in a round; the fastest counts")(
      "cases", po::value(&cases)->default_value("tp,pp,cheap,full"), "beside one rank: any of tp, pp, cheap, full")(
      "cpu-time", "processor time of one thread instead of the wall's: for a machine that is not quiet; for cheap and full only");
  po::variables_map given;
  int code = 0;
  const auto world = mpi.world({});
  try {
    po::store(po::parse_command_line(argc, argv, options), given);
    po::notify(given);
    if (given.contains("cpu-time")) {
      r1::Clock::id = CLOCK_PROCESS_CPUTIME_ID;
      if (cases.find("pp") != std::string::npos || cases.find("tp") != std::string::npos) cases = "cheap,full";
    }
    if (given.contains("help")) {
      if (world->rank() == 0) std::cout << options << "\n";
    } else {
      code = r1::run(*world, rounds, rows, steps, cases);
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "cpu_speed: %s\n", e.what());
    mpi.abandon();
    std::_Exit(70);
  }
  world->close();
  return code;
}
