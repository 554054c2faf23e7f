// Speed of the tokenizer on one core: loading, encoding text and long runs of one character,
// decoding.
//
//   bench_text TOKENIZER.json TEXT_FILE
//
// One line a measurement, in processor time of one thread: what, median of the rounds, spread. Text
// is encoded line by line, as data sets are.
#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <exception>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "runtime/tokenizer/tokenizer.h"

namespace {

// Processor time of this thread: what one core does, however busy the machine is.
double now() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

double seconds(const std::function<void()>& work) {
  const double start = now();
  work();
  return now() - start;
}

// Median and extremes of the rounds, as a rate when bytes are given.
void report(const std::string& what, std::vector<double> times, double megabytes) {
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  if (megabytes > 0) {
    std::printf("%-28s %8.1f MB/s   (%.1f to %.1f, %zu rounds of %.1f MB)\n", what.c_str(),
                megabytes / median, megabytes / times.back(), megabytes / times.front(),
                times.size(), megabytes);
  } else {
    std::printf("%-28s %8.0f ms     (%.0f to %.0f, %zu rounds)\n", what.c_str(), median * 1e3,
                times.front() * 1e3, times.back() * 1e3, times.size());
  }
  std::fflush(stdout);
}

std::vector<double> rounds(int count, const std::function<void()>& work) {
  std::vector<double> times;
  for (int i = 0; i < count; ++i) times.push_back(seconds(work));
  return times;
}

std::string read_file(const char* path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error(std::string("cannot read ") + path);
  return {std::istreambuf_iterator<char>(in), {}};
}

// On a thread with a stack of 256 KiB, as a server's threads have.
void on_small_stack(const std::function<void()>& work) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 256 * 1024);
  pthread_t thread;
  const auto run = [](void* f) -> void* {
    (*static_cast<const std::function<void()>*>(f))();
    return nullptr;
  };
  if (pthread_create(&thread, &attributes, run,
                     const_cast<void*>(static_cast<const void*>(&work))) == 0) {
    pthread_join(thread, nullptr);
  }
  pthread_attr_destroy(&attributes);
}

int run(const char* tokenizer_path, const char* text_path) {
  using r1::text::Tokenizer;
  report("load", rounds(5, [&] { (void)Tokenizer::load(tokenizer_path); }), 0);
  const Tokenizer tokenizer = Tokenizer::load(tokenizer_path);
  const std::string text = read_file(text_path);
  std::vector<std::string_view> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(std::string_view(text).substr(at, end - at));
    at = end + 1;
  }
  const double megabytes = static_cast<double>(text.size()) / 1e6;
  size_t tokens = 0;
  report("encode, by line",
         rounds(9,
                [&] {
                  tokens = 0;
                  for (const auto line : lines) tokens += tokenizer.encode(line).size();
                }),
         megabytes);
  std::vector<int32_t> ids;
  report("encode, as one", rounds(5, [&] { ids = tokenizer.encode(text); }), megabytes);
  report("encode, control tokens",
         rounds(5, [&] { ids = tokenizer.encode(text, {.parse_special = true}); }), megabytes);
  report("decode", rounds(5, [&] { (void)tokenizer.decode(ids); }), megabytes);
  std::printf("%zu lines, %zu tokens, %.2f bytes a token\n", lines.size(), tokens,
              static_cast<double>(text.size()) / static_cast<double>(tokens));

  struct Unit {
    const char* name;
    const char* text;
  };
  const Unit units[] = {{"letter a", "a"},
                        {"letter Z", "Z"},
                        {"space", " "},
                        {"newline", "\n"},
                        {"digit 7", "7"},
                        {"^", "^"},
                        {"CJK", "\u4f60"},
                        {"combining mark", "\u0301"},
                        {"two marks, out of order", "\u0301\u0316"},
                        {"Cyrillic", "\u0436"},
                        {"words without spaces", "abcdefghij"},
                        {"invalid byte", "\xFF"}};
  for (const Unit& unit : units) {
    std::string run_text;
    while (run_text.size() < 10'000'000) run_text += unit.text;
    std::vector<double> times;
    on_small_stack([&] { times = rounds(3, [&] { (void)tokenizer.encode(run_text); }); });
    report(std::string("10 MB of ") + unit.name, times, static_cast<double>(run_text.size()) / 1e6);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: bench_text TOKENIZER.json TEXT_FILE\n");
    return 64;
  }
  try {
    return run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 65;
  }
}
