#include "runtime/device/cuda_library.h"

#include <dlfcn.h>

#include <filesystem>
#include <mutex>
#include <string>
#include <system_error>

#include "runtime/core/error.h"

namespace r1 {
namespace {

constexpr const char* kLibrary = "libr1run_cuda.so";

void* open_library() {
  namespace fs = std::filesystem;
  std::error_code ec;
  const fs::path exe = fs::read_symlink("/proc/self/exe", ec);
  if (ec)
    throw DeviceError("cannot find this program's own path (/proc/self/exe): {}", ec.message());
  const fs::path dir = exe.parent_path();
  std::string tried;
  for (const fs::path& candidate : {dir / kLibrary, dir / ".." / "lib" / "r1run" / kLibrary}) {
    if (!fs::exists(candidate, ec)) {
      tried += fmt::format("\n  {}: no such file", candidate.string());
      continue;
    }
    // RTLD_NOW: an unresolved CUDA symbol is reported here and not in the middle of a step.
    if (void* handle = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    const char* why = dlerror();
    tried += fmt::format("\n  {}: {}", candidate.string(), why != nullptr ? why : "unknown error");
  }
  throw DeviceError(
      "a GPU was asked for, but the CUDA backend cannot be loaded:{}\nBuild with -DR1RUN_CUDA=ON, "
      "or run with "
      "--device cpu.",
      tried);
}

}  // namespace

void* cuda_library_symbol(const char* name) {
  // Opened once and never closed: CUDA does not survive being unmapped. A failed attempt is not
  // kept.
  static std::mutex mutex;
  static void* handle = nullptr;
  const std::scoped_lock lock(mutex);
  if (handle == nullptr) handle = open_library();
  dlerror();
  void* symbol = dlsym(handle, name);
  if (symbol == nullptr) {
    const char* why = dlerror();
    throw DeviceError("{} lacks the symbol {}: {}; it was built from other sources, rebuild it",
                      kLibrary, name, why != nullptr ? why : "no message");
  }
  return symbol;
}

cuda::Api& cuda::api() { return *reinterpret_cast<Api* (*)()>(cuda_library_symbol("r1run_cuda_api"))(); }

}  // namespace r1
