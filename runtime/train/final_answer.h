// Final answers of worked solutions: found in a text, and compared exactly. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace r1::train {

/// The final answer of a completion: what stands in the last \boxed{...} (braces balanced), else behind the last "####"
/// to the end of its line. Nothing when there is neither.
[[nodiscard]] std::optional<std::string> final_answer(std::string_view text);

/// An answer in one spelling: blanks, $, %, thousands commas, \text{...}, \left, \right, \! and a final full stop
/// removed; numbers
/// (-1,234.50, 3/4, \frac{3}{4}) as a fraction in lowest terms ("-2469/2", "72").
[[nodiscard]] std::string canonical_answer(std::string_view answer);

/// Unbiased estimate of pass@k from n answers of which c are right: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, equation
/// 1). 1 <= k <= n.
[[nodiscard]] double pass_at_k(int64_t n, int64_t c, int64_t k);

}  // namespace r1::train
