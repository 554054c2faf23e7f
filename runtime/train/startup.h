// How long a job takes to its first optimizer step, by phases, counted from the start of the process.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace r1::train {

/// Seconds since this process was started, to 10 ms; from /proc/self/stat.
[[nodiscard]] double seconds_since_exec();

class Startup {
 public:
  Startup();
  /// The phase that begins now; the one before ends.
  void begin(std::string phase);
  /// The last phase ends.
  void end();
  /// Phases in their order with seconds; the first is what came before the job in this process: MPI, options.
  [[nodiscard]] const std::vector<std::pair<std::string, double>>& phases() const { return phases_; }
  /// "12.3 s after the start of the process: loading weights 4.1 s, ...", phases of 0.1 s and more, the longest first.
  [[nodiscard]] std::string str() const;

 private:
  std::vector<std::pair<std::string, double>> phases_;
  double since_ = 0;
};

}  // namespace r1::train
