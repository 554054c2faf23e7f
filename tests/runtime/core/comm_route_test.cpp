// The choice of a backend: a table of places, and what is refused with which words.
#include "runtime/core/comm_route.h"

#include <gtest/gtest.h>

#include "runtime/core/error.h"

namespace r1 {
namespace {

using B = CommBackend;

TEST(CommRoute, AutoFollowsThePlace) {
  const struct {
    const char* what;
    GroupPlace place;
    CommRoute route;
  } cases[] = {
      {"one rank", {.ranks = 1, .hosts = 1, .most_ranks_a_gpu = 1}, {B::kNone, B::kNone, B::kNone}},
      {"CPUs of one host", {.ranks = 4, .hosts = 1}, {B::kMpi, B::kMpi, B::kMpi}},
      {"CPUs of two hosts", {.ranks = 4, .hosts = 2}, {B::kMpi, B::kMpi, B::kMpi}},
      {"a GPU each, one host",
       {.ranks = 8, .hosts = 1, .most_ranks_a_gpu = 1},
       {B::kNccl, B::kIpc, B::kIpc}},
      {"a pair of GPUs",
       {.ranks = 2, .hosts = 1, .most_ranks_a_gpu = 1},
       {B::kNccl, B::kIpc, B::kIpc, true}},
      {"too many for one kernel",
       {.ranks = 16, .hosts = 1, .most_ranks_a_gpu = 1},
       {B::kNccl, B::kIpc, B::kNccl}},
      {"the same without NCCL",
       {.ranks = 8, .hosts = 1, .most_ranks_a_gpu = 1, .has_nccl = false},
       {B::kIpc, B::kIpc, B::kIpc}},
      {"eight ranks on one GPU",
       {.ranks = 8, .hosts = 1, .most_ranks_a_gpu = 8},
       {B::kIpc, B::kIpc, B::kIpc}},
      {"a GPU each, two hosts",
       {.ranks = 16, .hosts = 2, .most_ranks_a_gpu = 1},
       {B::kNccl, B::kNccl, B::kNccl}},
      {"the same without NCCL",
       {.ranks = 16, .hosts = 2, .most_ranks_a_gpu = 1, .has_nccl = false},
       {B::kUcx, B::kUcx, B::kUcx}},
      {"two ranks a GPU, two hosts",
       {.ranks = 8, .hosts = 2, .most_ranks_a_gpu = 2},
       {B::kUcx, B::kUcx, B::kUcx}},
  };
  for (const auto& c : cases)
    EXPECT_EQ(choose_comm(CommChoice::kAuto, c.place, "tp[0,1]"), c.route) << c.what;
}

TEST(CommRoute, ExplicitChoicesHoldOrSayWhyNot) {
  const GroupPlace own{.ranks = 2, .hosts = 1, .most_ranks_a_gpu = 1},
      shared{.ranks = 8, .hosts = 1, .most_ranks_a_gpu = 8};
  const GroupPlace far{.ranks = 2, .hosts = 2, .most_ranks_a_gpu = 1}, cpu{.ranks = 2, .hosts = 1};
  EXPECT_EQ(choose_comm(CommChoice::kNccl, own, "g"), (CommRoute{B::kNccl, B::kNccl, B::kNccl}));
  EXPECT_EQ(choose_comm(CommChoice::kIpc, shared, "g"), (CommRoute{B::kIpc, B::kIpc, B::kIpc}));
  EXPECT_EQ(choose_comm(CommChoice::kIpc, cpu, "g"), (CommRoute{B::kIpc, B::kIpc, B::kIpc}));
  EXPECT_EQ(choose_comm(CommChoice::kUcx, far, "g"), (CommRoute{B::kUcx, B::kUcx, B::kUcx}));
  EXPECT_EQ(choose_comm(CommChoice::kMpi, own, "g"), (CommRoute{B::kMpi, B::kMpi, B::kMpi}));
  const struct {
    CommChoice choice;
    GroupPlace place;
    const char* words;
  } refused[] = {{CommChoice::kNccl, shared, "tp[0-7] has 8 ranks on one GPU"},
                 {CommChoice::kNccl, cpu, "tp[0-7] is on CPUs"},
                 {CommChoice::kIpc, far, "tp[0-7] spans 2 hosts"}};
  for (const auto& r : refused) {
    try {
      (void)choose_comm(r.choice, r.place, "tp[0-7]");
      ADD_FAILURE() << "accepted: " << r.words;
    } catch (const UsageError& e) {
      EXPECT_NE(std::string(e.what()).find(r.words), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find("use auto"), std::string::npos) << e.what();
    }
  }
}

TEST(CommRoute, NamesRoundTrip) {
  for (const auto& [text, backend] :
       {std::pair{"nccl", B::kNccl}, {"ipc", B::kIpc}, {"ucx", B::kUcx}, {"mpi", B::kMpi}}) {
    EXPECT_EQ(comm_backend_name(backend), text);
    EXPECT_NO_THROW((void)parse_comm_choice(text));
  }
  EXPECT_THROW((void)parse_comm_choice("gloo"), UsageError);
  EXPECT_EQ(describe({B::kNccl, B::kIpc, B::kIpc}), "nccl, small collectives and messages ipc");
  EXPECT_EQ(describe({B::kNccl, B::kIpc, B::kIpc, true}), "ipc, collectives beside computation nccl");
  EXPECT_EQ(describe({B::kNccl, B::kIpc, B::kNccl}), "nccl, messages ipc");
  EXPECT_EQ(describe({B::kIpc, B::kIpc, B::kIpc}), "ipc");
}

}  // namespace
}  // namespace r1
