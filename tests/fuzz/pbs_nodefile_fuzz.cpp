// PBS nodefiles: a host's count is how often it is named.
#include "launch/hostfile.h"
#include "runtime/core/error.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const auto c = r1::launch::parse_hostfile(text, "fuzz", r1::launch::NodefileKind::kPbs);
    FUZZ_REQUIRE(!c.hosts.empty());
    for (const auto& h : c.hosts) {
      r1::launch::check_host_name(h.name, "again");
      FUZZ_REQUIRE(h.slots >= 1 && h.slots_given);
    }
  } catch (const r1::UsageError&) {
  }
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  return {"n1\nn1\nn2\nn1\n",        "n1.cluster.org\r\nn1.cluster.org\r\n", "a", "\n\n", "a b\n",
          "s13n09\ns13n10\ns13n09\n"};
}
