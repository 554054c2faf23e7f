// The CPU as a device: host memory, and streams whose work has run when the call returns.
#pragma once

#include "runtime/device/device.h"

namespace r1 {

/// The one CPU backend. Allocations of 4 MiB and more ask for huge pages; memory is not cleared.
/// allocate() throws MemoryError before the system would have to kill the process: when the bytes
/// exceed what the host, or the control group this process is confined to, has available.
[[nodiscard]] DeviceBackend& cpu_backend();

/// Bytes this process may still allocate: the smaller of the host's available memory and what its
/// control groups leave. Where nothing is known, the largest int64_t.
[[nodiscard]] size_t available_host_bytes();

}  // namespace r1
