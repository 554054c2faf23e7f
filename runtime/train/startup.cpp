#include "runtime/train/startup.h"

#include <fmt/format.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>

namespace r1::train {

double seconds_since_exec() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  // Field 22, in clock ticks since boot; the name in field 2 may hold spaces and brackets.
  std::istringstream rest(line.substr(std::min(line.size(), line.rfind(')') + 1)));
  std::string field;
  for (int i = 3; i <= 22 && rest >> field; ++i) {
  }
  if (!rest) return 0;
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9 -
         std::stod(field) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

Startup::Startup() : phases_{{"starting the ranks", 0}} {}

void Startup::begin(std::string phase) {
  end();
  phases_.emplace_back(std::move(phase), 0);
}

void Startup::end() {
  const double now = seconds_since_exec();
  phases_.back().second += now - since_;
  since_ = now;
}

std::string Startup::str() const {
  std::vector<std::pair<std::string, double>> sorted = phases_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  std::string text;
  for (const auto& [name, seconds] : sorted)
    if (seconds >= 0.1) text += fmt::format("{}{} {:.1f} s", text.empty() ? ": " : ", ", name, seconds);
  return fmt::format("{:.1f} s after the start of the process{}", since_, text);
}

}  // namespace r1::train
