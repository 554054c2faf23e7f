// What a process asks its own machine: name, clocks, random bytes, addresses, and a port to listen on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/core/fd.h"

namespace r1 {

/// This machine's name, as the kernel has it; "unknown" when it has none.
[[nodiscard]] std::string host_name();

/// CLOCK_MONOTONIC: for durations and for comparing processes of one host.
[[nodiscard]] int64_t monotonic_ns() noexcept;
[[nodiscard]] double monotonic_s() noexcept;
/// Seconds since the epoch.
[[nodiscard]] double wall_clock_s() noexcept;

/// So many random bytes from the kernel, as twice as many hexadecimal digits. Throws InternalError.
[[nodiscard]] std::string random_token(size_t bytes);
/// Equality that takes equally long wherever two texts of the same length differ.
[[nodiscard]] bool same_secret(std::string_view a, std::string_view b) noexcept;

/// IPv4 addresses of the interfaces that are up, without the loopback, in the kernel's order.
[[nodiscard]] std::vector<std::string> own_addresses();

/// A socket, not blocking, that listens on a free TCP port of an IPv4 address (host byte order: INADDR_ANY,
/// INADDR_LOOPBACK); `port` gets its number. Empty when the system gives none: errno says why.
[[nodiscard]] Fd listen_tcp(uint32_t address, int backlog, int* port);

}  // namespace r1
