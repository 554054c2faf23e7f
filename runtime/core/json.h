// JSON files that people write.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace r1 {

/// The object that a JSON text holds. Throws DataError naming `source` when the text is not JSON or holds something else.
[[nodiscard]] nlohmann::json parse_json_object(std::string_view text, const std::string& source);

}  // namespace r1
