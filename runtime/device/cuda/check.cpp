#include "runtime/device/cuda/check.h"

#include <string>

#include "runtime/core/error.h"

namespace r1::cuda {
namespace {

// What a person can do about it; empty where the message says it all.
const char* remedy(cudaError_t e) {
  switch (e) {
    case cudaErrorInsufficientDriver:
      return "the NVIDIA driver is older than this build's CUDA; install driver 580 or newer, or "
             "run with --device cpu";
    case cudaErrorNoDevice:
      return "no GPU is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES, or run with --device "
             "cpu";
    case cudaErrorSystemNotReady:
      return "the NVIDIA services of this host are not running (fabric manager, persistence "
             "daemon)";
    case cudaErrorDevicesUnavailable:
      return "another process holds the GPU exclusively: see its compute mode and processes in "
             "nvidia-smi";
    case cudaErrorECCUncorrectable:
      return "uncorrectable memory error of the GPU: drain this host, look for Xid 48/63/64/94/95 "
             "in its kernel log, restart from the checkpoint";
    case cudaErrorHardwareStackError:
    case cudaErrorNvlinkUncorrectable:
      return "the GPU or its link failed: look for an Xid in the kernel log, drain this host, "
             "restart from the checkpoint";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return "this build has no code for this GPU: add its architecture to R1RUN_CUDA_ARCHS and "
             "rebuild";
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorLaunchFailure:
    case cudaErrorAssert:
      return "a kernel failed, possibly an earlier one: run again with CUDA_LAUNCH_BLOCKING=1 or "
             "under compute-sanitizer to see which";
    default:
      return "";
  }
}

std::string device_text() {
  int device = -1;
  if (cudaGetDevice(&device) != cudaSuccess) return "cuda";
  return fmt::format("cuda:{}", device);
}

}  // namespace

void throw_no_memory(const std::string& text) {
  constexpr const char* kRemedy =
      "see nvidia-smi for other processes on this GPU, or use more ranks, a smaller --micro-batch, "
      "--recompute or --state-dtype bf16";
  size_t free_bytes = 0, total_bytes = 0;
  if (cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess)
    throw MemoryError("{}; {:.2f} of {:.2f} GiB are free on the device; {}", text,
                      static_cast<double>(free_bytes) / 0x1p30,
                      static_cast<double>(total_bytes) / 0x1p30, kRemedy);
  throw MemoryError("{}; {}", text, kRemedy);
}

void throw_cuda_error(cudaError_t e, const char* call, const char* file, int line) {
  (void)cudaGetLastError();  // not sticky errors: the next call must not report this one again
  const char* hint = remedy(e);
  const std::string text =
      fmt::format("{}: {} failed: {} ({}) at {}:{}{}{}", device_text(), call, cudaGetErrorString(e),
                  cudaGetErrorName(e), file, line, *hint != '\0' ? "; " : "", hint);
  if (e == cudaErrorMemoryAllocation) throw_no_memory(text);
  throw DeviceError("{}", text);
}

void throw_cublas_error(cublasStatus_t e, const char* call, const char* file, int line) {
  const std::string text = fmt::format("{}: {} failed: {} ({}) at {}:{}", device_text(), call,
                                       cublasLtGetStatusString(e), cublasLtGetStatusName(e), file, line);
  if (e == CUBLAS_STATUS_ALLOC_FAILED) throw_no_memory(text);
  throw DeviceError("{}", text);
}

}  // namespace r1::cuda
