// What a fuzz target offers, and how it says that an input broke something.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace r1::fuzz {

/// Inputs to begin with, good and bad. replay_NAME --write-seeds DIR writes them for libFuzzer.
std::vector<std::string> seeds();

}  // namespace r1::fuzz

/// Ends the process: both drivers then show the input.
#define FUZZ_REQUIRE(cond)                                                           \
  do {                                                                               \
    if (!(cond)) {                                                                   \
      std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #cond); \
      std::abort();                                                                  \
    }                                                                                \
  } while (false)
