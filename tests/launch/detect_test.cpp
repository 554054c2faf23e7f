// Where am I: the order of the tests is what matters.
#include "launch/detect.h"

#include <gtest/gtest.h>

#include "runtime/core/error.h"

namespace r1::launch {
namespace {

using Vars = std::map<std::string, std::string, std::less<>>;

Whereabouts at(Vars v, bool operator_hostfile = false) {
  return detect(Environment(std::move(v)), [=](const std::string& path) {
    return operator_hostfile && path == "/etc/mpi/hostfile";
  });
}

TEST(Detect, PlainWhenNothingIsSet) {
  EXPECT_EQ(at({}).situation, Situation::kPlain);
  EXPECT_EQ(at({{"OMPI_COMM_WORLD_RANK", ""}}).situation, Situation::kPlain);  // set but empty
  EXPECT_FALSE(is_rank(at({})));
}

// mpirun inside a batch job: every rank carries SLURM_PROCID=0.
TEST(Detect, OpenMpiBeforeSlurm) {
  const auto w = at({{"OMPI_COMM_WORLD_RANK", "5"},
                     {"OMPI_COMM_WORLD_SIZE", "8"},
                     {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                     {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                     {"PMIX_NAMESPACE", "12345"},
                     {"PMIX_RANK", "5"},
                     {"SLURM_JOB_ID", "9"},
                     {"SLURM_STEP_ID", "0"},
                     {"SLURM_PROCID", "0"}});
  EXPECT_EQ(w.situation, Situation::kOpenMpiRank);
  EXPECT_EQ(w.rank, 5);
  EXPECT_EQ(w.world, 8);
  EXPECT_EQ(w.local_rank, 1);
  EXPECT_EQ(w.local_size, 4);
  EXPECT_EQ(w.job, "12345");
  EXPECT_TRUE(is_rank(w));
}

TEST(Detect, SrunWithPmix) {
  const auto w = at({{"PMIX_RANK", "3"},
                     {"PMIX_NAMESPACE", "slurm.pmix.17.0"},
                     {"SLURM_STEP_ID", "0"},
                     {"SLURM_PROCID", "3"},
                     {"SLURM_STEP_NUM_TASKS", "8"},
                     {"SLURM_LOCALID", "3"},
                     {"SLURM_GTIDS", "0,1,2,3"}});
  EXPECT_EQ(w.situation, Situation::kPmixRank);
  EXPECT_EQ(w.rank, 3);
  EXPECT_EQ(w.world, 8);
  EXPECT_EQ(w.local_size, 4);
}

TEST(Detect, SrunWithoutPmix) {
  const auto w = at({{"SLURM_JOB_ID", "17"}, {"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "1"}});
  EXPECT_EQ(w.situation, Situation::kSrunWithoutPmix);
  EXPECT_THROW(refuse_unusable(w), UsageError);
}

TEST(Detect, BatchScriptIsAnAllocationNotATask) {
  EXPECT_EQ(at({{"SLURM_JOB_ID", "17"}, {"SLURM_PROCID", "0"}}).situation,
            Situation::kSlurmAllocation);
  for (const char* reserved : {"4294967291", "4294967290", "batch", "interactive"})
    EXPECT_EQ(
        at({{"SLURM_JOB_ID", "17"}, {"SLURM_STEP_ID", reserved}, {"SLURM_PROCID", "0"}}).situation,
        Situation::kSlurmAllocation)
        << reserved;
}

TEST(Detect, OtherLaunchers) {
  const auto torch = at({{"RANK", "1"},
                         {"WORLD_SIZE", "4"},
                         {"MASTER_ADDR", "a"},
                         {"LOCAL_RANK", "1"},
                         {"SLURM_JOB_ID", "1"}});
  EXPECT_EQ(torch.situation, Situation::kTorchrun);
  EXPECT_THROW(refuse_unusable(torch), UsageError);
  EXPECT_NO_THROW(refuse_unusable(at({{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"MASTER_ADDR", "a"}})));
  EXPECT_EQ(at({{"RANK", "1"}}).situation, Situation::kPlain);  // a common name: not enough alone
  EXPECT_EQ(at({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}}).situation, Situation::kMpichRank);
  EXPECT_EQ(at({{"FLUX_TASK_RANK", "0"}}).situation, Situation::kFluxRank);
  EXPECT_EQ(at({{"PBS_NODEFILE", "/x"}}).situation, Situation::kPbsAllocation);
  EXPECT_EQ(at({}, true).situation, Situation::kDefaultHostfile);
  EXPECT_EQ(at({{"OMPI_MCA_orte_default_hostfile", "/h"}}).situation, Situation::kDefaultHostfile);
}

// Everything set at once: the first of the order decides; without it the next.
TEST(Detect, TheOrder) {
  std::map<std::string, std::string, std::less<>> all{
      {"OMPI_COMM_WORLD_RANK", "0"}, {"PMIX_RANK", "0"},    {"PMIX_NAMESPACE", "slurm.pmix.1.0"}, {"SLURM_STEP_ID", "0"},
      {"SLURM_PROCID", "0"},         {"RANK", "0"},         {"WORLD_SIZE", "2"},                  {"MASTER_ADDR", "a"},
      {"PMI_RANK", "0"},             {"PMI_SIZE", "2"},     {"FLUX_TASK_RANK", "0"},              {"SLURM_JOB_ID", "1"},
      {"PBS_NODEFILE", "/n"},        {"OMPI_MCA_orte_default_hostfile", "/h"}};
  const std::vector<std::pair<Situation, std::string>> order{
      {Situation::kOpenMpiRank, "OMPI_COMM_WORLD_RANK"}, {Situation::kPmixRank, "PMIX_RANK"},
      {Situation::kSrunWithoutPmix, "SLURM_STEP_ID"},    {Situation::kTorchrun, "MASTER_ADDR"},
      {Situation::kMpichRank, "PMI_RANK"},               {Situation::kFluxRank, "FLUX_TASK_RANK"},
      {Situation::kSlurmAllocation, "SLURM_JOB_ID"},     {Situation::kPbsAllocation, "PBS_NODEFILE"},
      {Situation::kDefaultHostfile, "OMPI_MCA_orte_default_hostfile"}};
  const auto no_file = [](const std::string&) { return false; };
  const auto mpi_operator = [](const std::string& path) { return path == "/etc/mpi/hostfile"; };
  for (const auto& [situation, variable] : order) {
    EXPECT_EQ(detect(Environment(all), mpi_operator).situation, situation) << variable;
    all.erase(variable);
  }
  EXPECT_EQ(detect(Environment(all), mpi_operator).situation, Situation::kDefaultHostfile);
  EXPECT_EQ(detect(Environment(all), no_file).situation, Situation::kPlain);
}

TEST(Detect, NumbersThatAreNone) {
  EXPECT_EQ(at({{"OMPI_COMM_WORLD_RANK", "x"}}).situation, Situation::kPlain);
  const Environment e({{"A", "12"}, {"B", "12 "}, {"C", "-3"}, {"D", "99999999999999999999"}});
  EXPECT_EQ(e.number("A"), 12);
  EXPECT_EQ(e.number("B"), std::nullopt);
  EXPECT_EQ(e.number("C"), -3);
  EXPECT_EQ(e.number("D"), std::nullopt);
}

}  // namespace
}  // namespace r1::launch
