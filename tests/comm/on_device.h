// The conformance suite's host tensors, on a device: what a case passes is copied into device
// memory with guard bytes around it, and what the communicator wrote is copied back.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace r1::comm::test {

/// A communicator over `inner`'s ranks that takes host tensors and gives `inner` tensors of
/// `device` on a stream of its own. Tensors keep their misalignment, and parts of one another stay
/// that. Throws when bytes around a tensor changed. Owns nothing of `inner`, which must outlive it;
/// close() closes it.
[[nodiscard]] std::unique_ptr<Communicator> on_device(Communicator& inner, Device device);

}  // namespace r1::comm::test
