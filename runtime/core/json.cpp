#include "runtime/core/json.h"

#include <nlohmann/json.hpp>

#include "runtime/core/error.h"

namespace r1 {

nlohmann::json parse_json_object(std::string_view text, const std::string& source) {
  nlohmann::json root;
  try {
    root = nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& e) {
    throw DataError("{}: not valid JSON: {}", source, e.what());
  }
  if (!root.is_object()) throw DataError("{}: expected a JSON object", source);
  return root;
}

}  // namespace r1
