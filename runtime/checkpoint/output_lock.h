// One job at a time writes into an output directory.
//
// <root>/.r1run-lock holds who writes: host, process, run id, since when, and a beat that the holder changes every few
// seconds. The kernel's lock on it (flock) ends with the process, however it dies; where a file system keeps locks to one host
// or has none (NFS with local_lock, Lustre without flock), the beat of a holder on another host tells whether it lives.
#pragma once

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>

namespace r1::checkpoint {

struct LockTimes {
  std::chrono::milliseconds beat{2000};   ///< between two changes of the record
  std::chrono::milliseconds watch{7000};  ///< how long a record of another host is watched for a change
};

class OutputLock {
 public:
  /// Takes the lock of `root`, which must exist. Throws StorageError naming the holder (host, pid, since) when another job
  /// holds it. `run_id` is this job's.
  OutputLock(const std::filesystem::path& root, const std::string& run_id, LockTimes times = {});
  /// Releases it.
  ~OutputLock();
  OutputLock(const OutputLock&) = delete;
  OutputLock& operator=(const OutputLock&) = delete;
  /// Run id of the job that held the lock before and did not release it (it was killed): what it left behind is garbage.
  /// Empty when it was released, or never held.
  [[nodiscard]] const std::string& dead_run_id() const { return dead_run_id_; }

 private:
  [[nodiscard]] std::string read() const;
  void write(bool released) noexcept;

  std::filesystem::path path_;
  std::string run_id_, host_, since_, dead_run_id_;
  int fd_ = -1;
  uint64_t beats_ = 0;
  LockTimes times_;
  std::mutex mutex_;
  std::condition_variable stop_changed_;
  bool stop_ = false;
  std::thread beat_;
};

}  // namespace r1::checkpoint
