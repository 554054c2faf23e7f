#include "runtime/data/data_options.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <system_error>

#include "runtime/core/error.h"

namespace r1::data {
namespace fs = std::filesystem;

void check_options(const DataOptions& options) {
  const auto check = [](bool ok, const char* option, const std::string& value,
                        const char* allowed) {
    if (!ok) throw UsageError("{} {}: allowed is {}", option, value, allowed);
  };
  check(options.too_long == "error" || options.too_long == "truncate" || options.too_long == "drop",
        "--too-long", options.too_long, "error, truncate or drop");
  check(options.think_history == "last" || options.think_history == "all", "--think-history",
        options.think_history, "last or all");
  check(options.max_bad_rows >= 0, "--max-bad-rows", std::to_string(options.max_bad_rows),
        "0 or more");
  check(options.seq_len >= 0 && options.seq_len <= kMaxSeqLen, "--seq-len",
        std::to_string(options.seq_len), "1 to 16777216 (0: as long as the longest sample)");
  if (std::ranges::find(format_names(), options.format) == format_names().end())
    throw UsageError("--format {}: allowed are {}", options.format,
                     fmt::join(format_names(), ", "));
  for (const DataSource& source : options.sources)
    if (!(source.weight > 0.0) || !std::isfinite(source.weight))
      throw UsageError("--data {}: weight {}, allowed is a number above 0", source.path.string(),
                       source.weight);
}

DataSource parse_data_source(std::string_view text) {
  std::error_code ignored;
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || fs::exists(fs::path(text), ignored)) {
    if (text.empty()) throw UsageError("--data: the file's name is empty");
    return {fs::path(text), 1.0};
  }
  const std::string_view number = text.substr(colon + 1);
  double weight = 0.0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), weight);
  if (error != std::errc() || end != number.data() + number.size() || !(weight > 0.0) ||
      !std::isfinite(weight))
    throw UsageError(
        "--data {}: there is no such file, and '{}' behind the colon is no weight (FILE[:WEIGHT], "
        "WEIGHT a number above 0)",
        text, number);
  if (colon == 0) throw UsageError("--data {}: the file's name is empty", text);
  return {fs::path(text.substr(0, colon)), weight};
}

}  // namespace r1::data
