// Rankfiles: whatever is accepted places every rank once, on named hosts and in ranges that run
// forward.
#include "launch/hostfile.h"
#include "runtime/core/error.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto entries =
        r1::launch::parse_rankfile({reinterpret_cast<const char*>(data), size}, "fuzz");
    FUZZ_REQUIRE(!entries.empty());
    for (size_t i = 0; i < entries.size(); ++i) {
      FUZZ_REQUIRE(entries[i].rank == static_cast<int>(i));
      r1::launch::check_host_name(entries[i].host, "again");
      FUZZ_REQUIRE(!entries[i].parts.empty());
      for (const auto& p : entries[i].parts)
        for (const auto& [lo, hi] : p.cores) FUZZ_REQUIRE(lo >= 0 && lo <= hi);
    }
  } catch (const r1::UsageError&) {
  }
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  return {"rank 0=aa slot=1:0-2\nrank 1=bb slot=0:0,1\nrank 2=cc slot=1-2\n",
          "rank 0=a slots=0:*\n",
          "rank 0 = a slot = 0:0;1:1\n",
          "rank 1=a slot=0\n",
          "rank 0=+n1 slot=0\n",
          "# c\nrank 0=u@a slot=3-1\n",
          "rank 0=a slot=\nrank 0=b slot=0\n"};
}
