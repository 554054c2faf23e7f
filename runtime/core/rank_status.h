// The shared page between a rank and its parent (the front door r1run, which outlives it): what the
// rank is doing, and its last words. The parent reads it when the rank is gone, so it survives
// SIGKILL, a crash and the out-of-memory killer.
//
// The parent creates the page (memfd) and passes its descriptor's number in R1RUN_STATUS_FD. A rank
// without a parent writes into private memory, so the rank's code never branches.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/core/error.h"
#include "runtime/core/fd.h"
#include "runtime/core/flight_recorder.h"

namespace r1 {

/// Name of the environment variable that carries the page's file descriptor.
inline constexpr const char* kRankStatusFdVariable = "R1RUN_STATUS_FD";
/// Set by the parent where SIGTERM may be a notice (Slurm sends it to every process of a step before preemption and the time
/// limit): the rank then saves as at SIGUSR1, and ends at once at SIGINT.
inline constexpr const char* kTermSavesVariable = "R1RUN_TERM_SAVES";

/// What a rank's last words are.
enum class ReportKind : uint32_t {
  kNone = 0,       ///< nothing reported: a rank that ends like this died or left early
  kPrimary = 1,    ///< this rank met the cause itself
  kSecondary = 2,  ///< a peer vanished or failed: printed only if nobody reports a cause
  kStopped = 3,    ///< ended on request (signal); not a fault
  kFinished = 4,   ///< ended as it should, with the exit code given
};

/// One consistent reading of the page.
struct RankStatus {
  int32_t world_rank = -1, world_size = -1;  ///< -1: MPI was not up yet
  std::string coordinates;                   ///< "pp 1 dp 0 tp 3"; empty before the mesh is known
  int64_t step = -1;                         ///< step being computed; -1 before the first
  int64_t checkpoint_step = -1;              ///< step of the last complete checkpoint; -1 none
  int64_t updated_ns = 0;                    ///< CLOCK_MONOTONIC of the last progress write
  uint64_t progress_count = 0;               ///< number of progress writes
  std::string phase;                         ///< "forward stage 1 micro-batch 3", "checkpoint", …
  ReportKind report = ReportKind::kNone;
  int32_t exit_code = 0;      ///< of the report
  std::string message;        ///< of the report
};

namespace detail {

inline constexpr size_t kStatusPageBytes = 8192;
inline constexpr uint32_t kStatusMagic = 0x52315354;  // "R1ST"
inline constexpr uint32_t kStatusVersion = 3;
/// The page, and the flight recorder behind it.
inline constexpr size_t kStatusFileBytes = kStatusPageBytes + kFlightBytes;

/// A block of N bytes under a sequence lock: odd while it is being written. Words are relaxed
/// atomics, so that a torn read is a wrong value that the sequence number reveals, never undefined
/// behaviour.
template <size_t N>
struct SeqBlock {
  static_assert(N % 8 == 0);
  std::atomic<uint64_t> sequence;
  std::array<std::atomic<uint64_t>, N / 8> words;
};

inline constexpr size_t kProgressBytes = 256, kIdentityBytes = 128, kReportBytes = 3072;

struct StatusPage {
  uint32_t magic;
  uint32_t version;
  SeqBlock<kIdentityBytes> identity;
  SeqBlock<kProgressBytes> progress;
  SeqBlock<kReportBytes> report;
};
static_assert(sizeof(StatusPage) <= kStatusPageBytes);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

}  // namespace detail

/// The rank's end of the page. Every method may be called from any thread of the process, never
/// throws, makes no system call but one clock reading, and costs well under a microsecond. Not for
/// use in signal handlers.
class RankStatusWriter {
 public:
  /// Maps the page named by R1RUN_STATUS_FD and removes the variable, so that children do not
  /// inherit it. Without the variable (no parent): private memory. Throws InternalError when the
  /// descriptor is not such a page.
  [[nodiscard]] static std::unique_ptr<RankStatusWriter> from_environment();
  /// Maps the page behind a descriptor (which it does not take over). Throws InternalError.
  explicit RankStatusWriter(int fd);
  ~RankStatusWriter();
  RankStatusWriter(const RankStatusWriter&) = delete;
  RankStatusWriter& operator=(const RankStatusWriter&) = delete;

  /// True when a parent reads the page: then errors are reported here and the parent prints them.
  [[nodiscard]] bool has_parent() const noexcept { return has_parent_; }

  /// Who this rank is; call it as soon as MPI is up, and again when the mesh is known. From here
  /// on, leaving without report() counts as a fault ("exited 0 without finishing").
  void set_identity(int world_rank, int world_size, std::string_view coordinates) noexcept;
  void set_step(int64_t step) noexcept;
  /// What is being done now, at most 199 bytes; longer text is cut.
  void set_phase(std::string_view phase) noexcept;
  void set_checkpoint(int64_t step) noexcept;
  /// Counts progress where there is no new phase: long reading or writing.
  void tick() noexcept;

  /// The rank's flight recorder; for the training thread alone.
  [[nodiscard]] FlightRecorder& flight() noexcept { return *flight_; }
  /// What read_flight() takes.
  [[nodiscard]] const void* flight_memory() const noexcept;
  struct ProgressNow {
    uint64_t count = 0;
    int64_t step = -1;
    std::string phase;
  };
  /// What was written last, read without a lock.
  [[nodiscard]] ProgressNow progress() const;

  /// The rank's last words, message at most 3,000 bytes. A primary report is never replaced; a
  /// secondary one only by a primary. Call it last, just before leaving with `code`.
  void report(ReportKind kind, ExitCode code, std::string_view message) noexcept;

 private:
  RankStatusWriter();  // private memory
  void write_progress() noexcept;

  detail::StatusPage* page_ = nullptr;
  std::unique_ptr<FlightRecorder> flight_;
  bool has_parent_ = false;
  mutable std::atomic_flag busy_ = ATOMIC_FLAG_INIT;  // writers of one process take turns
  int64_t step_ = -1, checkpoint_step_ = -1;
  uint64_t progress_count_ = 0;
  std::array<char, 200> phase_{};
  ReportKind reported_ = ReportKind::kNone;
};

/// The parent's end: owns the descriptor and the mapping.
class RankStatusReader {
 public:
  /// Creates an empty page. Throws InternalError when the system refuses.
  RankStatusReader();
  ~RankStatusReader();
  RankStatusReader(const RankStatusReader&) = delete;
  RankStatusReader& operator=(const RankStatusReader&) = delete;

  /// Descriptor to hand to the child (close-on-exec is set; clear it in the child).
  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  /// Reads the page. A block whose writer died in the middle of a write is taken as it stands, with
  /// its text cut at the first byte that is not printable.
  [[nodiscard]] RankStatus read() const;
  /// The rank's flight recorder, as it is or was left.
  [[nodiscard]] FlightData flight(size_t recent = detail::kFlightRecords) const;

 private:
  Fd fd_;
  detail::StatusPage* page_ = nullptr;
};

}  // namespace r1
