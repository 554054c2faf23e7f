// The manifest parser behind a right checksum, and the account that ranks send each other.
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/crc32c.h"
#include "runtime/checkpoint/manifest.h"
#include "tests/fuzz/fuzz.h"

namespace {

using namespace r1::checkpoint;

constexpr std::string_view kSeal = ",\n\"manifest_crc32c\":\"";

Manifest example() {
  Manifest m;
  m.run_id = std::string("run");
  m.step = 41;
  m.rng_seed = UINT64_MAX;
  m.config_text = "lr = 1\n";
  m.fingerprints = {{"data", "x"}};
  m.counters = {{"a", -5}};
  m.reals = {{"b", 0.1}};
  m.files = {{"model.safetensors", 100, 1}, {"r1run/rank-00000.safetensors", 7, 2}};
  Piece p;
  p.tensor = std::string("w");
  p.kind = kKindWeight;
  p.dtype = r1::DType::kBF16;
  p.global_shape = {4, 6};
  p.box = whole_box(p.global_shape);
  p.file = "model.safetensors";
  p.entry = p.tensor;
  m.pieces.push_back(p);
  p.kind = kKindExpAvg;
  p.file = "r1run/rank-00000.safetensors";
  for (const int64_t half : {0, 1}) {
    p.box = {{0, 3 * half}, {4, 3}};
    p.entry = p.box.str();
    m.pieces.push_back(p);
  }
  return m;
}

}  // namespace

namespace r1::fuzz {

std::vector<std::string> seeds() {
  const auto body = [](const Manifest& m) {
    std::string text = to_json(m);
    text.resize(text.rfind(kSeal));
    return text;
  };
  const Manifest m = example();
  Manifest empty;
  empty.run_id = "r";
  return {body(m), body(empty), to_json(Contribution{m.files, m.pieces})};
}

}  // namespace r1::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    (void)manifest_from_json(text, "raw");
  } catch (const r1::DataError&) {
  }
  try {
    const Contribution c = contribution_from_json(text, "rank");
    const Contribution again = contribution_from_json(to_json(c), "again");
    FUZZ_REQUIRE(again.files == c.files && again.pieces == c.pieces);
  } catch (const r1::DataError&) {
  }
  const std::string sealed = fmt::format("{}{}{:08x}\"}}\n", text, kSeal, crc32c(text));
  Manifest m;
  try {
    m = manifest_from_json(sealed, "manifest");
  } catch (const r1::DataError&) {
    return 0;
  }
  FUZZ_REQUIRE(nlohmann::json::accept(sealed));
  FUZZ_REQUIRE(manifest_from_json(to_json(m), "again") == m);
  for (const FileRecord& f : m.files) FUZZ_REQUIRE(f.name.find("..") != 0 && f.name.find('/') != 0);
  for (const Piece& p : m.pieces) {
    FUZZ_REQUIRE(m.find_file(p.file) != nullptr);
    FUZZ_REQUIRE(intersect(p.box, whole_box(p.global_shape)) == p.box && p.box.elems() > 0);
  }
  return 0;
}
