// Turns of a conversation in every spelling that sets use, and their tools.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/data/formats.h"
#include "runtime/data/row_json.h"

namespace r1::data {

/// The row's `tools` as JSON objects in OpenAI's form. Throws RowError.
[[nodiscard]] std::vector<std::string> parse_tools(const Json& row);
/// Appends the turns of a list to `out.messages`; `key` is its name in messages. Throws RowError.
void parse_turns(const Json& source, std::string_view key, ParsedRow& out);
[[nodiscard]] text::Message turn(text::Role role, std::string content);
/// An answer in one string. White space before a leading <think> is not part of what the model
/// says.
[[nodiscard]] text::Message answer_turn(std::string answer);

}  // namespace r1::data
