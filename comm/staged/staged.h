// Device tensors over a communicator that moves host memory: every operation goes through host buffers.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace r1::comm {

/// Wraps `inner` (mpi, self, local) so that its operations take tensors of any device: copied to host buffers before and back
/// after, waiting for the stream. The buffers are pinned and kept for reuse. Slow and always correct: what groups fall back to where no device-to-device way exists.
/// Host tensors pass through untouched. The wrapper owns `inner`; split and close go through it.
[[nodiscard]] std::unique_ptr<Communicator> make_staged(std::unique_ptr<Communicator> inner);

}  // namespace r1::comm
