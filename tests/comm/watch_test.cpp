// The control channel: frames, who is to blame, and the whole of it over real sockets.
#include "comm/watch/watch.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <sstream>

#include "comm/local/local.h"
#include "comm/recorded/recorded.h"
#include "comm/watch/hub.h"
#include "runtime/core/rng.h"

namespace r1::comm {
namespace {

using namespace std::chrono_literals;

Heartbeat sample_beat() {
  Heartbeat b{.rank = 3, .stage = 1, .step = 41, .progress = 12345, .phase = "forward stage 1 micro-batch 2", .phase_age_ns = 7,
              .op = Operation::kAllReduce, .op_text = "all-reduce #812 of tp (pp 1 dp 0)", .op_group = 99, .op_sequence = 812,
              .op_peer = -1, .op_age_ns = 3'000'000'000, .boundary_step = 41, .boundary_ns = 5, .boundary_waited_ns = 4, .groups = {}};
  for (uint64_t g = 0; g < 6; ++g) b.groups.push_back({g, 10 * g});
  return b;
}

TEST(Frames, RoundTripInAnyPieces) {
  const Hello hello{.token = "secret", .host = "node-1", .rank = 3};
  const StopOrder order{.code = 75, .culprit = 1, .why = "no progress"};
  const std::string stream = to_frame(hello) + to_frame(sample_beat()) + farewell_frame() + to_frame(order);
  for (size_t piece : {size_t{1}, size_t{7}, stream.size()}) {
    FrameReader reader;
    std::vector<Frame> frames;
    for (size_t at = 0; at < stream.size(); at += piece) {
      reader.feed(std::string_view(stream).substr(at, piece));
      while (auto f = reader.next()) frames.push_back(*f);
    }
    ASSERT_EQ(frames.size(), 4u);
    EXPECT_EQ(hello_from(frames[0].payload), hello);
    EXPECT_EQ(heartbeat_from(frames[1].payload), sample_beat());
    EXPECT_EQ(frames[2].kind, FrameKind::kFarewell);
    EXPECT_EQ(stop_from(frames[3].payload), order);
    EXPECT_FALSE(reader.broken());
  }
}

TEST(Frames, GarbageAndCutFramesAreRefused) {
  FrameReader http;
  http.feed("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_FALSE(http.next());
  EXPECT_TRUE(http.broken());
  std::string huge = farewell_frame();
  huge[8] = huge[9] = huge[10] = '\x7f';
  FrameReader reader;
  reader.feed(huge);
  EXPECT_FALSE(reader.next());
  EXPECT_TRUE(reader.broken());
  FrameReader one;
  one.feed(to_frame(sample_beat()));
  const std::string payload = one.next()->payload;
  for (size_t n = 0; n < payload.size(); ++n) EXPECT_FALSE(heartbeat_from(std::string_view(payload).substr(0, n))) << n;
  EXPECT_FALSE(heartbeat_from(payload + "x"));
  const Rng rng(1, "frames");
  for (uint64_t i = 0; i < 5000; ++i) {  // no crash, whatever is in it
    std::string noise = payload;
    for (uint64_t k = 0; k < 4; ++k) noise[rng.below(8 * i + k, noise.size())] = static_cast<char>(rng.below(8 * i + k + 4, 256));
    const auto b = heartbeat_from(noise);
    EXPECT_TRUE(!b || b->groups.size() <= detail::kFlightGroups);
  }
}

TEST(Frames, TextsCannotDriveATerminal) {
  FrameReader r;
  r.feed(to_frame(StopOrder{.code = 75, .culprit = 0, .why = "a\033[2Jb\n"}));
  EXPECT_EQ(stop_from(r.next()->payload)->why, "a?[2Jb?");
}

// ---- who is to blame

constexpr uint64_t kTp = 1, kWorld = 2, kPp = 3;

RankView computing(int rank, std::vector<Heartbeat::Group> groups) {
  RankView v;
  v.joined = true;
  v.beat = {.rank = rank, .stage = 0, .step = 41, .phase = "forward stage 0 micro-batch 1", .phase_age_ns = 3'000'000'000, .groups = std::move(groups)};
  return v;
}
RankView in_collective(int rank, uint64_t group, uint64_t sequence, std::vector<Heartbeat::Group> groups) {
  RankView v = computing(rank, std::move(groups));
  v.beat.op = Operation::kAllReduce;
  v.beat.op_text = fmt::format("all-reduce #{} of group {}", sequence, group);
  v.beat.op_group = group;
  v.beat.op_sequence = sequence;
  v.beat.op_age_ns = 2'000'000'000;
  return v;
}
RankView in_transfer(int rank, int peer) {
  RankView v = computing(rank, {{kPp, 0}});
  v.beat.op = Operation::kRecv;
  v.beat.op_text = fmt::format("receive of pp with rank {}", peer);
  v.beat.op_peer = peer;
  return v;
}

TEST(Diagnosis, ThePointOfTheChainIsNamed) {
  // Ranks 0 and 2 wait in an all-reduce that rank 1 has not come to.
  const std::vector<RankView> ranks{in_collective(0, kTp, 8, {{kTp, 8}}), computing(1, {{kTp, 7}}), in_collective(2, kTp, 8, {{kTp, 8}})};
  const Diagnosis d = diagnose(ranks, 3.0);
  EXPECT_EQ(d.culprits, std::vector<int>{1});
  EXPECT_NE(d.why.find("no progress for 3.0 s step 41, in forward stage 0 micro-batch 1"), std::string::npos) << d.why;
  EXPECT_NE(d.why.find("ranks 0, 2 wait for it: rank 0 is step 41, in all-reduce #8 of group 1"), std::string::npos) << d.why;
}

TEST(Diagnosis, ThroughGroupsAndTransfers) {
  // Rank 3 waits for rank 2 (pipeline), rank 2 in its tp group for rank 1, rank 0 for rank 1 too; rank 1 computes.
  std::vector<RankView> ranks{in_collective(0, kTp, 5, {{kTp, 5}, {kWorld, 1}}), computing(1, {{kTp, 4}, {kWorld, 1}}),
                              in_collective(2, kTp, 5, {{kTp, 5}, {kWorld, 1}}), in_transfer(3, 2)};
  EXPECT_EQ(diagnose(ranks, 1).culprits, std::vector<int>{1});
  // Another group of the same kind is another group.
  ranks[1] = computing(1, {{77, 4}});
  EXPECT_EQ(diagnose(ranks, 1).culprits, (std::vector<int>{2})) << "all of kTp are there: what holds it up is in it";
}

TEST(Diagnosis, AWrongOrderIsACycle) {
  // Rank 0 is in collective 6 of tp, rank 1 in collective 3 of world: each has not begun the other's.
  const std::vector<RankView> ranks{in_collective(0, kTp, 6, {{kTp, 6}, {kWorld, 2}}), in_collective(1, kWorld, 3, {{kTp, 5}, {kWorld, 3}})};
  const Diagnosis d = diagnose(ranks, 4);
  EXPECT_TRUE(d.cycle);
  EXPECT_EQ(d.culprits, (std::vector<int>{0, 1}));
  EXPECT_NE(d.why.find("wait for each other"), std::string::npos) << d.why;
  EXPECT_TRUE(d.deadlock);
  // A transfer that both sides are in may take its time.
  const Diagnosis transfer = diagnose(std::vector<RankView>{in_transfer(0, 1), in_transfer(1, 0)}, 4);
  EXPECT_TRUE(transfer.cycle);
  EXPECT_FALSE(transfer.deadlock);
}

TEST(Diagnosis, WhoFinishedOrVanishedIsTheCause) {
  std::vector<RankView> ranks{in_collective(0, kWorld, 8, {{kWorld, 8}}), computing(1, {{kWorld, 7}})};
  ranks[1].finished = true;
  EXPECT_NE(diagnose(ranks, 2).why.find("rank 1 finished while others have not; rank 0 waits for it"), std::string::npos) << diagnose(ranks, 2).why;
  ranks[1].finished = false;
  ranks[1].gone = true;
  EXPECT_NE(diagnose(ranks, 2).why.find("rank 1 vanished"), std::string::npos);
}

TEST(Diagnosis, TablesJoinEqualLines) {
  std::vector<RankView> ranks;
  for (int r = 0; r < 9; ++r) ranks.push_back(r == 4 ? computing(r, {}) : in_collective(r, kTp, 3, {{kTp, 3}}));
  const std::string table = stall_table(ranks);
  EXPECT_NE(table.find("rank 0-3: step 41, in all-reduce #3 of group 1 for 2.00 s"), std::string::npos) << table;
  EXPECT_NE(table.find("rank 4: step 41, in forward"), std::string::npos) << table;
  EXPECT_NE(table.find("rank 5-8: "), std::string::npos) << table;
  EXPECT_EQ(rank_list(std::vector<int>{0, 1, 3, 4, 5, 9}), "0, 1, 3-5, 9");
}

// ---- the judge, without sockets

WatchOptions quick(int size) {
  return {.rank = 0, .size = size, .host = "here", .peer_timeout_s = 2, .stall_timeout_s = 3, .stall_report = ""};
}

class Job {
 public:
  explicit Job(int size) : judge(quick(size)), ranks(static_cast<size_t>(size)) {
    for (int r = 0; r < size; ++r) {
      ranks[static_cast<size_t>(r)] = computing(r, {{kWorld, 0}}).beat;
      judge.joined(r, "host" + std::to_string(r), 0);
    }
  }
  /// All beat every 0.1 s until `until`, those of `silent` not; `advance`: they make progress. The first verdict.
  std::optional<Judge::Verdict> run(double until, bool advance, std::vector<int> silent = {}) {
    for (; now < until; now += 0.1) {
      for (Heartbeat& b : ranks) {
        if (std::find(silent.begin(), silent.end(), b.rank) != silent.end()) continue;
        if (advance) ++b.progress;
        judge.heard(b, now);
      }
      if (auto v = judge.judge(now)) return v;
    }
    return std::nullopt;
  }
  Judge judge;
  std::vector<Heartbeat> ranks;
  double now = 0.1;
};

TEST(Judge, AllIsWell) { EXPECT_FALSE(Job(4).run(100, true)); }

TEST(Judge, ASilentRankIsNamedAfterItsTimeout) {
  Job job(4);
  ASSERT_FALSE(job.run(10, true));
  const auto v = job.run(20, true, {2});
  ASSERT_TRUE(v);
  EXPECT_EQ(v->culprits, std::vector<int>{2});
  EXPECT_TRUE(v->primary && !v->speaks);
  EXPECT_NE(v->why.find("rank 2 on host2 is silent"), std::string::npos);
  EXPECT_LE(job.now, 10 + 2 + 1.5 + 0.3);  // a parent process that sees its rank stopped has told it before
}

TEST(Judge, AStallIsFoundAfterItsTimeoutAndTheCauseSpeaks) {
  Job job(3);
  ASSERT_FALSE(job.run(5, true));
  job.ranks[0] = in_collective(0, kWorld, 1, {{kWorld, 1}}).beat;
  job.ranks[1] = in_collective(1, kWorld, 1, {{kWorld, 1}}).beat;
  for (auto& b : job.ranks) b.progress += 1000;
  const auto v = job.run(20, false);
  ASSERT_TRUE(v);
  EXPECT_TRUE(v->speaks);
  EXPECT_EQ(v->culprits, std::vector<int>{2});
  EXPECT_EQ(v->code, ExitCode::kTemporary);
  EXPECT_GE(job.now, 8.0);
  EXPECT_LE(job.now, 8.4);
  EXPECT_NE(v->table.find("rank 2: "), std::string::npos);
}

TEST(Judge, ADeadlockIsNotWaitedFor) {
  Job job(2);
  ASSERT_FALSE(job.run(5, true));
  job.ranks[0] = in_collective(0, kTp, 6, {{kTp, 6}, {kWorld, 2}}).beat;
  job.ranks[1] = in_collective(1, kWorld, 3, {{kTp, 5}, {kWorld, 3}}).beat;
  const double since = job.now;
  const auto v = job.run(20, false);
  ASSERT_TRUE(v);
  EXPECT_NEAR(job.now - since, 2.0, 0.5) << "the peer time-out, not the stall time-out of 3 s";
  EXPECT_EQ(v->code, ExitCode::kInternal);
  EXPECT_TRUE(v->speaks);
}

TEST(Judge, ALongStartIsNoStall) {
  Job job(2);
  for (auto& b : job.ranks) b.step = -1;
  EXPECT_FALSE(job.run(8.9, false));
  EXPECT_TRUE(job.run(12, false));
}

TEST(Judge, AnEarlyFarewellIsABug) {
  Job job(3);
  ASSERT_FALSE(job.run(5, true));
  job.judge.farewell(1, job.now);
  job.ranks[0] = in_collective(0, kWorld, 1, {{kWorld, 1}}).beat;
  job.ranks[2] = in_collective(2, kWorld, 1, {{kWorld, 1}}).beat;
  const auto v = job.run(20, false, {1});
  ASSERT_TRUE(v);
  EXPECT_EQ(v->code, ExitCode::kInternal);
  EXPECT_NE(v->why.find("rank 1 finished while others have not; ranks 0, 2 wait for it"), std::string::npos) << v->why;
  EXPECT_FALSE(v->speaks);
  Job done(2);
  ASSERT_FALSE(done.run(5, true));
  done.judge.farewell(0, done.now);
  done.judge.farewell(1, done.now);
  EXPECT_FALSE(done.run(60, false, {0, 1}));
}

TEST(Judge, AVanishedRankIsOthersToTell) {
  Job job(3);
  ASSERT_FALSE(job.run(5, true));
  job.judge.lost(2, job.now);
  const auto v = job.run(20, true, {2});
  ASSERT_TRUE(v);
  EXPECT_FALSE(v->primary);
  EXPECT_GE(job.now, 6.4);
}

TEST(Judge, OwnPausesAccuseNobody) {
  Job job(3);
  ASSERT_FALSE(job.run(5, true));
  job.now += 60;  // this host was suspended
  EXPECT_FALSE(job.judge.judge(job.now));
  EXPECT_FALSE(job.run(job.now + 5, true));
}

// ---- slow ranks

TEST(SlowRanks, OneOfEqualsIsNamedOnce) {
  SlowRanks slow;
  std::vector<RankView> ranks;
  for (int r = 0; r < 4; ++r) ranks.push_back(computing(r, {}));
  std::vector<std::string> said;
  int64_t ns = 0;
  for (int64_t step = 0; step < 60; ++step) {
    ns += 1'000'000'000;
    for (int r = 0; r < 4; ++r) {
      Heartbeat& b = ranks[static_cast<size_t>(r)].beat;
      const bool lazy = r == 2 && step >= 20 && step < 40;
      b.boundary_step = step;
      b.boundary_ns = ns;
      b.boundary_waited_ns += lazy ? 0 : 500'000'000;  // half of a step is its own work
    }
    for (const std::string& line : slow.update(ranks)) said.push_back(line);
    ASSERT_TRUE(step >= 20 || said.empty()) << said[0];
    ASSERT_TRUE(step != 36 || said.size() == 1) << "within 20 steps";
  }
  ASSERT_EQ(said.size(), 1u);
  EXPECT_NE(said[0].find("rank 2 is slow: 1.00 s of its own work a step, 2.0 times the median of the ranks with equal work"), std::string::npos) << said[0];
}

TEST(SlowRanks, UnequalStagesAreComparedWithTheirBeginning) {
  SlowRanks slow;
  std::vector<RankView> ranks{computing(0, {}), computing(1, {})};
  ranks[1].beat.stage = 1;
  std::vector<std::string> said;
  int64_t ns = 0;
  for (int64_t step = 0; step < 60; ++step) {
    ns += 1'000'000'000;
    ranks[0].beat.boundary_waited_ns += 200'000'000;
    ranks[1].beat.boundary_waited_ns += step < 30 ? 700'000'000 : 200'000'000;  // much less work than rank 0, then as much
    for (auto& r : ranks) {
      r.beat.boundary_step = step;
      r.beat.boundary_ns = ns;
    }
    for (const std::string& line : slow.update(ranks)) said.push_back(line);
    ASSERT_TRUE(step >= 30 || said.empty()) << said[0];
  }
  ASSERT_EQ(said.size(), 1u);
  EXPECT_NE(said[0].find("rank 1 is slow"), std::string::npos) << said[0];
}

// ---- over sockets, with real recorders

class Ranks {
 public:
  explicit Ranks(int size) {
    for (int r = 0; r < size; ++r) {
      statuses_.push_back(RankStatusWriter::from_environment());
      WatchOptions o{.rank = r, .size = size, .host = "host" + std::to_string(r), .peer_timeout_s = 0.4, .stall_timeout_s = 0.6,
                     .stall_report = ""};
      HubOffer offer;
      if (r == 0) {
        offer = make_hub(o, true);
        offer_ = offer.text;
      }
      status(r).set_step(0);
      status(r).flight().begin_step(0);
      watches_.push_back(std::make_unique<Watch>(o, std::move(offer.hub), offer_, status(r), [this, r](const Leave& l) {
        const std::scoped_lock lock(mutex_);
        left_.emplace_back(r, l);
        changed_.notify_all();
      }));
    }
  }
  RankStatusWriter& status(int r) { return *statuses_[static_cast<size_t>(r)]; }
  std::unique_ptr<Watch>& watch(int r) { return watches_[static_cast<size_t>(r)]; }
  const std::string& offer() const { return offer_; }
  /// What the ranks were told within the time, once `n` were.
  std::vector<std::pair<int, Leave>> left(size_t n, std::chrono::milliseconds limit = 5s) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, limit, [&] { return left_.size() >= n; });
    return left_;
  }

 private:
  std::vector<std::unique_ptr<RankStatusWriter>> statuses_;
  std::string offer_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::pair<int, Leave>> left_;
  std::vector<std::unique_ptr<Watch>> watches_;  // last: its threads use the others
};

TEST(Watch, TheStuckRankTellsItselfAndTheOthersLeaveQuietly) {
  Ranks ranks(3);
  for (const int r : {0, 2}) {
    FlightRecorder& f = ranks.status(r).flight();
    f.begin(Operation::kAllReduce, f.add_group("world"), 64);
  }
  ranks.status(1).flight().add_group("world");
  ranks.status(1).flight().action(Operation::kForward, 0, 4);
  const auto left = ranks.left(3);
  ASSERT_EQ(left.size(), 3u);
  for (const auto& [rank, l] : left) {
    EXPECT_EQ(l.kind, rank == 1 ? ReportKind::kPrimary : ReportKind::kSecondary) << rank << ": " << l.why;
    EXPECT_EQ(l.code, ExitCode::kTemporary);
    EXPECT_NE(l.why.find("in forward stage 0 micro-batch 4"), std::string::npos) << l.why;
  }
}

TEST(Watch, FarewellsEndInPeace) {
  Ranks ranks(3);
  std::this_thread::sleep_for(300ms);
  for (const int r : {2, 1, 0}) ranks.watch(r).reset();
  EXPECT_TRUE(ranks.left(1, 100ms).empty());
}

TEST(Watch, TheHubsEndIsNoticed) {
  Ranks ranks(2);
  std::this_thread::sleep_for(300ms);
  ranks.watch(0).reset();  // says farewell: rank 1 goes on alone
  EXPECT_TRUE(ranks.left(1, 700ms).empty());
}

TEST(Watch, StrangersAreDropped) {
  Ranks ranks(2);
  std::istringstream in(ranks.offer());
  std::string token;
  int port = 0;
  in >> token >> port;
  std::vector<int> sockets;
  for (int i = 0; i < 80; ++i) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_port = htons(static_cast<uint16_t>(port));
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&a), sizeof a), 0);
    const std::string words = i % 3 == 0 ? "GET / HTTP/1.1\r\n\r\n" : i % 3 == 1 ? to_frame(Hello{.token = "wrong", .host = "x", .rank = 1}) : "";
    if (!words.empty()) static_cast<void>(send(fd, words.data(), words.size(), MSG_NOSIGNAL));
    sockets.push_back(fd);
  }
  for (int i = 0; i < 6; ++i) {
    for (const int r : {0, 1}) ranks.status(r).tick();
    std::this_thread::sleep_for(100ms);
  }
  EXPECT_TRUE(ranks.left(1, 1ms).empty()) << "the job is not disturbed";
  char byte = 0;
  EXPECT_EQ(recv(sockets[0], &byte, 1, 0), 0) << "garbage was not dropped";
  EXPECT_EQ(recv(sockets[1], &byte, 1, 0), 0) << "a wrong token was not dropped";
  for (const int fd : sockets) close(fd);
}

