#include "comm/nccl/nccl_api.h"

#include "runtime/device/cuda_library.h"

namespace r1::comm {

NcclApi& nccl_api() {
  const auto get = reinterpret_cast<NcclApi* (*)()>(cuda_library_symbol("r1run_nccl_api"));
  return *(*get)();
}

}  // namespace r1::comm
