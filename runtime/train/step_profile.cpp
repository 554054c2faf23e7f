#include "runtime/train/step_profile.h"

#include <chrono>

#include "runtime/kernels/profile.h"

namespace r1::train {

StepProfile::StepProfile(const RankContext& ctx, Engine& engine, int64_t steps, double gemm_rate)
    : ctx_(ctx), engine_(engine), steps_(steps), gemm_rate_(gemm_rate) {}

void StepProfile::before_step() {
  if (steps_ == 0 || seen_ != kWarmupSteps) return;
  // Single operations can be timed only where they are launched by themselves.
  engine_.model().graphs().suspend(true);
  kernels::profile_begin(engine_.device().kind);
}

void StepProfile::after_step(double seconds) {
  if (steps_ == 0) return;
  ++seen_;
  if (seen_ <= kWarmupSteps) return;
  seconds_ += seconds;
  if (seen_ < kWarmupSteps + steps_) return;
  report();
  engine_.model().graphs().suspend(false);
  steps_ = 0;
}

void StepProfile::report() {
  const std::vector<kernels::OpProfile> ops = kernels::profile_end();
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
  table += fmt::format("{:<26}{:>8}{:>11.3f}{:>8.1f}%  (transfers, host, gaps between operations)", "everything else", "",
                       1e3 * (seconds_ - sum) / n, 100 * (seconds_ - sum) / seconds_);
  say(ctx_, table);
}

double measure_copy_rate(const Device& device) {
  DeviceBackend& backend = backend_of(device.kind);
  const Stream s = backend.create_stream(device);
  // Beyond any cache, and short enough for a CPU.
  const size_t bytes = device.kind == DeviceKind::kCpu ? size_t{64} << 20 : size_t{512} << 20;
  double best = 0;
  {
    const Buffer from(device, bytes), to(device, bytes);
    backend.fill_zero(from.data(), bytes, s);
    for (int i = 0; i < 6; ++i) {
      backend.synchronize(s);
      const auto start = std::chrono::steady_clock::now();
      for (int k = 0; k < 4; ++k) backend.copy(to.data(), from.data(), bytes, s);
      backend.synchronize(s);
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (i > 0) best = std::max(best, 4.0 * 2.0 * static_cast<double>(bytes) / seconds);
    }
  }
  backend.destroy_stream(s);
  return best;
}

}  // namespace r1::train
