#include "runtime/checkpoint/output_lock.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "runtime/core/error.h"
#include "runtime/core/host.h"
#include "runtime/core/log.h"

namespace r1::checkpoint {
namespace {

constexpr size_t kMaxRecord = 4096;

std::string now_text() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

/// When the process began, in clock ticks since boot: tells it from a later one with the same number. Empty: no such process.
std::string process_start(int64_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return {};
  std::istringstream fields(text.substr(name_end + 1));
  std::string field;
  for (int i = 0; i < 20 && fields >> field; ++i) {
  }
  return field;
}

struct Record {
  std::string host, run_id, since, start;
  int64_t pid = 0;
  bool released = false;
};

/// Nothing when the text is no record (empty, cut short by a full disk, foreign).
std::optional<Record> parse(const std::string& text) {
  const auto j = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!j.is_object()) return std::nullopt;
  const auto string = [&](const char* key) {
    const auto it = j.find(key);
    return it != j.end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  Record r{.host = string("host"), .run_id = string("run_id"), .since = string("since"), .start = string("start"), .pid = 0,
           .released = false};
  if (const auto it = j.find("pid"); it != j.end() && it->is_number_integer()) r.pid = it->get<int64_t>();
  if (const auto it = j.find("released"); it != j.end() && it->is_boolean()) r.released = it->get<bool>();
  if (r.host.empty() || r.pid <= 0) return std::nullopt;
  return r;
}

[[noreturn]] void refuse(const std::filesystem::path& path, const std::optional<Record>& r) {
  const std::string root = path.parent_path().string();
  if (!r || r->released)
    throw StorageError("--output {}: another job writes into it; wait for its end, or choose another --output", root);
  throw StorageError("--output {}: another job writes into it: host {}, pid {}, since {}; wait for its end, or choose another "
                     "--output", root, r->host, r->pid, r->since);
}

}  // namespace

OutputLock::OutputLock(const std::filesystem::path& root, const std::string& run_id, LockTimes times)
    : path_(root / ".r1run-lock"), run_id_(run_id), host_(host_name()), since_(now_text()), times_(times) {
  fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd_ < 0) throw StorageError("--output {}: cannot be written: {}: {}", root.string(), path_.string(), std::strerror(errno));
  try {
    bool kernel_lock = true;
    while (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EINTR) continue;
      if (errno == EWOULDBLOCK) refuse(path_, parse(read()));
      kernel_lock = false;  // this file system has none
      break;
    }
    const std::string before = read();
    const std::optional<Record> holder = parse(before);
    if (holder && !holder->released) {
      if (holder->host == host_) {
        // On this host the kernel's lock says it; without one, the process itself.
        if (!kernel_lock && !holder->start.empty() && process_start(holder->pid) == holder->start) refuse(path_, holder);
      } else {
        const auto until = std::chrono::steady_clock::now() + times_.watch;
        while (std::chrono::steady_clock::now() < until) {
          std::this_thread::sleep_for(std::chrono::milliseconds(50));
          if (read() != before) refuse(path_, parse(read()));
        }
      }
      dead_run_id_ = holder->run_id;
    }
    write(/*released=*/false);
    if (parse(read()).value_or(Record{}).run_id != run_id_)
      throw StorageError("--output {}: cannot be written: {}: {}", root.string(), path_.string(), std::strerror(errno));
    beat_ = std::thread([this] {
      sigset_t all;
      sigfillset(&all);
      pthread_sigmask(SIG_BLOCK, &all, nullptr);  // signals are for the thread that trains
      std::unique_lock lock(mutex_);
      while (!stop_changed_.wait_for(lock, times_.beat, [this] { return stop_; })) write(/*released=*/false);
    });
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

OutputLock::~OutputLock() {
  {
    const std::scoped_lock lock(mutex_);
    stop_ = true;
  }
  stop_changed_.notify_all();
  if (beat_.joinable()) beat_.join();
  write(/*released=*/true);
  ::close(fd_);
}

std::string OutputLock::read() const {
  std::string text(kMaxRecord, '\0');
  const ssize_t n = ::pread(fd_, text.data(), text.size(), 0);
  text.resize(n > 0 ? static_cast<size_t>(n) : 0);
  return text;
}

void OutputLock::write(bool released) noexcept {
  try {
    std::string text = nlohmann::ordered_json{{"host", host_},   {"pid", static_cast<int64_t>(::getpid())},
                                              {"since", since_}, {"run_id", run_id_},
                                              {"start", process_start(::getpid())}, {"beat", ++beats_},
                                              {"released", released}}.dump() + "\n";
    // Of one length, in one write, never truncated: a reader sees one record or the other, on a full disk too.
    text.resize(std::max<size_t>(text.size(), 512), ' ');
    if (::pwrite(fd_, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) return;
    if (::ftruncate(fd_, static_cast<off_t>(text.size())) != 0) return;  // what a foreign record left behind it
  } catch (const std::exception&) {
    return;  // the next beat tries again
  }
}

}  // namespace r1::checkpoint
