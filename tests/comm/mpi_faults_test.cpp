// Starts mpi_faults under mpirun: nobody hangs when a rank dies, sticks or leaves in the middle of
// a collective.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <string>

namespace {

struct Result {
  std::string output;
  int status = 0;
};

Result run(const std::string& arguments) {
  // Recovery keeps mpirun from ending the survivors itself, so that what they do is seen.
  const std::string command =
      "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
      "OMPI_MCA_rmaps_base_oversubscribe=1 "
      "ASAN_OPTIONS=detect_leaks=0 timeout -k 2 60 mpirun --enable-recovery -np 4 " R1RUN_BIN_DIR
      "/mpi_faults " +
      arguments + " 2>&1";
  Result r;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return {.output = "popen failed", .status = -1};
  char buffer[4096];
  while (const size_t n = fread(buffer, 1, sizeof buffer, pipe)) r.output.append(buffer, n);
  r.status = pclose(pipe);
  return r;
}

class MpiFaults : public testing::TestWithParam<const char*> {};

TEST_P(MpiFaults, SurvivorsThrowAndLeave) {
  const std::string arguments = GetParam(), operation = arguments.substr(arguments.find(' ') + 1);
  const Result r = run(arguments);
  EXPECT_NE(WEXITSTATUS(r.status), 124) << "timed out: " << r.output;
  for (int rank : {0, 2, 3}) {
    const std::string begin = "rank " + std::to_string(rank) + "/4 after <2s: ";
    const size_t line = r.output.find(begin);
    ASSERT_NE(line, std::string::npos) << r.output;
    const std::string text = r.output.substr(line, r.output.find('\n', line) - line);
    EXPECT_NE(text.find("no answer for 300 ms"), std::string::npos) << text;
    EXPECT_NE(text.find("on world[0,1,2,3]"), std::string::npos) << text;
    EXPECT_NE(text.find("then: barrier on world[0,1,2,3]: communication ended earlier"),
              std::string::npos)
        << text;
  }
  EXPECT_EQ(r.output.find("never called"), std::string::npos) << r.output;
}

INSTANTIATE_TEST_SUITE_P(All, MpiFaults,
                         testing::Values("stuck all_reduce", "stuck small_all_reduce",
                                         "stuck barrier", "stuck broadcast", "stuck send",
                                         "stuck recv", "stuck split", "stuck close",
                                         "left all_reduce", "killed all_reduce"),
                         [](const auto& p) {
                           std::string name = p.param;
                           name[name.find(' ')] = '_';
                           return name;
                         });

TEST(MpiFaults, AMessageOfAnotherSizeIsNamed) {
  const Result r = run("size recv");
  EXPECT_NE(r.output.find("rank 0/4 after <2s: recv on world[0,1,2,3]: rank 1 sent 12 bytes where "
                          "20 were expected"),
            std::string::npos)
      << r.output;
}

}  // namespace
