// Reading a row's JSON, with messages for people: what the readers of formats.cpp and turns.cpp
// share.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "runtime/data/formats.h"

namespace r1::data {

/// Keys keep their order: tools are rendered as they were written.
using Json = nlohmann::ordered_json;

template <class... Args>
[[noreturn]] void bad(fmt::format_string<Args...> text, Args&&... args) {
  throw RowError(fmt::format(text, std::forward<Args>(args)...));
}

/// Text of a row in a message: one line, printable, short.
[[nodiscard]] std::string shown(std::string_view text, size_t most = 60);
/// "a list", "null", ...
[[nodiscard]] std::string kind_of(const Json& j);
/// JSON text. Throws RowError, also for what is nested too deeply.
[[nodiscard]] Json parse_json(std::string_view text);
/// A row with its keys in small letters: sets are published with `Question` and `Response`, too.
[[nodiscard]] Json parse_row_json(std::string_view text);
/// Names of a row's keys for a message.
[[nodiscard]] std::string keys_of(const Json& row);
/// The value of a key, or null when it is missing or null.
[[nodiscard]] const Json* find(const Json& object, std::string_view key);
/// The text under a key. Throws RowError when there is none.
[[nodiscard]] const std::string& text_at(const Json& row, std::string_view key);
/// The same; "" when it is missing or null.
[[nodiscard]] std::string optional_text_at(const Json& row, std::string_view key);
/// JSON text on one line.
[[nodiscard]] std::string dump(const Json& j);
/// A JSON value that may have been written as a string of JSON; `where` is its place.
[[nodiscard]] Json unwrapped(const Json& j, const std::string& where);

}  // namespace r1::data
