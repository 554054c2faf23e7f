#include "runtime/train/step_profile.h"

#include <array>
#include <chrono>

namespace r1::train {
namespace {

/// "tp all-gather" of "tp (pp 0 dp 1)".
std::string name_of(const comm::CommTime& t) { return fmt::format("{} {}", t.group.substr(0, t.group.find_first_of(" [")), r1::name_of(t.op)); }

bool along_the_pipeline(const std::string& group) { return group.starts_with("pp ") || group.starts_with("ends "); }

int64_t nanoseconds(double seconds) { return static_cast<int64_t>(1e9 * seconds); }

}  // namespace

WaitingTime waiting_time(std::span<const comm::CommTime> times) {
  WaitingTime out;
  for (const comm::CommTime& t : times) (along_the_pipeline(t.group) ? out.bubble : out.exposed) += t.seconds;
  return out;
}

ComputeTime compute_time(std::span<const kernels::OpProfile> ops) {
  ComputeTime out;
  for (const kernels::OpProfile& p : ops) {
    if (!p.name.starts_with("linear_")) {
      out.others += p.seconds;
      continue;
    }
    out.products += p.seconds;
    out.product_flops += p.flops;
  }
  return out;
}

StepProfile::StepProfile(const RankContext& ctx, Engine& engine, int64_t steps, double gemm_rate, Metrics metrics)
    : ctx_(ctx), engine_(engine), steps_(steps), gemm_rate_(gemm_rate), metrics_(std::move(metrics)) {}

void StepProfile::before_step() {
  if (steps_ == 0 || seen_ != kWarmupSteps) return;
  // Single operations can be timed only where they are launched by themselves.
  engine_.set_overlap(false);
  kernels::profile_begin(engine_.device().kind);
  if (engine_.comm_clock() != nullptr) engine_.comm_clock()->start();
}

void StepProfile::after_step(double seconds) {
  if (steps_ == 0) return;
  ++seen_;
  if (seen_ <= kWarmupSteps) return;
  seconds_ += seconds;
  if (seen_ < kWarmupSteps + steps_) return;
  report();
  engine_.set_overlap(true);
  steps_ = 0;
}

void StepProfile::report() {
  const std::vector<kernels::OpProfile> ops = kernels::profile_end();
  const std::vector<comm::CommTime> times = engine_.comm_clock() != nullptr ? engine_.comm_clock()->stop() : std::vector<comm::CommTime>{};
  const double copy_rate = measure_copy_rate(engine_.device());
  const auto n = static_cast<double>(steps_);
  std::string table = fmt::format(
      "\nprofile of {} steps on rank 0, {:.2f} ms a step; ceilings of this device: {:.1f} GFLOP/s in products, {:.1f} GB/s in copies\n"
      "{:<26}{:>8}{:>11}{:>9}{:>12}{:>12}{:>11}\n",
      steps_, 1e3 * seconds_ / n, 1e-9 * gemm_rate_, 1e-9 * copy_rate, "operation", "calls", "ms a step", "share", "GFLOP/s", "GB/s",
      "of ceiling");
  double sum = 0;
  for (const kernels::OpProfile& p : ops) {
    sum += p.seconds;
    const double flops = p.flops / p.seconds, bytes = p.bytes / p.seconds;
    table += fmt::format("{:<26}{:>8.0f}{:>11.3f}{:>8.1f}%{:>12}{:>12.1f}{:>10.1f}%\n", p.name, static_cast<double>(p.calls) / n,
                         1e3 * p.seconds / n, 100 * p.seconds / seconds_, p.flops > 0 ? fmt::format("{:.1f}", 1e-9 * flops) : "",
                         1e-9 * bytes, 100 * (p.flops > 0 ? flops / gemm_rate_ : bytes / copy_rate));
  }
  for (const comm::CommTime& t : times) {
    sum += t.seconds;
    table += fmt::format("{:<26}{:>8.0f}{:>11.3f}{:>8.1f}%{:>12}{:>12}\n", name_of(t), static_cast<double>(t.calls) / n,
                         1e3 * t.seconds / n, 100 * t.seconds / seconds_, "",
                         t.bytes > 0 && t.seconds > 0 ? fmt::format("{:.1f}", 1e-9 * t.bytes / t.seconds) : "");
  }
  table += fmt::format("{:<26}{:>8}{:>11.3f}{:>8.1f}%  (transfers, host, gaps between operations)", "everything else", "",
                       1e3 * (seconds_ - sum) / n, 100 * (seconds_ - sum) / seconds_);
  say(ctx_, table + report_ranks(ops, times));
}

std::string StepProfile::report_ranks(std::span<const kernels::OpProfile> ops, std::span<const comm::CommTime> times) {
  const WaitingTime waiting = waiting_time(times);
  const ComputeTime computing = compute_time(ops);
  const auto n = static_cast<double>(steps_);
  struct Rank {
    double seconds, bubble, exposed, products, others, product_rate;
    [[nodiscard]] double rest() const { return seconds - bubble - exposed - products - others; }
  };
  std::vector<Rank> all;
  for (const auto& v : gather(ctx_.world, std::array<int64_t, 6>{nanoseconds(seconds_ / n), nanoseconds(waiting.bubble / n),
                                                                 nanoseconds(waiting.exposed / n), nanoseconds(computing.products / n),
                                                                 nanoseconds(computing.others / n),
                                                                 static_cast<int64_t>(computing.product_flops / n)})) {
    const auto seconds = [&](size_t i) { return 1e-9 * static_cast<double>(v[i]); };
    all.push_back({.seconds = seconds(0), .bubble = seconds(1), .exposed = seconds(2), .products = seconds(3), .others = seconds(4),
                   .product_rate = v[3] > 0 ? static_cast<double>(v[5]) / seconds(3) : 0});
  }
  double total = 0, bubble = 0, exposed = 0;
  nlohmann::ordered_json ranks = nlohmann::ordered_json::array(), operations = nlohmann::ordered_json::array();
  for (const Rank& r : all) {
    total += r.seconds, bubble += r.bubble, exposed += r.exposed;
    ranks.push_back({{"seconds", r.seconds}, {"bubble_seconds", r.bubble}, {"exposed_seconds", r.exposed}, {"product_seconds", r.products},
                     {"product_flops_per_second", r.product_rate}, {"other_compute_seconds", r.others}});
  }
  for (const kernels::OpProfile& p : ops)
    operations.push_back({{"name", p.name}, {"calls", static_cast<double>(p.calls) / n}, {"seconds", p.seconds / n},
                          {"flops", p.flops / n}, {"bytes", p.bytes / n}});
  for (const comm::CommTime& t : times)
    operations.push_back({{"name", name_of(t)}, {"calls", static_cast<double>(t.calls) / n}, {"seconds", t.seconds / n},
                          {"bytes", t.bytes / n}});
  const auto count = static_cast<double>(all.size());
  metrics_({{"type", "profile"}, {"steps", steps_}, {"seconds", total / count}, {"bubble", bubble / total},
            {"exposed_communication", exposed / total}, {"ranks", std::move(ranks)}, {"operations_of_rank_0", std::move(operations)}});
  if (all.size() == 1) return {};
  std::string text = fmt::format("\n{:<26}{:>12}{:>12}{:>12}{:>12}{:>12}{:>12}\n", "ms a step of a rank", "products", "GFLOP/s", "others",
                                 "bubble", "exposed", "rest");
  // Of many ranks, those that differ by their work: one a stage.
  constexpr size_t kMostRows = 16;
  for (size_t r = 0; r < all.size(); ++r) {
    const parallel::MeshCoord at = parallel::coord_of(engine_.groups().mesh(), static_cast<int>(r));
    if (all.size() > kMostRows && (at.dp != 0 || at.tp != 0)) continue;
    const Rank& k = all[r];
    text += fmt::format("{:<26}{:>12.3f}{:>12.1f}{:>12.3f}{:>12.3f}{:>12.3f}{:>12.3f}\n", fmt::format("  {}: pp {} dp {} tp {}", r, at.pp, at.dp, at.tp),
                        1e3 * k.products, 1e-9 * k.product_rate, 1e3 * k.others, 1e3 * k.bubble, 1e3 * k.exposed, 1e3 * k.rest());
  }
  return text + fmt::format("bubble {:.1f} % of the step, exposed communication {:.1f} % ({:.3f} and {:.3f} ms), mean of {} ranks",
                            100 * bubble / total, 100 * exposed / total, 1e3 * bubble / count, 1e3 * exposed / count, all.size());
}

double measure_copy_rate(const Device& device) {
  DeviceBackend& backend = backend_of(device.kind);
  const Stream s = backend.create_stream(device);
  // Beyond any cache, short enough for a CPU, and little beside a model that fills a GPU.
  const size_t bytes = device.kind == DeviceKind::kCpu ? size_t{64} << 20 : size_t{128} << 20;
  const int copies = device.kind == DeviceKind::kCpu ? 4 : 16;
  double best = 0;
  {
    const Buffer from(device, bytes), to(device, bytes);
    backend.fill_zero(from.data(), bytes, s);
    for (int i = 0; i < 6; ++i) {
      backend.synchronize(s);
      const auto start = std::chrono::steady_clock::now();
      for (int k = 0; k < copies; ++k) backend.copy(to.data(), from.data(), bytes, s);
      backend.synchronize(s);
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (i > 0) best = std::max(best, copies * 2.0 * static_cast<double>(bytes) / seconds);
    }
  }
  backend.destroy_stream(s);
  return best;
}

}  // namespace r1::train
