// The parser of model.safetensors.index.json.
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/hf_model.h"
#include "tests/fuzz/fuzz.h"

namespace r1::fuzz {

std::vector<std::string> seeds() {
  return {
      R"({"metadata":{"total_size":123},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}})",
      R"({"weight_map":{}})",
      R"({"weight_map":{"a\u00e9\ud83d\ude00\n":"x"},"extra":[1,-2.5e3,true,false,null,{"a":[]}]})",
      R"({"weight_map":{"a":"../b"}})",
      R"({"weight_map":{"a":"b","a":"b"}})",
      " {\n \"weight_map\" :\t{ } }\r\n"};
}

}  // namespace r1::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace r1::checkpoint;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::map<std::string, std::string> map;
  try {
    map = parse_weight_index(text, "index");
  } catch (const r1::DataError&) {
    return 0;
  }
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  FUZZ_REQUIRE(json.is_object() && json.at("weight_map").size() == map.size());
  for (const auto& [tensor, file] : map) {
    FUZZ_REQUIRE(plain_file_name(file) && file.find('/') == std::string::npos && file != "." &&
                 file != "..");
    FUZZ_REQUIRE(json.at("weight_map").at(tensor) == file);
  }
  FUZZ_REQUIRE(parse_weight_index(weight_index_json(map, 1), "again") == map);
  return 0;
}
