// `r1run verify --layouts …`: one job a layout, one verdict.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "launch/detect.h"
#include "launch/launch_job.h"

namespace r1::launch {

/// The worst over the results of several layouts, in the form of one result: every error is the
/// largest met, `grads` the largest per tensor, loss and loss_ref those of the layout with the
/// largest relative error, `pass` only if all passed; `layouts` holds each layout's own result. A
/// value that is not a number counts as the worst. Throws DataError when a result lacks a key.
[[nodiscard]] nlohmann::json merge_verify_results(
    const std::vector<std::pair<std::string, nlohmann::json>>& results);

/// The arguments without the options named (each with its value, in either spelling).
[[nodiscard]] std::vector<std::string> without_options(const std::vector<std::string>& arguments,
                                                       const std::vector<std::string>& names);

/// Runs `verify` once per layout, prints a table, writes the merged result to
/// --json. Without a
/// --reference, the first layout writes one for the others (--write-reference). Returns 0 only if
/// all layouts pass, else the first failing layout's code. Throws UsageError for a malformed
/// layout.
[[nodiscard]] int verify_layouts(const Request& request, const Destination& destination,
                                 const Environment& env);

}  // namespace r1::launch
