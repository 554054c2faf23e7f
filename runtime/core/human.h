// Quantities as people read them: "1.50 GiB", "1 h 02 min", "12.3 ktok/s".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace r1 {

/// Binary units, three digits: "0 B", "1023 B", "1.50 GiB", "-2.00 KiB".
[[nodiscard]] std::string human_bytes(double bytes);

/// The two largest units: "0 s", "85 us", "12.3 ms", "4.20 s", "1 min 05 s", "2 h 03 min", "3 d 04
/// h"; "?" when not finite.
[[nodiscard]] std::string human_duration(double seconds);

/// SI prefixes, three digits, then the unit: (12345, "tok/s") "12.3 ktok/s", (999, "B") "999 B",
/// (4.56e9, "") "4.56 G", (0.0123, "s") "12.3 ms", (0.5, "") "0.500".
[[nodiscard]] std::string human_si(double value, std::string_view unit);

/// Digits in groups of three: 1234567 -> "1,234,567".
[[nodiscard]] std::string human_count(int64_t value);

}  // namespace r1
