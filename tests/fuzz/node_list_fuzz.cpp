// Slurm node lists and counts: bounded however they are written, and each name is a host name.
#include "launch/hostfile.h"
#include "runtime/core/error.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const auto names = r1::launch::expand_node_list(text, "fuzz");
    FUZZ_REQUIRE(names.size() <= 1'000'000);
    for (size_t i = 0; i < names.size() && i < 1000; ++i)
      r1::launch::check_host_name(names[i], "again");
  } catch (const r1::UsageError&) {
  }
  try {
    for (const int n : r1::launch::expand_counts(text, "fuzz")) FUZZ_REQUIRE(n >= 0);
  } catch (const r1::UsageError&) {
  }
  // The allocation: the list before the first blank, the counts after it.
  const size_t blank = text.find(' ');
  if (blank == std::string::npos) return 0;
  try {
    for (const auto& h :
         r1::launch::slurm_cluster(text.substr(0, blank), text.substr(blank + 1)).hosts)
      FUZZ_REQUIRE(h.slots >= 1);
  } catch (const r1::UsageError&) {
  }
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  return {"n[01-03,7],login",
          "a[1-2]b[3-4]-ib",
          "foo[4,1-2],foo1",
          "foo[1,3",
          "n[5-1]",
          "n[001-999999999999999999]",
          "n[1-9][1-9][1-9][1-9][1-9][1-9]",
          "2(x10),5,100(x16)",
          "4(x2)",
          "n[1-3] 2(x3)",
          "rig[1-2] 2,3",
          "1(x99999999999)",
          "[]",
          ",,"};
}