// ---- the recording communicator

TEST(Recorded, OperationsAreRecordedWithGroupAndNumber) {
  std::vector<std::unique_ptr<RankStatusWriter>> statuses;
  for (int r = 0; r < 4; ++r) statuses.push_back(RankStatusWriter::from_environment());
  auto locals = make_local(4);
  std::vector<std::thread> threads;
  for (int r = 0; r < 4; ++r)
    threads.emplace_back([&, r] {
      auto world = make_recorded(std::move(locals[static_cast<size_t>(r)]), statuses[static_cast<size_t>(r)]->flight());
      auto pair = world->split(r / 2, r, fmt::format("pair {}", r / 2));
      float x = 1;
      const Tensor t{.data = &x, .dtype = DType::kF32, .shape = {1}, .device = {}};
      pair->all_reduce(t, ReduceOp::kSum, {});
      pair->all_reduce(t, ReduceOp::kSum, {});
      EXPECT_EQ(x, 4.0F);
      if (r % 2 == 0) pair->send(t, 1, {});
      else pair->recv(t, 0, {});
      world->barrier();
      pair->close();
      world->close();
    });
  for (std::thread& t : threads) t.join();
  const FlightData d = read_flight(statuses[3]->flight_memory());
  std::vector<std::string> texts;
  for (const FlightRecord& f : d.recent) {
    texts.push_back(describe(f, d));
    EXPECT_NE(f.end_ns, 0) << texts.back();
  }
  // A backend adds the members to the name: "pair 1[2,3]".
  const std::vector<std::string> expected{"split #1 of local", "all-reduce #1 of pair 1[2,3], 4 B", "all-reduce #2 of pair 1[2,3], 4 B",
                                          "receive of pair 1[2,3] with rank 2, 4 B", "barrier #2 of local"};
  ASSERT_EQ(texts.size(), expected.size());
  for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(texts[i].substr(0, expected[i].size()), expected[i]);
}

}  // namespace
}  // namespace r1::comm
