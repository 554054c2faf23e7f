#include "runtime/core/rank_status.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

#include "runtime/core/host.h"

namespace r1 {
namespace {

// The layouts inside the blocks. Plain data, copied whole.
struct Identity {
  int32_t world_rank, world_size;
  uint32_t set;
  char coordinates[116];
};
static_assert(sizeof(Identity) == detail::kIdentityBytes);

struct Progress {
  int64_t step, checkpoint_step, updated_ns;
  uint64_t count;
  char phase[224];
};
static_assert(sizeof(Progress) == detail::kProgressBytes);

struct Report {
  uint32_t kind;
  int32_t exit_code;
  uint32_t length;
  char message[3060];
};
static_assert(sizeof(Report) == detail::kReportBytes);

template <class T, size_t N>
void store(detail::SeqBlock<N>& block, const T& value) noexcept {
  static_assert(sizeof(T) == N);
  std::array<uint64_t, N / 8> words;
  std::memcpy(words.data(), &value, N);
  const uint64_t before = block.sequence.load(std::memory_order_relaxed);
  block.sequence.store(before + 1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  for (size_t i = 0; i < words.size(); ++i)
    block.words[i].store(words[i], std::memory_order_relaxed);
  block.sequence.store(before + 2, std::memory_order_release);
}

/// False when it never was consistent (the writer died inside a write); `out` then holds what there
/// is.
template <class T, size_t N>
bool load(const detail::SeqBlock<N>& block, T* out) noexcept {
  static_assert(sizeof(T) == N);
  std::array<uint64_t, N / 8> words;
  bool consistent = false;
  // A writer may lose its core in the middle of a write: give it time to come back, but not for
  // ever, it may be dead.
  for (int attempt = 0; attempt < 2000 && !consistent; ++attempt) {
    if (attempt > 1000) usleep(100);
    const uint64_t before = block.sequence.load(std::memory_order_acquire);
    for (size_t i = 0; i < words.size(); ++i)
      words[i] = block.words[i].load(std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_acquire);
    consistent = (before & 1) == 0 && before == block.sequence.load(std::memory_order_relaxed);
  }
  std::memcpy(out, words.data(), N);
  return consistent;
}

template <size_t N>
void copy_text(char (&to)[N], std::string_view text) noexcept {
  const size_t n = std::min(text.size(), N - 1);
  std::memcpy(to, text.data(), n);
  std::memset(to + n, 0, N - n);
}

/// Text up to the first NUL or, when the block was torn, the first unprintable byte.
std::string text_of(const char* bytes, size_t limit, bool consistent) {
  size_t n = 0;
  while (n < limit && bytes[n] != '\0' &&
         (consistent || static_cast<unsigned char>(bytes[n]) >= 0x20))
    ++n;
  return std::string(bytes, n);
}

detail::StatusPage* map_page(int fd) {
  void* p = mmap(nullptr, detail::kStatusFileBytes, PROT_READ | PROT_WRITE,
                 fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
  if (p == MAP_FAILED)
    throw InternalError("cannot map the rank's status page (descriptor {}): {}", fd,
                        std::strerror(errno));
  return static_cast<detail::StatusPage*>(p);
}

class SpinGuard {
 public:
  explicit SpinGuard(std::atomic_flag& flag) noexcept : flag_(flag) {
    while (flag_.test_and_set(std::memory_order_acquire)) {
    }
  }
  ~SpinGuard() { flag_.clear(std::memory_order_release); }
  SpinGuard(const SpinGuard&) = delete;
  SpinGuard& operator=(const SpinGuard&) = delete;

 private:
  std::atomic_flag& flag_;
};

}  // namespace

namespace {

void* flight_of(detail::StatusPage* page) noexcept {
  return reinterpret_cast<char*>(page) + detail::kStatusPageBytes;
}

}  // namespace

RankStatusWriter::RankStatusWriter()
    : page_(map_page(-1)), flight_(std::make_unique<FlightRecorder>(flight_of(page_))) {}

const void* RankStatusWriter::flight_memory() const noexcept { return flight_of(page_); }

RankStatusWriter::ProgressNow RankStatusWriter::progress() const {
  Progress p{};
  const bool consistent = load(page_->progress, &p);
  return {p.count, p.step, text_of(p.phase, sizeof p.phase, consistent)};
}

void RankStatusWriter::tick() noexcept {
  const SpinGuard guard(busy_);
  write_progress();
}

RankStatusWriter::RankStatusWriter(int fd) : has_parent_(true) {
  struct stat st {};
  if (fstat(fd, &st) != 0)
    throw InternalError("{}={}: not an open descriptor: {}", kRankStatusFdVariable, fd,
                        std::strerror(errno));
  if (st.st_size != static_cast<off_t>(detail::kStatusFileBytes))
    throw InternalError(
        "{}={}: not a status page ({} bytes, {} expected): r1run and r1run-rank of different "
        "builds?",
        kRankStatusFdVariable, fd, static_cast<int64_t>(st.st_size), detail::kStatusFileBytes);
  page_ = map_page(fd);
  if (page_->magic != detail::kStatusMagic || page_->version != detail::kStatusVersion) {
    munmap(page_, detail::kStatusFileBytes);
    throw InternalError(
        "{}={}: status page of another version: r1run and r1run-rank of different builds?",
        kRankStatusFdVariable, fd);
  }
  flight_ = std::make_unique<FlightRecorder>(flight_of(page_));
}

RankStatusWriter::~RankStatusWriter() { munmap(page_, detail::kStatusFileBytes); }

std::unique_ptr<RankStatusWriter> RankStatusWriter::from_environment() {
  const char* text = std::getenv(kRankStatusFdVariable);
  if (text == nullptr) return std::unique_ptr<RankStatusWriter>(new RankStatusWriter());
  char* end = nullptr;
  errno = 0;
  const long fd = std::strtol(text, &end, 10);
  if (errno != 0 || end == text || *end != '\0' || fd < 0 || fd > 1'000'000)
    throw InternalError("{}=\"{}\": not a descriptor number", kRankStatusFdVariable, text);
  auto writer = std::make_unique<RankStatusWriter>(static_cast<int>(fd));
  unsetenv(kRankStatusFdVariable);
  close(static_cast<int>(fd));  // the mapping stays
  return writer;
}

void RankStatusWriter::set_identity(int world_rank, int world_size,
                                    std::string_view coordinates) noexcept {
  const SpinGuard guard(busy_);
  Identity id{};
  id.world_rank = world_rank;
  id.world_size = world_size;
  id.set = 1;
  copy_text(id.coordinates, coordinates);
  store(page_->identity, id);
}

void RankStatusWriter::write_progress() noexcept {
  Progress p{};
  p.step = step_;
  p.checkpoint_step = checkpoint_step_;
  p.updated_ns = monotonic_ns();
  p.count = ++progress_count_;
  copy_text(p.phase, std::string_view(phase_.data()));
  store(page_->progress, p);
}

void RankStatusWriter::set_step(int64_t step) noexcept {
  const SpinGuard guard(busy_);
  step_ = step;
  write_progress();
}

void RankStatusWriter::set_phase(std::string_view phase) noexcept {
  const SpinGuard guard(busy_);
  const size_t n = std::min(phase.size(), phase_.size() - 1);
  std::memcpy(phase_.data(), phase.data(), n);
  phase_[n] = '\0';
  write_progress();
}

void RankStatusWriter::set_checkpoint(int64_t step) noexcept {
  const SpinGuard guard(busy_);
  checkpoint_step_ = step;
  write_progress();
}

void RankStatusWriter::report(ReportKind kind, ExitCode code, std::string_view message) noexcept {
  const SpinGuard guard(busy_);
  if (reported_ == ReportKind::kPrimary) return;
  if (reported_ == ReportKind::kSecondary && kind != ReportKind::kPrimary) return;
  reported_ = kind;
  Report r{};
  r.kind = static_cast<uint32_t>(kind);
  r.exit_code = static_cast<int32_t>(code);
  r.length = static_cast<uint32_t>(std::min(message.size(), sizeof(r.message)));
  std::memcpy(r.message, message.data(), r.length);
  store(page_->report, r);
}

RankStatusReader::RankStatusReader() {
  fd_ = Fd(memfd_create("r1run-rank-status", MFD_CLOEXEC));
  if (!fd_) throw InternalError("cannot create the rank's status page: {}", std::strerror(errno));
  if (ftruncate(fd_.get(), static_cast<off_t>(detail::kStatusFileBytes)) != 0)
    throw InternalError("cannot size the rank's status page: {}", std::strerror(errno));
  page_ = new (map_page(fd_.get())) detail::StatusPage{};
  page_->magic = detail::kStatusMagic;
  page_->version = detail::kStatusVersion;
  store(page_->progress,
        Progress{.step = -1, .checkpoint_step = -1, .updated_ns = 0, .count = 0, .phase = {}});
}

RankStatusReader::~RankStatusReader() { munmap(page_, detail::kStatusFileBytes); }

FlightData RankStatusReader::flight(size_t recent) const {
  return read_flight(flight_of(page_), recent);
}

RankStatus RankStatusReader::read() const {
  RankStatus s;
  Identity id{};
  const bool id_whole = load(page_->identity, &id);
  if (id.set != 0) {
    s.world_rank = id.world_rank;
    s.world_size = id.world_size;
    s.coordinates = text_of(id.coordinates, sizeof(id.coordinates), id_whole);
  }
  Progress p{};
  const bool p_whole = load(page_->progress, &p);
  s.step = p.step;
  s.checkpoint_step = p.checkpoint_step;
  s.updated_ns = p.updated_ns;
  s.progress_count = p.count;
  s.phase = text_of(p.phase, sizeof(p.phase), p_whole);
  Report r{};
  if (load(page_->report, &r) && r.kind <= static_cast<uint32_t>(ReportKind::kFinished)) {
    s.report = static_cast<ReportKind>(r.kind);
    s.exit_code = r.exit_code;
    s.message = std::string(r.message, std::min<size_t>(r.length, sizeof(r.message)));
  }
  return s;
}

}  // namespace r1
