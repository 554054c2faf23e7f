// r1run: the front door. Under a launcher it becomes the parent of one rank; otherwise it is the
// launcher.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <exception>

#include "launch/arguments.h"
#include "launch/command.h"
#include "launch/detect.h"
#include "launch/local_machine.h"
#include "launch/process.h"
#include "launch/shim.h"
#include "launch/supervise.h"
#include "launch/verify_layouts.h"
#include "runtime/core/error.h"

namespace {

using namespace r1;
using namespace r1::launch;

bool file_exists(const std::string& path) {
  struct stat st {};
  return stat(path.c_str(), &st) == 0;
}

[[noreturn]] void become_rank_program(const std::vector<std::string>& arguments) {
  std::vector<std::string> argv{sibling_program("r1run-rank")};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  exec_program(argv);
}

int run(const std::vector<std::string>& arguments) {
  const Environment env = Environment::of_process();
  const Whereabouts where = detect(env, file_exists);
  if (is_rank(where)) return run_shim(shim_options(env, where, arguments));
  refuse_unusable(where);

  const Arguments a = read_arguments(arguments);
  if (a.help || a.version || !needs_ranks(a.subcommand)) become_rank_program(a.for_ranks);
  if (a.subcommand == "verify" && !a.layouts.empty()) return verify_layouts(a, env);
  return launch_local(a, env, Announce::kYes);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const r1::Error& e) {
    std::fprintf(stderr, "r1run: error: %s\n", e.what());
    return static_cast<int>(e.code());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "r1run: error: %s\nThis is a bug in r1run: please report it.\n", e.what());
    return static_cast<int>(r1::ExitCode::kInternal);
  }
}
