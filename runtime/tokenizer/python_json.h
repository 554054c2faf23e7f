// JSON text as Python's json.dumps(ensure_ascii=False) writes it, which is what templates' `tojson`
// filter does.
#pragma once

#include <string>
#include <string_view>

namespace r1::text {

/// Rewrites JSON text in Python's layout: ", " and ": " between items, or one item a line with
/// `indent` >= 0 spaces a level. Order of members, and digits of integers of any size, are kept.
/// DataError ("{where}: ...") when not valid JSON.
[[nodiscard]] std::string python_json(std::string_view json, std::string_view where,
                                      int indent = -1);

/// A JSON string literal of `text`, in quotes.
[[nodiscard]] std::string python_json_string(std::string_view text);

/// JSON text of the member `name` of the object `json`, in Python's layout; "" when there is none.
/// DataError as above.
[[nodiscard]] std::string python_json_member(std::string_view json, std::string_view name,
                                             std::string_view where);

}  // namespace r1::text
