// Runs a fuzz target without libFuzzer: on its seeds, on mutations of them that are the same in
// every run, and on files.
//   replay_NAME [--mutations N] [--write-seeds DIR] [FILE...]
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "runtime/core/rng.h"
#include "tests/fuzz/fuzz.h"

namespace {

const std::string* current = nullptr;

void run(const std::string& input) {
  current = &input;
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  current = nullptr;
}

// Shows what was being run when the target gave up.
void on_abort(int) {
  if (current != nullptr) {
    std::fprintf(stderr, "input of %zu bytes:\n", current->size());
    for (const char c : current->substr(0, 4096))
      (c >= ' ' && c <= '~' && c != '\\')
          ? std::fputc(c, stderr)
          : std::fprintf(stderr, "\\x%02x", static_cast<unsigned char>(c));
    std::fputc('\n', stderr);
  }
}

std::string mutated(const std::vector<std::string>& seeds, uint64_t i) {
  uint64_t draw = 0;
  const r1::Rng rng(i, "mutation");
  const auto below = [&](uint64_t n) { return n == 0 ? 0 : rng.below(draw++, n); };
  std::string s = seeds[below(seeds.size())];
  static constexpr std::string_view kTokens[] = {"{",
                                                 "}",
                                                 "[",
                                                 "]",
                                                 ",",
                                                 ":",
                                                 "\"",
                                                 "0",
                                                 "-1",
                                                 "1e9",
                                                 "null",
                                                 "\\u0000",
                                                 "\xff",
                                                 "9223372036854775807",
                                                 "18446744073709551616"};
  for (uint64_t n = 1 + below(4); n > 0; --n) {
    const size_t at = below(s.size() + 1);
    switch (below(6)) {
      case 0:
        if (at < s.size()) s[at] = static_cast<char>(s[at] ^ (1 << below(8)));
        break;
      case 1:
        if (at < s.size()) s[at] = static_cast<char>(below(256));
        break;
      case 2:
        s.insert(at, kTokens[below(std::size(kTokens))]);
        break;
      case 3:
        s.erase(at, 1 + below(8));
        break;
      case 4:
        s.insert(at, s.substr(below(s.size() + 1), below(40)));
        break;
      default: {
        const std::string& other = seeds[below(seeds.size())];
        s = s.substr(0, at) + other.substr(below(other.size() + 1));
      }
    }
  }
  return s;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGABRT, on_abort);
  const std::vector<std::string> seeds = r1::fuzz::seeds();
  uint64_t mutations = 20'000;
  bool files = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--mutations") == 0 && i + 1 < argc) {
      mutations = std::strtoull(argv[++i], nullptr, 10);
    } else if (std::strcmp(argv[i], "--write-seeds") == 0 && i + 1 < argc) {
      const std::filesystem::path dir = argv[++i];
      std::filesystem::create_directories(dir);
      for (size_t k = 0; k < seeds.size(); ++k) {
        std::ofstream out(dir / ("seed-" + std::to_string(k)), std::ios::binary);
        out.write(seeds[k].data(), static_cast<std::streamsize>(seeds[k].size()));
      }
      return 0;
    } else {
      std::ifstream in(argv[i], std::ios::binary);
      run({std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()});
      files = true;
    }
  }
  if (files) return 0;
  for (const std::string& s : seeds) run(s);
  for (uint64_t i = 0; i < mutations; ++i) run(mutated(seeds, i));
  std::printf("%zu seeds, %llu mutations\n", seeds.size(),
              static_cast<unsigned long long>(mutations));
  return 0;
}
