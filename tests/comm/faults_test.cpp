// Starts mpi_faults and ucx_faults under mpirun: nobody hangs when a rank dies, sticks or leaves in
// the middle of an operation.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cctype>
#include <cstdio>
#include <string>
#include <vector>

namespace {

struct Result {
  std::string output;
  int status = 0;
};

Result run(const std::string& command_line) {
  // Recovery keeps mpirun from ending the survivors itself, so that what they do is seen.
  const std::string command =
      "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
      "OMPI_MCA_rmaps_base_oversubscribe=1 "
      "ASAN_OPTIONS=detect_leaks=0 timeout -k 2 100 mpirun --enable-recovery -np 4 " R1RUN_BIN_DIR
      "/" +
      command_line + " 2>&1";
  Result r;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return {.output = "popen failed", .status = -1};
  char buffer[4096];
  while (const size_t n = fread(buffer, 1, sizeof buffer, pipe)) r.output.append(buffer, n);
  r.status = pclose(pipe);
  return r;
}

std::vector<std::string> commands() {
  std::vector<std::string> all;
  for (const char* operation :
       {"all_reduce", "small_all_reduce", "barrier", "broadcast", "send", "recv", "split", "close"})
    all.push_back(std::string("mpi_faults stuck ") + operation);
  all.push_back("mpi_faults left all_reduce");
  all.push_back("mpi_faults killed all_reduce");
#ifdef R1RUN_TEST_UCX
  all.push_back("ucx_faults stuck close shm");
  all.push_back("ucx_faults killed all_reduce shm");
  all.push_back("ucx_faults killed all_reduce tcp");
  all.push_back("ucx_faults killed all_reduce shm,tcp --watch");
  all.push_back("ucx_faults stuck recv tcp");
#endif
  return all;
}

class Faults : public testing::TestWithParam<std::string> {};

TEST_P(Faults, SurvivorsThrowAndLeave) {
  const Result r = run(GetParam());
  const bool ucx = GetParam().starts_with("ucx");
  const std::string group = ucx ? "ucx[0,1,2,3]" : "world[0,1,2,3]";
  const bool watched = GetParam().find("--watch") != std::string::npos;
  EXPECT_TRUE(!watched || r.output.find("world rank 1") != std::string::npos) << r.output;
  EXPECT_NE(WEXITSTATUS(r.status), 124) << "timed out: " << r.output;
  for (int rank : {0, 2, 3}) {
    const std::string begin = "rank " + std::to_string(rank) + "/4 after <5s: ";
    const size_t line = r.output.find(begin);
    ASSERT_NE(line, std::string::npos) << r.output;
    const std::string text = r.output.substr(line, r.output.find('\n', line) - line);
    // UCX may see a broken connection before the time-out: to the rank that died, or to one that
    // left because of it.
    EXPECT_TRUE(text.find(group + ": no answer for 300 ms") != std::string::npos ||
                (ucx && text.find("world rank ") != std::string::npos))
        << text;
    EXPECT_NE(text.find("then: barrier on " + group + ": communication ended earlier"),
              std::string::npos)
        << text;
  }
}

INSTANTIATE_TEST_SUITE_P(All, Faults, testing::ValuesIn(commands()), [](const auto& p) {
  std::string name = p.param;
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return name;
});

TEST(Faults, AMessageOfAnotherSizeIsNamed) {
  const Result r = run("mpi_faults size recv");
  EXPECT_NE(r.output.find("rank 0/4 after <5s: recv on world[0,1,2,3]: rank 1 sent 12 bytes where "
                          "20 were expected"),
            std::string::npos)
      << r.output;
#ifdef R1RUN_TEST_UCX
  const Result u = run("ucx_faults size recv shm");
  EXPECT_NE(
      u.output.find(
          "rank 0/4 after <5s: recv on ucx[0,1,2,3]: rank 1 sent 12 bytes where 20 were expected"),
      std::string::npos)
      << u.output;
#endif
}

}  // namespace
