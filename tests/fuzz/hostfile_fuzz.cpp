// Hostfiles: whatever is accepted is a list of good names and counts, and its printed form reads
// back to the same.
#include "launch/hostfile.h"
#include "runtime/core/error.h"
#include "tests/fuzz/fuzz.h"

namespace {

void check(const r1::launch::Cluster& c) {
  FUZZ_REQUIRE(!c.hosts.empty());
  for (const auto& h : c.hosts) {
    r1::launch::check_host_name(h.name, "again");
    FUZZ_REQUIRE(h.slots >= 1);
    FUZZ_REQUIRE(!h.max_slots || *h.max_slots >= h.slots);
    FUZZ_REQUIRE(h.name.front() != '-' && h.user.find(' ') == std::string::npos);
  }
  FUZZ_REQUIRE(c.total_slots() >= static_cast<int>(c.hosts.size()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const auto cluster = r1::launch::parse_hostfile(text, "fuzz");
    check(cluster);
    auto back = r1::launch::parse_hostfile(r1::launch::openmpi_hostfile(cluster), "back");
    FUZZ_REQUIRE(back.hosts.size() == cluster.hosts.size());
    for (size_t i = 0; i < back.hosts.size(); ++i)
      FUZZ_REQUIRE(back.hosts[i].name == cluster.hosts[i].name &&
                   back.hosts[i].slots == cluster.hosts[i].slots);
  } catch (const r1::UsageError&) {
  }
  try {
    check(r1::launch::parse_host_list(text, "fuzz"));
  } catch (const r1::UsageError&) {
  }
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  return {"node1 slots=4\nnode2 slots=4 max_slots=8\n",
          "a\na\nb\n",
          "u@a.b.c slots = 2 # r1run: tier=x rack=y\r\nb",
          "/* x\ny */ 10.0.0.1 cpu=3\n[::1]\nfe80::1 count=2 port=22 // c\n",
          "this is bad slots=1\n",
          "# r1run: topology=t.xml\nn1\n",
          "a:2,b:2",
          "a,b,b",
          "-oProxyCommand=x slots=1\n",
          "\xef\xbb\xbfn1 slots=99999999999\n"};
}
