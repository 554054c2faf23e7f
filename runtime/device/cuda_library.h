// The CUDA backend's shared library, loaded on first use so that a CPU job maps no CUDA code
// (155-190 MB and 1-3.5 s).
#pragma once

namespace r1 {
namespace cuda {
class Api;
}

/// Address of an extern "C" symbol of libr1run_cuda.so. Looks beside the executable, then in
/// ../lib/r1run (installed). Throws DeviceError with the paths tried and the loader's message when
/// the library or the symbol is missing.
[[nodiscard]] void* cuda_library_symbol(const char* name);

namespace cuda {
/// What the library offers (runtime/device/cuda/cuda_api.h); lives as long as the process. Throws DeviceError as above.
[[nodiscard]] Api& api();
}  // namespace cuda

}  // namespace r1
