// r1run's own programs, the libraries they find on this host, and the model directory.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <sstream>

#include "launch/doctor/host.h"
#include "runtime/core/human.h"

namespace r1::launch::doctor {
namespace {

namespace fs = std::filesystem;

constexpr double kSlowRead_bytes_per_s = 200e6;
constexpr size_t kReadLimit = 256u << 20;
constexpr double kReadLimit_s = 3;

/// FNV-1a, 64 bits: tells builds apart, protects against nothing.
std::optional<uint64_t> digest_of(const std::string& path) {
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return std::nullopt;
  uint64_t hash = 0xcbf29ce484222325u;
  std::vector<unsigned char> buffer(1u << 20);
  while (true) {
    const ssize_t n = read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return std::nullopt;
    if (n == 0) return hash;
    for (ssize_t i = 0; i < n; ++i) hash = (hash ^ buffer[static_cast<size_t>(i)]) * 0x100000001b3u;
  }
}

/// The part of a library's real name after ".so.": libnccl.so.2 → libnccl.so.2.28.9 → "2.28.9".
std::string version_in_name(const std::string& path) {
  std::error_code failed;
  const std::string real = fs::canonical(path, failed).filename().string();
  const size_t at = real.find(".so.");
  return failed || at == std::string::npos ? "" : real.substr(at + 4);
}

/// The libraries of a program, as the loader of this host finds them: name → path, "" when missing.
std::map<std::string, std::string> libraries_of(const DoctorOptions& o,
                                                const std::string& program) {
  std::map<std::string, std::string> out;
  const auto ldd = find_in_path("ldd", o.path);
  if (!ldd) return out;
  std::istringstream lines(capture({*ldd, program}, 30).output);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string name, arrow, path;
    if (!(words >> name >> arrow >> path) || arrow != "=>") continue;
    out[name] = path == "not" ? "" : path;
  }
  return out;
}

void one_program(const DoctorOptions& o, const std::string& name, bool needed, HostReport* r,
                 std::map<std::string, std::string>* libraries) {
  const std::string path = o.bin_dir + "/" + name;
  const auto digest = digest_of(path);
  if (!digest) {
    if (needed)
      add(r, name, Verdict::kFailure, fmt::format("{}: {}", path, std::strerror(errno)),
          "the installation is incomplete: install the same build on every host, or in a shared "
          "directory");
    return;
  }
  r->facts[name] = fmt::format("{:016x}", *digest);
  std::string missing;
  for (const auto& [library, where] : libraries_of(o, path)) {
    if (where.empty()) missing += (missing.empty() ? "" : ", ") + library;
    libraries->emplace(library, where);
  }
  if (missing.empty())
    add(r, name, Verdict::kOk, path);
  else
    add(r, name, Verdict::kFailure, fmt::format("{}: missing {}", path, missing),
        "install these libraries, or add their directory to LD_LIBRARY_PATH (r1run passes it on)");
}

/// The first of the places where the loader or an installation of CUDA has it.
std::string find_library(const DoctorOptions& o, const std::string& name) {
  std::vector<std::string> places;
  if (const char* path = std::getenv("LD_LIBRARY_PATH")) {
    std::istringstream in(path);
    for (std::string dir; std::getline(in, dir, ':');)
      if (!dir.empty()) places.push_back(dir);
  }
  for (const char* dir : {"/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/lib",
                          "/usr/local/cuda/lib64", "/usr/lib"})
    places.push_back(o.root + dir);
  for (const auto& dir : places)
    if (access((dir + "/" + name).c_str(), R_OK) == 0) return dir + "/" + name;
  return "";
}

void versions(const DoctorOptions& o, HostReport* r) {
  // CPU ranks never load them: whatever lies here says nothing about this host.
  if (gpus_on_pci(o).empty() && !find_in_path("nvidia-smi", o.path)) {
    for (const char* name : {"NCCL", "cuDNN"}) add(r, name, Verdict::kOk, "not needed: no GPU");
    return;
  }
  const std::string nccl = find_library(o, "libnccl.so.2");
  if (!nccl.empty()) {
    r->checks.push_back(check_library_version(version_table(), "NCCL", version_in_name(nccl)));
    r->facts["NCCL"] = version_in_name(nccl);
  } else {
    add(r, "NCCL", Verdict::kWarning, "libnccl.so.2 is not found",
        "install libnccl2: without it several GPUs exchange data through host memory");
  }
  std::string cudnn = find_library(o, "libcudnn.so.9");
  if (cudnn.empty()) cudnn = find_library(o, "libcudnn.so.8");
  if (!cudnn.empty()) {
    const std::string version = version_in_name(cudnn);
#ifdef R1RUN_CUDA_TOOLKIT
    r->checks.push_back(check_cudnn(version_table(), version, R1RUN_CUDA_TOOLKIT));
#else
    r->checks.push_back(check_cudnn(version_table(), version, ""));
#endif
    r->facts["cuDNN"] = version;
  }
}

/// Bytes per second of the largest file below the directory, read past the page cache where the
/// file system allows it.
std::optional<double> read_rate(const std::string& file) {
  Fd fd(open(file.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
  if (!fd) {
    fd = Fd(open(file.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return std::nullopt;
    posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
  }
  constexpr size_t kChunk = 4u << 20;
  const std::unique_ptr<void, decltype(&std::free)> buffer(std::aligned_alloc(4096, kChunk),
                                                           &std::free);
  size_t total = 0;
  const double start = monotonic_s();
  while (total < kReadLimit && monotonic_s() - start < kReadLimit_s) {
    const ssize_t n = read(fd.get(), buffer.get(), kChunk);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    total += static_cast<size_t>(n);
  }
  const double seconds = monotonic_s() - start;
  return total > 0 && seconds > 0 ? std::optional(static_cast<double>(total) / seconds)
                                  : std::nullopt;
}

}  // namespace

void examine_programs(const DoctorOptions& o, HostReport* r) {
  std::map<std::string, std::string> libraries;
  one_program(o, "r1run", true, r, &libraries);
  one_program(o, "r1run-rank", true, r, &libraries);
  one_program(o, "libr1run_cuda.so", false, r, &libraries);
  for (const auto& [name, path] : libraries)
    if (const auto digest = path.empty() ? std::nullopt : digest_of(path))
      r->facts[name] = fmt::format("{:016x}", *digest);
  versions(o, r);
}

void examine_model(const DoctorOptions& o, HostReport* r) {
  if (o.model.empty()) return;
  std::error_code failed;
  std::vector<std::pair<std::string, uint64_t>> files;
  std::string unreadable, largest;
  uint64_t most = 0, total = 0;
  for (fs::directory_iterator it(o.model, failed), end; !failed && it != end;
       it.increment(failed)) {
    std::error_code ignored;
    if (!it->is_regular_file(ignored)) continue;
    const uint64_t size = it->file_size(ignored);
    files.emplace_back(it->path().filename().string(), size);
    total += size;
    if (access(it->path().c_str(), R_OK) != 0) unreadable = it->path().filename().string();
    if (size >= most) {
      most = size;
      largest = it->path().string();
    }
  }
  const bool config = fs::exists(o.model + "/config.json", failed);
  if (files.empty() || !config || !unreadable.empty()) {
    add(r, "model", Verdict::kFailure,
        files.empty()
            ? fmt::format("{}: {}", o.model, failed ? failed.message() : "is empty or not there")
        : !config ? fmt::format("{}: no config.json", o.model)
                  : fmt::format("{}: {} may not be read", o.model, unreadable),
        "every host reads its own part: put the model on a shared file system, or on the same path "
        "of every host");
    return;
  }
  std::sort(files.begin(), files.end());
  std::string all;
  for (const auto& [name, size] : files) all += fmt::format("{}:{};", name, size);
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : all) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  r->facts["model"] = fmt::format("{:016x}", hash);
  add(r, "model", Verdict::kOk,
      fmt::format("{} files, {}", files.size(), human_bytes(static_cast<double>(total))));
  const auto rate = read_rate(largest);
  constexpr uint64_t kEnoughToTell = 8u << 20;
  if (!rate || most < kEnoughToTell)
    add(r, "disk", Verdict::kUnknown, "the model's files are too small to time a read");
  else if (*rate < kSlowRead_bytes_per_s)
    add(r, "disk", Verdict::kWarning, fmt::format("read {}", human_si(*rate, "B/s")),
        "loading the weights will take long: copy the model to a faster disk of each host");
  else
    add(r, "disk", Verdict::kOk, fmt::format("read {}", human_si(*rate, "B/s")));
}

}  // namespace r1::launch::doctor
