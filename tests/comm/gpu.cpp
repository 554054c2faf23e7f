#include "gpu.h"

#include <unistd.h>

#include <cstdio>
#include <string>

#include "runtime/core/error.h"
#include "runtime/device/cuda/cuda_api.h"
#include "runtime/device/cuda_library.h"

namespace r1::comm::test {

Device gpu_of_rank(int rank, int needed) {
  std::string why;
  int count = 0;
  try {
    count = cuda::api().device_count(&why);
  } catch (const DeviceError& e) {
    why = e.what();
  }
  if (count < needed) {
    if (count != 0) why = "there are " + std::to_string(count);
    // Every rank says it: mpirun ends the others at the first that leaves, whichever that is.
    std::printf("skipped: needs %d GPU(s): %s\n", needed, why.c_str());
    std::fflush(nullptr);
    _exit(kSkipped);
  }
  return {DeviceKind::kCuda, rank % count};
}

}  // namespace r1::comm::test
