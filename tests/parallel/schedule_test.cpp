#include "parallel/schedule/schedule.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <set>

#include "runtime/core/error.h"
#include "runtime/core/rng.h"

namespace r1::parallel {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using K = ActionKind;

template <class E, class F>
std::string error(F&& f) {
  try {
    (void)f();
  } catch (const E& e) {
    return e.what();
  }
  return "";
}
std::string invalid(const Schedule& s) {
  return error<InternalError>([&] {
    validate(s);
    return 0;
  });
}

/// Calls f(kind, pp, v, m) for all small cases of all schedules.
template <class F>
void for_all_small(F&& f) {
  for (const auto& kind : schedule_kinds()) {
    for (int pp = 1; pp <= 6; ++pp) {
      for (int v = 1; v <= (kind.virtual_stages_allowed ? 3 : 1); ++v) {
        for (int m = 1; m <= 12; ++m) {
          SCOPED_TRACE(fmt::format("{} pp {} v {} m {}", kind.name, pp, v, m));
          f(kind, pp, v, m);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

/// An executor of its own: every rank in its order, messages in order between pairs. Empty text: it
/// ran through, and every stage did every micro-batch once. Written without looking at the one that
/// is tested.
std::string oracle(const Schedule& s) {
  std::map<std::pair<int, int>, std::deque<std::tuple<char, int, int>>> wires;
  std::set<std::tuple<std::string, int, int>> have;
  std::vector<size_t> at(s.ranks.size(), 0);
  const int stages = s.pp * s.virtual_stages;
  const auto once = [&](const char* what, int stage, int mb) {
    return have.emplace(what, stage, mb).second;
  };
  const auto has = [&](const char* what, int stage, int mb) {
    return have.count({what, stage, mb}) > 0;
  };
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t r = 0; r < s.ranks.size(); ++r) {
      for (; at[r] < s.ranks[r].size(); ++at[r], moved = true) {
        const auto& a = s.ranks[r][at[r]];
        const int me = static_cast<int>(r), st = a.stage, mb = a.microbatch;
        if (st < 0 || st >= stages || st % s.pp != me || mb < 0 || mb >= s.microbatches)
          return "range";
        const bool single = s.pp == 1;
        bool ready = true;
        switch (a.kind) {
          case K::kForward:
            ready = st == 0 || (single ? has("F", st - 1, mb) : has("rf", st, mb));
            if (ready && !once("F", st, mb)) return "F twice";
            break;
          case K::kBackward:
          case K::kBackwardInput:
            ready = has("F", st, mb) &&
                    (st == stages - 1 || (single ? has("dx", st + 1, mb) : has("rb", st, mb)));
            if (!ready) break;
            if (!once("dx", st, mb)) return "B twice";
            if (a.kind == K::kBackward && !once("dw", st, mb)) return "B and W";
            if (a.kind == K::kBackwardInput) once("I", st, mb);
            break;
          case K::kBackwardWeight:
            ready = has("I", st, mb);
            if (ready && !once("dw", st, mb)) return "W twice";
            break;
          case K::kSendForward:
            if (single || st == stages - 1) return "SF";
            ready = has("F", st, mb);
            if (!ready) break;
            if (!once("sf", st, mb)) return "SF twice";
            wires[{me, (st + 1) % s.pp}].push_back({'f', st + 1, mb});
            break;
          case K::kSendBackward:
            if (single || st == 0) return "SB";
            ready = has("dx", st, mb);
            if (!ready) break;
            if (!once("sb", st, mb)) return "SB twice";
            wires[{me, (st - 1) % s.pp}].push_back({'b', st - 1, mb});
            break;
          case K::kRecvForward:
          case K::kRecvBackward: {
            const bool f = a.kind == K::kRecvForward;
            if (single || st == (f ? 0 : stages - 1)) return "recv";
            auto& wire = wires[{(f ? st - 1 : st + 1) % s.pp, me}];
            ready = !wire.empty();
            if (!ready) break;
            if (wire.front() != std::tuple(f ? 'f' : 'b', st, mb)) return "order";
            wire.pop_front();
            if (!once(f ? "rf" : "rb", st, mb)) return "recv twice";
            break;
          }
        }
        if (!ready) break;
      }
    }
  }
  for (size_t r = 0; r < s.ranks.size(); ++r) {
    if (at[r] != s.ranks[r].size()) return "stuck";
  }
  for (const auto& [pair, wire] : wires) {
    if (!wire.empty()) return "unread message";
  }
  for (int st = 0; st < stages; ++st) {
    for (int mb = 0; mb < s.microbatches; ++mb) {
      if (!has("F", st, mb) || !has("dx", st, mb) || !has("dw", st, mb)) return "missing";
    }
  }
  return "";
}

// ---- properties of all schedules

TEST(Schedule, AllSmallOnesAreValidAndRunThrough) {
  for_all_small([](const ScheduleKind& kind, int pp, int v, int m) {
    const auto compute = kind.generate(pp, v, m);
    ASSERT_EQ(invalid(compute), "");
    const auto s = make_schedule(kind.name, pp, v, m);
    ASSERT_EQ(invalid(s), "");
    ASSERT_EQ(oracle(s), "");
    ASSERT_EQ(s.name, kind.name);
    ASSERT_EQ(s.stages(), pp * v);
    bool split = false;
    for (const auto& list : s.ranks) {
      for (const auto& a : list) split |= a.kind == K::kBackwardWeight;
    }
    ASSERT_EQ(split, kind.splits_backward);
    // Without cost for transfers they change nothing in time.
    const auto with = simulate(s, {}), without = simulate(compute, {});
    ASSERT_DOUBLE_EQ(with.makespan, without.makespan);
    ASSERT_EQ(with.peak_in_flight, without.peak_in_flight);
    // All that is computed is busy time.
    ASSERT_NEAR((1 - with.bubble_fraction) * pp * with.makespan, 3.0 * pp * v * m, 1e-9);
  });
}

TEST(Schedule, SendsAndReceivesPairUp) {
  for_all_small([](const ScheduleKind& kind, int pp, int v, int m) {
    const auto s = make_schedule(kind.name, pp, v, m);
    std::map<std::pair<int, int>, std::vector<std::string>> sent, received;  // (from, to)
    for (int r = 0; r < pp; ++r) {
      for (const auto& a : s.ranks[static_cast<size_t>(r)]) {
        if (!is_transfer(a.kind)) continue;
        const int peer = peer_of(a, pp);
        ASSERT_NE(peer, r);
        switch (a.kind) {
          case K::kSendForward:
            sent[{r, peer}].push_back(fmt::format("F{}.{}", a.stage + 1, a.microbatch));
            break;
          case K::kSendBackward:
            sent[{r, peer}].push_back(fmt::format("B{}.{}", a.stage - 1, a.microbatch));
            break;
          case K::kRecvForward:
            received[{peer, r}].push_back(fmt::format("F{}.{}", a.stage, a.microbatch));
            break;
          case K::kRecvBackward:
            received[{peer, r}].push_back(fmt::format("B{}.{}", a.stage, a.microbatch));
            break;
          default:
            FAIL();
        }
      }
    }
    ASSERT_EQ(sent, received);  // in the same order, since messages have no tags
    size_t messages = 0;
    for (const auto& [pair, list] : sent) messages += list.size();
    ASSERT_EQ(messages, pp == 1 ? 0u : 2u * static_cast<size_t>((pp * v - 1) * m));
  });
}

/// The executor has few buffers for what it sends: before a backward it waits until an earlier
/// gradient was taken, and in evaluation (forwards alone) before a send until the last one was.
/// With one buffer of each, nothing may wait in a circle.
TEST(Schedule, RunsThroughWithOneSendBuffer) {
  for_all_small([](const ScheduleKind& kind, int pp, int v, int m) {
    const auto s = make_schedule(kind.name, pp, v, m);
    for (const bool forward_only : {false, true}) {
      const auto is_forward = [](K k) {
        return k == K::kForward || k == K::kSendForward || k == K::kRecvForward;
      };
      std::map<std::pair<int, int>, int> unread;  // messages from one rank to another
      std::vector<int> gradients_out(static_cast<size_t>(pp)),
          activations_out(static_cast<size_t>(pp));
      std::vector<size_t> at(static_cast<size_t>(pp), 0);
      for (bool moved = true; moved;) {
        moved = false;
        for (int me = 0; me < pp; ++me) {
          const auto r = static_cast<size_t>(me);
          for (; at[r] < s.ranks[r].size(); ++at[r], moved = true) {
            const auto& a = s.ranks[r][at[r]];
            if (forward_only && !is_forward(a.kind)) continue;
            if (a.kind == K::kRecvForward || a.kind == K::kRecvBackward) {
              const int peer = peer_of(a, pp);
              if (unread[{peer, me}] == 0) break;
              --unread[{peer, me}];
              --(a.kind == K::kRecvForward ? activations_out
                                           : gradients_out)[static_cast<size_t>(peer)];
            } else if (a.kind == K::kSendForward) {
              if (forward_only && activations_out[r] > 0) break;
              ++activations_out[r];
              ++unread[{me, peer_of(a, pp)}];
            } else if (a.kind == K::kSendBackward) {
              ++gradients_out[r];
              ++unread[{me, peer_of(a, pp)}];
            } else if (a.kind == K::kBackward || a.kind == K::kBackwardInput) {
              if (gradients_out[r] > 0) break;
            }
          }
        }
      }
      for (size_t r = 0; r < s.ranks.size(); ++r) {
        ASSERT_EQ(at[r], s.ranks[r].size())
            << "rank " << r << " waits, forward only " << forward_only;
      }
    }
  });
}

TEST(Schedule, ActivationsInFlight) {
  for_all_small([](const ScheduleKind& kind, int pp, int v, int m) {
    const auto schedule = make_schedule(kind.name, pp, v, m);
    const auto sim = simulate(schedule, {});
    int of_rank_0 = 0, now = 0;
    for (const auto& a : schedule.ranks[0]) {
      if (a.kind == K::kForward) of_rank_0 = std::max(of_rank_0, ++now);
      if (a.kind == K::kBackward || a.kind == K::kBackwardWeight) --now;
    }
    for (int s = 0; s < pp * v; ++s) {
      const int in_flight = sim.peak_in_flight[static_cast<size_t>(s)],
                stash = sim.peak_stash[static_cast<size_t>(s)];
      ASSERT_GE(in_flight, 1);
      ASSERT_LE(in_flight, m);
      ASSERT_EQ(kind.splits_backward, stash > 0);
      if (kind.name == "gpipe") {
        ASSERT_EQ(in_flight, m);
      }
      if (kind.name == "1f1b") {
        ASSERT_EQ(in_flight, std::min(m, pp - s));
      }
      if (kind.name == "zb-h1") {
        ASSERT_EQ(in_flight, std::min(m, pp)) << "on every rank what the first one of 1F1B holds";
        ASSERT_EQ(stash, std::min(m, s + 1));
      }
    }
    // Together at once on rank 0: pp (1 + (pp - 1) / (pp v)) micro-batches' worth of its layers,
    // each activation a v-th of them, where m is a multiple of pp; else as many more as the groups
    // are larger.
    if (kind.name == "interleaved" && v > 1) {
      const int groups = std::max(1, m / pp), largest = (m + groups - 1) / groups;
      ASSERT_LE(of_rank_0, (v - 1) * largest + 2 * (pp - 1) + 1);
      if (m % pp == 0) {
        ASSERT_LE(of_rank_0, pp * v + pp - 1);
      }
    }
  });
}

TEST(Schedule, BubblesAreThoseOfTheFormulas) {
  for_all_small([](const ScheduleKind& kind, int pp, int v, int m) {
    // T_F = T_I = T_W for all of a rank's layers; a virtual stage has a v-th of them.
    const double each = 1.0 / v;
    const auto sim =
        simulate(make_schedule(kind.name, pp, v, m),
                 {.forward = {each}, .backward_input = {each}, .backward_weight = {each}});
    double bubble = 0;  // in units of ideal time
    if (kind.name == "gpipe" || kind.name == "1f1b") {
      bubble = static_cast<double>(pp - 1) / m;
    } else if (kind.name == "interleaved") {
      if (m < pp) return;  // the pipeline is never full
      bubble = static_cast<double>(pp - 1) / (v * m);
    } else if (kind.name == "zb-h1") {
      if (m < pp) return;  // the pipeline is never full
      bubble = static_cast<double>(pp - 1) / (3 * m);
    } else {
      FAIL() << "a new schedule needs its formula here";
    }
    ASSERT_NEAR(sim.bubble_fraction, bubble / (1 + bubble), 1e-12);
    ASSERT_NEAR(sim.makespan, 3.0 * m * (1 + bubble), 1e-9);
  });
}

TEST(Schedule, TextRoundTrips) {
  for_all_small([](const ScheduleKind& kind, int pp, int v, int m) {
    const auto s = make_schedule(kind.name, pp, v, m);
    const auto back = parse_schedule(print(s), v);
    ASSERT_EQ(back.ranks, s.ranks);
    ASSERT_EQ(back.pp, pp);
    ASSERT_EQ(back.virtual_stages, v);
    ASSERT_EQ(back.microbatches, m);
    ASSERT_EQ(print(back), print(s));
  });
}

// ---- single schedules, as text

TEST(Schedule, SmallOnesByHand) {
  const auto text = [](std::string_view name, int pp, int v, int m) {
    for (const auto& kind : schedule_kinds()) {
      if (kind.name == name) return print(kind.generate(pp, v, m));
    }
    return std::string();
  };
  EXPECT_EQ(text("gpipe", 2, 1, 2), "0: 0F0 0F1 0B0 0B1\n1: 1F0 1F1 1B0 1B1\n");
  EXPECT_EQ(text("1f1b", 2, 1, 3), "0: 0F0 0F1 0B0 0F2 0B1 0B2\n1: 1F0 1B0 1F1 1B1 1F2 1B2\n");
  EXPECT_EQ(text("zb-h1", 2, 1, 3),
            "0: 0F0 0F1 0I0 0W0 0F2 0I1 0W1 0I2 0W2\n"
            "1: 1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2\n");
  EXPECT_EQ(text("interleaved", 2, 2, 2),
            "0: 0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1\n"
            "1: 1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1\n");
  EXPECT_EQ(print(make_schedule("1f1b", 2, 1, 2)),
            "0: 0F0 0SF0 0F1 0SF1 0RB0 0B0 0RB1 0B1\n"
            "1: 1RF0 1F0 1B0 1SB0 1RF1 1F1 1B1 1SB1\n");
  // One rank: nothing to send.
  EXPECT_EQ(print(make_schedule("interleaved", 1, 2, 1)), "0: 0F0 1F0 1B0 0B0\n");
}

TEST(Schedule, MessagesOfAPairAreReceivedInTheOrderOfSending) {
  // With two ranks and virtual stages, activations of one stage and gradients of another go from
  // rank 0 to rank 1. Here it sends 2F1 before 2B0's gradient, and rank 1 needs them the other way
  // round.
  const auto compute = parse_schedule(
      "0: 0F0 0F1 2F0 2F1 2B0 0B0 2B1 0B1\n"
      "1: 1F0 1F1 3F0 3B0 1B0 3F1 3B1 1B1\n",
      2);
  ASSERT_EQ(invalid(compute), "");
  const auto s = with_transfers(compute);
  EXPECT_EQ(invalid(s), "");
  EXPECT_EQ(oracle(s), "");
  EXPECT_THAT(print(s), HasSubstr("3B0 3SB0 3RF1 1RB0 1B0 1SB0 3F1"));  // 3RF1 early
  EXPECT_DOUBLE_EQ(simulate(s, {}).makespan, simulate(compute, {}).makespan);
}

TEST(Schedule, OneVirtualStageIsPlainOneForwardOneBackward) {
  for (int pp = 1; pp <= 5; ++pp) {
    for (int m = 1; m <= 9; ++m) {
      EXPECT_EQ(make_schedule("interleaved", pp, 1, m).ranks,
                make_schedule("1f1b", pp, 1, m).ranks);
    }
  }
}

TEST(Schedule, TransfersTakeTime) {
  const auto s = make_schedule("gpipe", 3, 1, 1);
  const auto sim =
      simulate(s, {.forward = {1}, .backward_input = {1}, .backward_weight = {1}, .transfer = 0.5});
  EXPECT_DOUBLE_EQ(sim.makespan, 3 * 3 + 4 * 0.5);
  const auto compute_only = simulate(schedule_kinds()[0].generate(3, 1, 1), {.transfer = 0.5});
  EXPECT_DOUBLE_EQ(compute_only.makespan, sim.makespan);
}

TEST(Schedule, CostsPerStage) {
  const auto s = make_schedule("gpipe", 2, 1, 1);
  const auto sim =
      simulate(s, {.forward = {1, 2}, .backward_input = {4}, .backward_weight = {8, 16}});
  EXPECT_DOUBLE_EQ(sim.makespan, 1 + 2 + (4 + 16) + (4 + 8));
  const auto& last = sim.ranks[0].back();
  EXPECT_EQ(last.action, (Action{0, K::kBackward, 0}));
  EXPECT_DOUBLE_EQ(last.start, 23);
  EXPECT_DOUBLE_EQ(last.end, 35);
  EXPECT_THROW((void)simulate(s, {.forward = {}}), InternalError);
}

// ---- names and text

TEST(Schedule, ActionText) {
  for (const auto kind : {K::kForward, K::kBackward, K::kBackwardInput, K::kBackwardWeight,
                          K::kSendForward, K::kRecvForward, K::kSendBackward, K::kRecvBackward}) {
    const Action a{12, kind, 345};
    EXPECT_EQ(parse_action(a.str()), a);
  }
  EXPECT_EQ((Action{2, K::kForward, 0}.str()), "2F0");
  EXPECT_EQ((Action{2, K::kSendForward, 0}.str()), "2SF0");
  for (const char* bad : {"", "F0", "2F", "2X0", "2f0", "-1F0", "2F-1", "2F0 ", " 2F0", "2FF0",
                          "2F0x", "2F99999999999", "22", "2S0"}) {
    EXPECT_THAT(error<UsageError>([&] { return parse_action(bad); }),
                HasSubstr(fmt::format("\"{}\"", bad)));
  }
}

TEST(Schedule, ScheduleTextErrorsNameTheLine) {
  const auto text = [](std::string_view t) {
    return error<UsageError>([&] { return parse_schedule(t, 1); });
  };
  EXPECT_THAT(text(""), HasSubstr("0F0"));
  EXPECT_THAT(text("0: 0F0\n2: 2F0\n"), AllOf(HasSubstr("line 2"), HasSubstr("\"1:\"")));
  EXPECT_THAT(text("# comment\n\n0: 0F0 0G0\n"), AllOf(HasSubstr("line 3"), HasSubstr("\"0G0\"")));
  const auto s = parse_schedule("# by hand\r\n0: 0F0 0B0\r\n1:\t1F0 1B0", 1);
  EXPECT_EQ(s.pp, 2);
  EXPECT_EQ(s.microbatches, 1);
  EXPECT_EQ(invalid(s), "");
}

TEST(Schedule, UnknownNamesAndVirtualStages) {
  EXPECT_THAT(error<UsageError>([] { return make_schedule("zigzag", 2, 1, 1); }),
              AllOf(HasSubstr("--schedule zigzag"), HasSubstr("gpipe, 1f1b, interleaved, zb-h1")));
  EXPECT_THAT(error<UsageError>([] { return make_schedule("1f1b", 2, 2, 1); }),
              AllOf(HasSubstr("--virtual-stages 2"), HasSubstr("interleaved")));
  EXPECT_THAT(error<UsageError>([] { return make_schedule("interleaved", 2, 0, 1); }),
              HasSubstr("--virtual-stages 0"));
}

// ---- what validate catches

TEST(Validate, BrokenSchedulesAreShownWithTheSpotMarked) {
  struct Case {
    const char* text;
    int v;
    std::vector<const char*> expected;
  };
  const Case cases[] = {
      {"0: 0F0 0B0 0F0", 1, {"0F0 twice", ">0F0<"}},
      {"0: 0F0", 1, {"0B0 is missing", "><"}},
      {"0: 0B0 0F0", 1, {"0B0 before 0F0", ">0B0<", ">0F0<"}},
      {"0: 0F0 0I0", 1, {"0W0 is missing"}},
      {"0: 0F0 0W0 0I0", 1, {"0W0 before 0I0"}},
      {"0: 0F0 0B0 0W0", 1, {"both 0B0", ">0B0<"}},
      {"0: 1F0 1B0", 1, {"stages count from 0 to 0", ">1F0<"}},
      {"0: 0F0 1B0\n1: 1F0 0B0", 1, {"stage 1 lives on rank 1", ">1B0<"}},
      {"0: 0F0 0RF0 0B0", 1, {"one rank only"}},
      {"0: 0F0 0F1 0B0 0B1\n1: 1F0 1F1 1B0", 1, {"rank 1: 1B1 is missing"}},
      // Rank 0 wants the second gradient first, rank 1 the first activation's gradient first.
      {"0: 0F0 0B0 0F1 0B1\n1: 1F1 1F0 1B0 1B1",
       1,
       {"deadlock", "rank 0 waits at 0B0 for 1B or I0", "rank 1 waits at 1F1 for 0F1", ">0B0<",
        ">1F1<"}},
      {"0: 0F0 0SF0 0RB0 0B0\n1: 1RF0 1F0 1B0", 1, {"1SB0 is missing"}},
      {"0: 0F0 0SF0 0RB0 0B0\n1: 1F0 1RF0 1B0 1SB0", 1, {"1F0 before 1RF0"}},
      {"0: 0F0 0F1 0SF1 0SF0 0RB0 0B0 0RB1 0B1\n1: 1RF0 1F0 1B0 1SB0 1RF1 1F1 1B1 1SB1",
       1,
       {"deadlock", "rank 1 waits at 1RF0 for 0SF0, but the next message from rank 0 is 0SF1",
        ">1RF0<"}},
      {"0: 0SB0 0F0 0SF0 0RB0 0B0\n1: 1RF0 1F0 1B0 1SB0", 1, {"no stage before", ">0SB0<"}},
      {"0: 0F0 0SF0 0RB0 0B0\n1: 1RF0 1F0 1SF0 1B0 1SB0", 1, {"no stage behind", ">1SF0<"}},
  };
  for (const auto& c : cases) {
    const auto s = parse_schedule(c.text, c.v);
    const auto text = invalid(s);
    for (const char* part : c.expected) EXPECT_THAT(text, HasSubstr(part)) << c.text;
    EXPECT_THAT(text, HasSubstr("0:")) << "the grid";
  }
  auto s = make_schedule("1f1b", 2, 1, 2);
  s.ranks.pop_back();
  EXPECT_NE(invalid(s), "");
  s = make_schedule("1f1b", 2, 1, 2);
  s.microbatches = 3;
  EXPECT_THAT(invalid(s), HasSubstr("missing"));
  s.microbatches = 1;
  EXPECT_THAT(invalid(s), HasSubstr("count from 0 to 0"));
}

TEST(Validate, LongListsAreShownAroundTheSpot) {
  auto s = make_schedule("1f1b", 4, 1, 200);
  s.ranks[2].erase(s.ranks[2].begin() + 300);
  const auto text = invalid(s);
  EXPECT_NE(text, "");
  EXPECT_LT(text.size(), 2500u);
  EXPECT_THAT(text, HasSubstr("..."));
}

/// Random damage: validate must agree with the executor above about every damaged schedule.
TEST(Validate, AgreesWithAnotherExecutorOnMutations) {
  int64_t caught = 0, harmless = 0;
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    const Rng rng(seed, "schedule mutations");
    uint64_t n = 0;
    const auto below = [&](size_t limit) { return static_cast<size_t>(rng.below(n++, limit)); };
    const auto& kind = schedule_kinds()[below(schedule_kinds().size())];
    const int pp = static_cast<int>(1 + below(4)), m = static_cast<int>(1 + below(5));
    const int v = kind.virtual_stages_allowed ? static_cast<int>(1 + below(3)) : 1;
    auto s = make_schedule(kind.name, pp, v, m);
    auto& list = s.ranks[below(s.ranks.size())];
    const size_t i = below(list.size());
    switch (below(6)) {
      case 0:
        list.erase(list.begin() + static_cast<ptrdiff_t>(i));
        break;
      case 1:
        list.insert(list.begin() + static_cast<ptrdiff_t>(below(list.size() + 1)), list[i]);
        break;
      case 2:
        std::swap(list[i], list[below(list.size())]);
        break;
      case 3:
        std::swap(list[i], list[std::min(i + 1, list.size() - 1)]);
        break;
      case 4:
        list[i].microbatch = static_cast<int>(below(static_cast<size_t>(m) + 1));
        break;
      case 5:
        list[i].kind = static_cast<K>(below(8));
        break;
    }
    const auto ours = invalid(s);
    const auto theirs = oracle(s);
    ASSERT_EQ(ours.empty(), theirs.empty()) << "seed " << seed << ": " << theirs << "\n"
                                            << ours << print(s);
    (theirs.empty() ? harmless : caught)++;
    if (theirs.empty()) {
      EXPECT_NO_THROW((void)simulate(s, {})) << seed;
    } else {
      ASSERT_THAT(ours, AllOf(HasSubstr(">"), HasSubstr("<"))) << "seed " << seed;
    }
  }
  EXPECT_GT(caught, 1000);
  EXPECT_GT(harmless, 100);  // swaps of what is independent
}

TEST(Simulate, DeadlockNamesTheWaitingActions) {
  const auto s = parse_schedule("0: 0F0 0B0 0F1 0B1\n1: 1F1 1F0 1B0 1B1", 1);
  EXPECT_THAT(error<InternalError>([&] { return simulate(s, {}); }),
              HasSubstr("rank 1 waits at 1F1"));
}

TEST(Gantt, ShowsEveryComputationOnce) {
  for (const auto& kind : schedule_kinds()) {
    const int v = kind.virtual_stages_allowed ? 2 : 1;
    const auto s = make_schedule(kind.name, 4, v, 8);
    const auto svg = gantt_svg(s, simulate(s, {}));
    EXPECT_TRUE(svg.starts_with("<svg ")) << "self-contained";
    EXPECT_TRUE(svg.ends_with("</svg>\n"));
    EXPECT_THAT(svg, AllOf(HasSubstr(std::string(kind.name)), HasSubstr("rank 3"),
                           HasSubstr("8 micro-batches")));
    for (const auto& list : s.ranks) {
      for (const auto& a : list) {
        if (is_transfer(a.kind)) continue;
        const auto title = fmt::format("<title>{} from ", a.str());
        const auto at = svg.find(title);
        ASSERT_NE(at, std::string::npos) << a.str();
        EXPECT_EQ(svg.find(title, at + 1), std::string::npos);
      }
    }
  }
  // Nothing to draw is a picture too.
  const Schedule none{
      .name = "a<b", .pp = 1, .virtual_stages = 1, .microbatches = 0, .ranks = {{}}};
  EXPECT_THAT(gantt_svg(none, simulate(none, {})), HasSubstr("a&lt;b"));
}

}  // namespace
}  // namespace r1::parallel
