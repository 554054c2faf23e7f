#include "comm/ipc/ipc_memory.h"
#include "runtime/device/cuda_library.h"

namespace r1::comm {

std::unique_ptr<IpcMemory> make_cuda_memory(Device device) {
  // Made in the CUDA library, which a CPU job never loads.
  const auto make = reinterpret_cast<IpcMemory* (*)(int)>(cuda_library_symbol("r1run_ipc_memory"));
  return std::unique_ptr<IpcMemory>((*make)(device.index));
}

}  // namespace r1::comm
