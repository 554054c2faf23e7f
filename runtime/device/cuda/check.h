// Wraps every foreign call of the CUDA library: evaluated once, thrown as the errors of
// runtime/core/error.h with the call's text, the library's message, file:line and what to do.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <string>

namespace r1::cuda {

/// MemoryError for an allocation that does not fit, DeviceError for everything else.
[[noreturn]] void throw_cuda_error(cudaError_t e, const char* call, const char* file, int line);
/// MemoryError with `text`, what is free on the current device and what needs less.
[[noreturn]] void throw_no_memory(const std::string& text);
[[noreturn]] void throw_cublas_error(cublasStatus_t e, const char* call, const char* file,
                                     int line);

}  // namespace r1::cuda

#define CUDA_CHECK(call)                                                        \
  do {                                                                          \
    const cudaError_t r1_cuda_status_ = (call);                                 \
    if (r1_cuda_status_ != cudaSuccess) [[unlikely]]                            \
      ::r1::cuda::throw_cuda_error(r1_cuda_status_, #call, __FILE__, __LINE__); \
  } while (false)

/// After a kernel launch: reports a refused launch at once, an earlier asynchronous fault when it
/// is seen here.
#define CUDA_LAUNCH_CHECK() CUDA_CHECK(cudaGetLastError())

#define CUBLAS_CHECK(call)                                                          \
  do {                                                                              \
    const cublasStatus_t r1_cublas_status_ = (call);                                \
    if (r1_cublas_status_ != CUBLAS_STATUS_SUCCESS) [[unlikely]]                    \
      ::r1::cuda::throw_cublas_error(r1_cublas_status_, #call, __FILE__, __LINE__); \
  } while (false)
