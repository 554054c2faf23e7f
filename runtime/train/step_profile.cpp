#include "runtime/train/step_profile.h"

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
  say(ctx_, table + report_waiting(ops, times));
}

std::string StepProfile::report_waiting(std::span<const kernels::OpProfile> ops, std::span<const comm::CommTime> times) {
  const WaitingTime mine = waiting_time(times);
  const auto n = static_cast<double>(steps_);
  const std::vector<int64_t> seconds = gather(ctx_.world, nanoseconds(seconds_)), bubble = gather(ctx_.world, nanoseconds(mine.bubble)),
                             exposed = gather(ctx_.world, nanoseconds(mine.exposed));
  double all = 0, all_bubble = 0, all_exposed = 0;
  nlohmann::ordered_json ranks = nlohmann::ordered_json::array(), operations = nlohmann::ordered_json::array();
  for (size_t r = 0; r < seconds.size(); ++r) {
    const auto a_step = [&](const std::vector<int64_t>& ns) { return 1e-9 * static_cast<double>(ns[r]) / n; };
    all += a_step(seconds), all_bubble += a_step(bubble), all_exposed += a_step(exposed);
    ranks.push_back({{"seconds", a_step(seconds)}, {"bubble_seconds", a_step(bubble)}, {"exposed_seconds", a_step(exposed)}});
  }
  for (const kernels::OpProfile& p : ops)
    operations.push_back({{"name", p.name}, {"calls", static_cast<double>(p.calls) / n}, {"seconds", p.seconds / n},
                          {"flops", p.flops / n}, {"bytes", p.bytes / n}});
  for (const comm::CommTime& t : times)
    operations.push_back({{"name", name_of(t)}, {"calls", static_cast<double>(t.calls) / n}, {"seconds", t.seconds / n},
                          {"bytes", t.bytes / n}});
  const auto count = static_cast<double>(seconds.size());
  metrics_({{"type", "profile"}, {"steps", steps_}, {"seconds", all / count}, {"bubble", all_bubble / all},
            {"exposed_communication", all_exposed / all}, {"ranks", std::move(ranks)}, {"operations_of_rank_0", std::move(operations)}});
  if (seconds.size() == 1) return {};
  return fmt::format("\nbubble {:.1f} % of the step, exposed communication {:.1f} % ({:.3f} and {:.3f} ms), mean of {} ranks", 100 * all_bubble / all,
                     100 * all_exposed / all, 1e3 * all_bubble / count, 1e3 * all_exposed / count, seconds.size());
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
