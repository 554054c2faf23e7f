// A fault record: why a rank ended, in the form that is printed, counted and handed from the
// parents of the ranks to the launcher.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/core/rank_status.h"

namespace r1::launch {

struct FaultRecord {
  ReportKind kind = ReportKind::kPrimary;  ///< primary, secondary or stopped
  int code = 70;                           ///< exit code of the rank's parent
  int rank = -1;                           ///< world rank; -1 unknown
  std::string host;
  int pid = 0;              ///< of the rank program
  std::string why;          ///< "signal 9 (killed)", or the rank's own message
  std::string coordinates;  ///< "pp 0 dp 0 tp 3"; may be empty
  int64_t step = -1;
  std::string phase;
  std::string operation;  ///< between ranks, that it was in: "all-reduce #12 of tp (pp 0 dp 0), 4.0 KiB"
  int64_t checkpoint_step = -1;
  std::string flight;     ///< file with what the rank did last; empty: none
  double detected_s = 0;  ///< from the fault to its detection, where known
  double time_s = 0;      ///< wall clock of the record; orders records of one host only
};

/// What a process status (as of waitpid) means: the documented exit code and the words for it.
struct Ending {
  int code = 0;
  bool by_signal = false;
  std::string why;  ///< empty for a normal exit
};
/// `oom_killed`: the memory cgroup counted an out-of-memory kill meanwhile.
[[nodiscard]] Ending ending_of(int wait_status, bool oom_killed);

/// The one line for people: `r1run: FATAL rank=3 host=h pid=812 why="…" …`, without newline. Errors
/// of usage and input that ended the job before its first step read `r1run: error: …` instead and
/// keep their lines.
[[nodiscard]] std::string describe(const FaultRecord& record);

/// One line of JSON, and back; nullopt when the text is not such a record.
[[nodiscard]] std::string to_json_line(const FaultRecord& record);
[[nodiscard]] std::optional<FaultRecord> from_json_line(std::string_view line);

}  // namespace r1::launch
