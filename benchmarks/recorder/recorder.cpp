// Cost of a record in the flight recorder: bench_recorder
//
// Beside it what it is made of: two readings of the clock, which no recorder of durations can do without.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "runtime/core/flight_recorder.h"

namespace {

constexpr int kCalls = 1'000'000;

/// This thread's time on a core: what other programs take from the machine does not count.
double cpu_ns() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e9 + static_cast<double>(t.tv_nsec);
}

/// Median nanoseconds a call of nine runs, with the fastest and the slowest.
void report(const char* what, const std::function<void(int)>& f) {
  std::vector<double> ns;
  for (int run = 0; run < 9; ++run) {
    const double begin = cpu_ns();
    f(kCalls);
    ns.push_back((cpu_ns() - begin) / kCalls);
  }
  std::sort(ns.begin(), ns.end());
  std::printf("%-52s %8.1f ns   (%.1f to %.1f)\n", what, ns[4], ns[0], ns[8]);
}

}  // namespace

int main() {
  using namespace r1;
  void* memory = std::aligned_alloc(4096, kFlightBytes);
  std::memset(memory, 0, kFlightBytes);
  FlightRecorder r(memory);
  const uint32_t group = r.add_group("tp (pp 0 dp 0)");
  report("one reading of the clock", [](int n) {
    timespec t{};
    for (int i = 0; i < n; ++i) clock_gettime(CLOCK_MONOTONIC, &t);
  });
  report("an operation between ranks: begin and end", [&](int n) {
    for (int i = 0; i < n; ++i) {
      r.begin(Operation::kAllReduce, group, 4096);
      r.end();
    }
  });
  report("an action (closes the one before)", [&](int n) {
    for (int i = 0; i < n; ++i) r.action(Operation::kForward, 0, i & 7);
  });
  std::free(memory);
  return 0;
}
