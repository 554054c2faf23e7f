// `r1run topo [FILE | --hostfile F]`: shows a map.
#pragma once

#include <string>

#include "runtime/core/options.h"

namespace r1::launch {

/// Prints matrix, tree and fabric; writes --json and --svg. Returns the exit code.
[[nodiscard]] int run_topo(const JobConfig& config);

/// Writes text to a file, or to standard output for "-". Throws StorageError.
void write_output(const std::string& path, const std::string& text);

}  // namespace r1::launch
