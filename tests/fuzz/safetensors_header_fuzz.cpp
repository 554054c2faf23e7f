// The safetensors header parser on arbitrary files.
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/safetensors.h"
#include "tests/fuzz/fuzz.h"
#include "tests/runtime/checkpoint/safetensors_cases.h"

namespace r1::fuzz {

std::vector<std::string> seeds() {
  std::vector<std::string> out;
  for (const test::SafetensorsCase& c : test::safetensors_cases())
    if (c.bytes.size() < 4096 && c.name.find("truncated/") != 0 && c.name.find("replaced/") != 0)
      out.push_back(c.bytes);
  return out;
}

}  // namespace r1::fuzz

namespace {

using namespace r1::checkpoint;

std::optional<SafetensorsHeader> parse(std::string_view header, uint64_t data_bytes,
                                       HeaderRules rules) {
  try {
    return parse_safetensors_header(header, data_bytes, "file", rules);
  } catch (const r1::DataError&) {
    return std::nullopt;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 8) return 0;
  uint64_t n = 0;
  for (size_t i = 0; i < 8; ++i) n |= uint64_t{data[i]} << (8 * i);
  // A wrong length would only be refused: use what is there.
  const size_t header_bytes = n <= size - 8 ? static_cast<size_t>(n) : size - 8;
  const std::string_view header(reinterpret_cast<const char*>(data) + 8, header_bytes);
  const uint64_t data_bytes = size - 8 - header_bytes;
  const auto foreign = parse(header, data_bytes, HeaderRules::kForeign);
  const auto own = parse(header, data_bytes, HeaderRules::kOwn);
  // The stricter rules accept no more, and what both accept they read alike.
  FUZZ_REQUIRE(!own ||
               (foreign && own->tensors == foreign->tensors && own->metadata == foreign->metadata));
  FUZZ_REQUIRE(!foreign || own || foreign->ignored_fields > 0);
  if (!foreign) return 0;
  // An independent parser agrees that it is JSON, and sees the same names.
  const auto json = nlohmann::json::parse(header, nullptr, /*allow_exceptions=*/false);
  FUZZ_REQUIRE(json.is_object());
  FUZZ_REQUIRE(json.size() == foreign->tensors.size() + (json.contains("__metadata__") ? 1 : 0));
  uint64_t at = 0;
  for (const TensorEntry& t : foreign->tensors) {
    FUZZ_REQUIRE(t.begin == at && t.end >= t.begin);
    at = t.end;
    FUZZ_REQUIRE(t.elems() * static_cast<uint64_t>(*safetensors_bits(t.dtype_name)) ==
                 8 * t.bytes());
    const auto& entry = json.at(t.name);
    FUZZ_REQUIRE(entry.at("dtype") == t.dtype_name);
    FUZZ_REQUIRE(entry.at("shape").get<std::vector<int64_t>>() == t.shape);
    FUZZ_REQUIRE(entry.at("data_offsets").get<std::vector<uint64_t>>() ==
                 (std::vector<uint64_t>{t.begin, t.end}));
  }
  FUZZ_REQUIRE(at == data_bytes);
  return 0;
}
