// Logging: one line an event on standard error, through spdlog. Ranks other than 0 speak from warning up, with
// their coordinates in front (set_log_prefix).
#pragma once

#include <spdlog/spdlog.h>

#include <string>

namespace r1::log {

using spdlog::debug;
using spdlog::error;
using spdlog::info;
using spdlog::warn;

/// Sets the program's prefix ("r1run", "rank 3 (pp 0 dp 0 tp 3)") and the lowest level shown.
void setup(const std::string& prefix, spdlog::level::level_enum level);

}  // namespace r1::log
