// Hostfiles, node lists and rankfiles: real files with their correct readings, Open MPI's own
// reading as the oracle over generated files, and hostile input.
#include "launch/hostfile.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <random>
#include <semaphore>
#include <sstream>

#include "launch/process.h"
#include "run_program.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

const std::string kData = std::string(R1RUN_TEST_DATA) + "/topology/";

std::string refusal(const std::string& text, NodefileKind kind = NodefileKind::kHostfile) {
  try {
    (void)parse_hostfile(text, "hosts.txt", kind);
  } catch (const UsageError& e) {
    return e.what();
  }
  return "accepted";
}

std::vector<std::string> names(const Cluster& c) {
  std::vector<std::string> out;
  for (const auto& h : c.hosts) out.push_back(h.name + "=" + std::to_string(h.slots));
  return out;
}

using Names = std::vector<std::string>;

// -- real files

TEST(HostfileData, Readings) {
  const auto read = [](const std::string& f) { return read_hostfile(kData + "hostfiles/" + f); };
  EXPECT_EQ(names(read("gdgpt.hostfile")), (Names{"node1=8", "node2=2", "node3=4", "node4=1"}));
  EXPECT_EQ(names(read("mpi-spawn-test.hostfile")), (Names{"s11n01=1", "s11n02=1"}));
  EXPECT_EQ(read("mpi-spawn-test.hostfile").hosts[0].max_slots, 20);
  EXPECT_EQ(names(read("mpich-issue1575-repeated.hostfile")),
            (Names{"s13n09=6", "s13n10=2", "s13n11=2"}));
  EXPECT_EQ(read("mpi-operator-pi.hostfile").total_slots(), 2);
  EXPECT_FALSE(read("mpi-operator-pi.hostfile").keep_fqdn);
  const Cluster fqdn = read("ompi-issue4732-fqdn-slots.hostfile");
  EXPECT_EQ(names(fqdn), (Names{"mpi-worker.1.foo.net=2", "mpi-worker.2.foo.net=2"}));
  EXPECT_TRUE(fqdn.keep_fqdn);
  EXPECT_EQ(fqdn.warnings.size(), 1u);
  EXPECT_EQ(read("ompi-orte_hosts-dummyhosts.hostfile").total_slots(), 20);
  EXPECT_EQ(names(read("deepspeed-good.hostfile")),
            (Names{"worker-1=2", "worker-2=2", "localhost=1", "123.23.12.10=2"}));
}

TEST(HostfileData, Refusals) {
  const auto says = [](const std::string& f) -> std::string {
    try {
      (void)read_hostfile(kData + "hostfiles/" + f);
    } catch (const UsageError& e) {
      return e.what();
    }
    return "accepted";
  };
  EXPECT_NE(says("deepspeed-bad-duplicate.hostfile")
                .find(":4: host \"worker-1\" is named a second time (first in line 2"),
            std::string::npos)
      << says("deepspeed-bad-duplicate.hostfile");
  EXPECT_NE(says("deepspeed-bad-spaces.hostfile").find(":2: stray word \"is\""), std::string::npos);
  EXPECT_NE(says("ompi-orte_hosts-mylayout-relative.hostfile").find(":1: relative host \"+n2\""),
            std::string::npos);
  EXPECT_NE(says("no-such-file").find("No such file"), std::string::npos);
  EXPECT_NE(says("../hostfiles").find("cannot be read"), std::string::npos) << says("../hostfiles");
}

TEST(HostfileData, Rankfile) {
  std::ifstream in(kData + "hostfiles/ompi-orterun-man.rankfile");
  std::stringstream text;
  text << in.rdbuf();
  const auto r = parse_rankfile(text.str(), "rankfile");
  using Part = RankfileEntry::Part;
  ASSERT_EQ(r.size(), 3u);
  EXPECT_EQ(r[0].host, "aa");
  EXPECT_EQ(r[0].parts, (std::vector<Part>{{1, {{0, 2}}}}));
  EXPECT_EQ(r[1].parts, (std::vector<Part>{{0, {{0, 0}, {1, 1}}}}));
  EXPECT_EQ(r[2].parts, (std::vector<Part>{{-1, {{1, 2}}}}));
}

// -- the grammar

TEST(Hostfile, WhatOpenMpiAccepts) {
  const auto one = [](const std::string& text) { return parse_hostfile(text, "f").hosts.at(0); };
  EXPECT_EQ(one("  a slots = 3  # c\n").slots, 3);
  EXPECT_EQ(one("a cpu=3 // c\n").slots, 3);
  EXPECT_EQ(one("a count= 3\n").slots, 3);
  EXPECT_EQ(one("a slots=010\n").slots, 10);
  EXPECT_EQ(one("a max-slots=4\n").slots, 4);
  EXPECT_EQ(one("a slots=2 max_cpu=4\n").max_slots, 4);
  EXPECT_EQ(one("a count-max=4\n").max_slots, 4);
  EXPECT_EQ(one("joe@a slots=2\n").user, "joe");
  EXPECT_EQ(one("a username=joe port=2222 slots=2\n").port, 2222);
  EXPECT_EQ(one("/* x\n y */\n\n12 slots=2\n").name, "12");
  EXPECT_EQ(one("fe80::1 slots=2\n").name, "fe80::1");
  EXPECT_EQ(one("a /* gap */ slots=2\n").slots, 2);
  EXPECT_EQ(one("a slots=2\na\n").slots, 3);
}

TEST(Hostfile, Warnings) {
  EXPECT_EQ(parse_hostfile("a slots=2\n", "f").warnings.size(), 0u);
  EXPECT_NE(parse_hostfile("a slots=2\r\nb slots=2\r\n", "f").warnings.at(0).find("CRLF"),
            std::string::npos);
  EXPECT_NE(parse_hostfile("a slots=2", "f").warnings.at(0).find("newline"), std::string::npos);
  EXPECT_NE(parse_hostfile("a\n", "f").warnings.at(0).find("without a slot count"),
            std::string::npos);
  EXPECT_EQ(parse_hostfile("a\na\nb\n", "f", NodefileKind::kPbs).warnings.size(), 0u);
}

TEST(Hostfile, RefusedWithFileLineAndReason) {
  const auto expect = [](const std::string& text, const std::string& part) {
    EXPECT_NE(refusal(text).find(part), std::string::npos) << text << "\n-> " << refusal(text);
  };
  expect("", "names no host");
  expect("# only\n\n", "names no host");
  expect("a slots=1\nnode:2\n", "hosts.txt:2: \"node:2\": host:count is the form of --host");
  expect("a;b slots=1\n", "character ';'");
  expect("$(id) slots=1\n", "character '$'");
  expect("`id` slots=1\n", "character '`'");
  expect("-oProxyCommand=x slots=1\n", "hosts.txt:1");
  expect("-a slots=1\n", "starts or ends with \"-\"");
  expect("a_b slots=1\n", "character '_'");
  expect("a..b slots=1\n", "empty part");
  expect("999.1.1.1 slots=1\n", "IPv4");
  expect("a slots=0\n", "from 1 to");
  expect("a slots=-4\n", "from 1 to");
  expect("a slots=two\n", "from 1 to");
  expect("a slots=99999999999\n", "from 1 to");
  expect("a slots=2147483648\n", "from 1 to");
  expect("a slots=2 slots=2\n", "given twice");
  expect("a slots=2 max_slots=1\n", "below");
  expect("a slotz=2\n", "did you mean slots?");
  expect("a Slots=2\n", "unknown key");
  expect("a boards=2\n", "unknown key");
  expect("a slots=\n", "no value");
  expect("a =2\n", "hosts.txt:1");
  expect("slots=2\n", "expected a host name first");
  expect("a slots=2 b slots=2\n", "stray word \"b\"");
  expect("+e\n", "relative host");
  expect("A slots=2\na slots=2\n", "only in case");
  expect("a slots=2\na slots=2\n", "second time");
  expect("a\na slots=2\n", "second time");
  expect("a /* open\n", "not closed");
  expect("joe;x@a slots=1\n", "user name");
  expect("-o@a slots=1\n", "user name");
  expect(std::string("a\0b slots=1\n", 12), "\\x00");
  expect(std::string(300, 'a') + " slots=1\n", "at most 253");
  expect(std::string(100000, 'a') + "\n", "line of 100000 characters");
  expect(std::string(64, 'a') + " slots=1\n", "at most 63");
  expect("a slots=1 # r1run: topologie=x\n", "did you mean topology?");
}

TEST(Hostfile, AnnotationsLiveInComments) {
  const std::string text =
      "# r1run: topology=t.xml rack=r1\nnodea slots=4\nnodeb slots=4 # r1run: tier=production "
      "rack=r2\n# plain comment\n"
      "# r1run: rack=r3\nnodec slots=4\n";
  const Cluster c = parse_hostfile(text, "f");
  using Map = std::map<std::string, std::string>;
  EXPECT_EQ(c.hosts[0].annotations, (Map{{"topology", "t.xml"}, {"rack", "r1"}}));
  EXPECT_EQ(c.hosts[1].annotations,
            (Map{{"topology", "t.xml"}, {"rack", "r2"}, {"tier", "production"}}));
  EXPECT_EQ(c.hosts[2].annotations, (Map{{"rack", "r3"}}));
}

TEST(Hostfile, PrintedFormParsesBack) {
  std::mt19937 rng(20240601);
  for (int round = 0; round < 300; ++round) {
    SCOPED_TRACE(round);
    std::string text;
    for (auto i = rng() % 20 + 1; i > 0; --i) {
      const auto slots = 1 + rng() % 9;
      text +=
          fmt::format("{}n{}{}", rng() % 5 == 0 ? "joe@" : "", i, rng() % 3 == 0 ? ".x.net" : "");
      if (rng() % 4 != 0) text += fmt::format(" slots={}", slots);
      if (rng() % 4 == 0) text += fmt::format(" max_slots={}", slots + 3);
      if (rng() % 4 == 0) text += fmt::format(" port={}", 1 + rng() % 60000);
      text += "\n";
    }
    Cluster a = parse_hostfile(text, "f");
    const Cluster b = parse_hostfile(openmpi_hostfile(a), "f");
    for (auto& h : a.hosts) h.slots_given = true;  // the printed form always says it
    ASSERT_EQ(a.hosts, b.hosts) << text;
    EXPECT_TRUE(b.warnings.empty());
  }
}

// Bytes from a hostile hand: an error or a cluster of valid names, and quickly.
TEST(Hostfile, RandomBytesNeverPass) {
  std::mt19937 rng(7);
  const std::string alphabet = "ab1.-_:@+=#/*,; \t\n\r\"'$`\\[]slots max_slots=3";
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    const size_t n = rng() % 60;
    for (size_t i = 0; i < n; ++i)
      text += rng() % 20 == 0 ? static_cast<char>(rng() % 256) : alphabet[rng() % alphabet.size()];
    try {
      const Cluster c = parse_hostfile(text, "f");
      for (const auto& h : c.hosts) {
        EXPECT_NO_THROW(check_host_name(h.name, "f"));
        EXPECT_GE(h.slots, 1);
      }
    } catch (const UsageError&) {
    }
  }
  const std::string big(10u << 20, 'x');
  EXPECT_NE(refusal(big).find("line of"), std::string::npos);
}

TEST(HostList, CommandLineForms) {
  EXPECT_EQ(names(parse_host_list("a:2,b:3", "--host")), (Names{"a=2", "b=3"}));
  EXPECT_EQ(names(parse_host_list("a,b,b", "--host")), (Names{"a=1", "b=2"}));
  EXPECT_EQ(names(parse_host_list("joe@a", "--host")), (Names{"a=1"}));
  const auto says = [](const char* text) {
    try {
      (void)parse_host_list(text, "--host");
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  // No file, no line: the option and the entry.
  EXPECT_TRUE(says("b,a:2,a:2").starts_with("--host entry 3 (\"a:2\"): host \"a\" is named a second time (first in entry 2 (\"a:2\"))"))
      << says("b,a:2,a:2");
  EXPECT_TRUE(says("joe@a,ann@a").starts_with("--host entry 2 (\"ann@a\"): host \"a\" has user \"ann\" here")) << says("joe@a,ann@a");
  EXPECT_EQ(says("b,a:2,a:2").find("line"), std::string::npos);
  for (const char* bad : {"", "a,,b", "a:", "a:0", "a:x", "a b", "a;b", ":2", "a:2,a:2"})
    EXPECT_THROW((void)parse_host_list(bad, "--host"), UsageError) << bad;
}

// -- Slurm

TEST(NodeList, TableOfExpressions) {
  std::ifstream in(kData + "slurm/hostlists.tsv");
  std::string line;
  std::getline(in, line);
  int rows = 0;
  while (std::getline(in, line)) {
    std::vector<std::string> f;
    std::stringstream cells(line);
    for (std::string cell; std::getline(cells, cell, '\t');) f.push_back(cell);
    ASSERT_EQ(f.size(), 8u) << line;
    SCOPED_TRACE(f[0] + " " + f[2]);
    ++rows;
    // Malformed rows are refused, also where Slurm 22.05 answers; text after a bracket is taken,
    // where it is not.
    if (f[0][0] == 'b') {
      EXPECT_THROW((void)expand_node_list(f[2], "x"), UsageError);
      continue;
    }
    const auto got = expand_node_list(f[2], "x");
    const std::string want = f[4] == "ERROR" ? f[6] : f[4];
    EXPECT_EQ(got.size(), std::stoul(f[4] == "ERROR" ? f[5] : f[3]));
    std::string joined, lines;
    for (const auto& name : got) {
      joined += (joined.empty() ? "" : " ") + name;
      lines += name + "\n";
    }
    if (want.find(" .. ") == std::string::npos) {
      EXPECT_EQ(joined, want);
    } else {
      EXPECT_EQ(got.front(), want.substr(0, want.find(' ')));
      const std::string hash = want.substr(want.rfind('=') + 1);
      test::TemporaryDirectory dir;
      std::ofstream(dir.path() / "list") << lines;
      const auto r = test::run({"sha256sum", (dir.path() / "list").string()});
      EXPECT_EQ(r.output.substr(0, hash.size()), hash);
    }
  }
  EXPECT_GE(rows, 25);
}

TEST(NodeList, Grammar) {
  EXPECT_EQ(expand_node_list("a[1-2]b[3-4]", "x"), (Names{"a1b3", "a1b4", "a2b3", "a2b4"}));
  EXPECT_EQ(expand_node_list("n[1-2]-ib,n[1-2].dom", "x"),
            (Names{"n1-ib", "n2-ib", "n1.dom", "n2.dom"}));
  EXPECT_EQ(expand_node_list("n[098-102]", "x"), (Names{"n098", "n099", "n100", "n101", "n102"}));
  EXPECT_EQ(expand_node_list(" a, b ,,", "x"), (Names{"a", "b"}));
  EXPECT_TRUE(expand_node_list("", "x").empty());
  for (const char* bad : {"n[1", "n]", "n[]", "n[3-1]", "n[1 - 3]", "n[1-3", "n[[1]]", "n[a]",
                          "n[1,]", "n[-1]", "n[1-2-3]", "n[1-4/2]", "n[0-99999999]",
                          "n[1-9]x[1-9999]y[1-9999]", "n[99999999999999999999]", "a;b"})
    EXPECT_THROW((void)expand_node_list(bad, "x"), UsageError) << bad;
}

TEST(NodeList, TasksPerNode) {
  std::ifstream in(kData + "slurm/tasks-per-node.tsv");
  std::string line;
  std::getline(in, line);
  int rows = 0;
  while (std::getline(in, line)) {
    std::vector<std::string> f;
    std::stringstream cells(line);
    for (std::string cell; std::getline(cells, cell, '\t');) f.push_back(cell);
    std::string joined;
    for (const int n : expand_counts(f[0], "x"))
      joined += fmt::format("{}{}", joined.empty() ? "" : " ", n);
    EXPECT_EQ(joined, f[1]) << f[0];
    ++rows;
  }
  EXPECT_GE(rows, 5);
  EXPECT_EQ(expand_counts("2(x10),5,100(x16)", "x").size(), 27u);
  for (const char* bad :
       {"", "2(", "2(x", "2(x)", "2(3)", "(x2)", "0", "2,,3", "2(x99999999)", "-1"})
    EXPECT_THROW((void)expand_counts(bad, "x"), UsageError) << bad;
  const Cluster c = slurm_cluster("n[1-3]", "3,1(x2)");
  EXPECT_EQ(names(c), (Names{"n1=3", "n2=1", "n3=1"}));
  EXPECT_THROW((void)slurm_cluster("n[1-3]", "4(x2)"), UsageError);
}

TEST(HostList, TakesFromAHostfile) {
  const Cluster file = parse_hostfile("a slots=4\nb slots=4\nc slots=2\n", "f");
  const Cluster some = filtered(file, "c,a:3");
  ASSERT_EQ(some.hosts.size(), 2U);
  EXPECT_EQ(some.hosts[0].name, "c");
  EXPECT_EQ(some.total_slots(), 5);
  EXPECT_EQ(filtered(file, "b,b").total_slots(), 2);
  EXPECT_EQ(filtered(file, "b:1").total_slots(), 1);
  EXPECT_EQ(filtered(parse_hostfile("ab slots=2\nb slots=3\n", "f"), "ab:1,b").total_slots(), 4);
  for (const auto& [list, says] : {std::pair{"d", "d is not in f"}, std::pair{"c:3", "f:3 gives it 2"}}) {
    try {
      (void)filtered(file, list);
      ADD_FAILURE() << list;
    } catch (const UsageError& e) {
      EXPECT_NE(std::string(e.what()).find(says), std::string::npos) << e.what();
    }
  }
}

TEST(Rankfile, PrintedFormParsesBack) {
  const auto entries = parse_rankfile("rank 0=a slot=0-3,8\nrank 1=b slots=1:0-2\nrank 2=b slot=0:*\nrank 3=a slot=0:0;1:1\n", "f");
  const auto again = parse_rankfile(rankfile_text(entries), "g");
  ASSERT_EQ(again.size(), entries.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    EXPECT_EQ(again[i].host, entries[i].host);
    EXPECT_EQ(again[i].parts, entries[i].parts);
  }
  const Cluster c = rankfile_cluster(entries, "f");
  ASSERT_EQ(c.hosts.size(), 2U);
  EXPECT_EQ(c.hosts[1].slots, 2);
}

TEST(Rankfile, Grammar) {
  using Part = RankfileEntry::Part;
  const auto parts = [](const std::string& list) {
    return parse_rankfile("rank 0=a slot=" + list + "\n", "f").at(0).parts;
  };
  EXPECT_EQ(parts("0"), (std::vector<Part>{{-1, {{0, 0}}}}));
  EXPECT_EQ(parts("0-3,5"), (std::vector<Part>{{-1, {{0, 3}, {5, 5}}}}));
  EXPECT_EQ(parts("0:*"), (std::vector<Part>{{0, {}}}));
  EXPECT_EQ(parts("0:0;1:1"), (std::vector<Part>{{0, {{0, 0}}}, {1, {{1, 1}}}}));
  const auto says = [](const std::string& text) -> std::string {
    try {
      (void)parse_rankfile(text, "f");
    } catch (const UsageError& e) {
      return e.what();
    }
    return "accepted";
  };
  EXPECT_NE(says("rank 1=a slot=0\n").find("rank 0 has no line"), std::string::npos);
  EXPECT_NE(says("rank 0=a slot=0\nrank 0=b slot=0\n").find("f:2: rank 0 is placed a second time"),
            std::string::npos);
  EXPECT_NE(says("rank 0=+n1 slot=0\n").find("relative"), std::string::npos);
  EXPECT_NE(says("rank 0=a\n").find("expected slot=CORES"), std::string::npos);
  EXPECT_NE(says("rank 0=a slot=3-1\n").find("backwards"), std::string::npos);
  EXPECT_NE(says("rank 0=a slot=*\n").find("a core"), std::string::npos);
  EXPECT_NE(says("").find("places no rank"), std::string::npos);
}

// -- oracles

/// What Open MPI makes of a hostfile: total slots, or -1 when it refuses.
int openmpi_total(const std::string& text, bool keep_fqdn) {
  const test::TemporaryDirectory dir;
  const std::string file = (dir.path() / "hosts").string();
  std::ofstream(file) << text;
  auto env = test::mpi_environment();
  env.emplace_back("RES_OPTIONS",
                   "timeout:1 attempts:1");  // it asks the name service about every name
  const auto r = test::run(
      {"mpirun", "--do-not-launch", "--display-allocation", "--mca", "plm", "isolated", "--mca",
       "orte_keep_fqdn_hostnames", keep_fqdn ? "1" : "0", "--hostfile", file, "-np", "1", "true"},
      60, env);
  const std::string mark = "Total slots allocated ";
  const size_t at = r.output.find(mark);
  return at == std::string::npos ? -1 : std::atoi(r.output.c_str() + at + mark.size());
}

TEST(HostfileOracle, OpenMpiAgrees) {
  if (!find_in_path("mpirun", std::getenv("PATH"))) GTEST_SKIP() << "no mpirun in $PATH";
  std::mt19937 rng(11);
  std::vector<std::string> texts;
  for (const auto& e : std::filesystem::directory_iterator(kData + "hostfiles"))
    if (e.path().extension() == ".hostfile") {
      std::ifstream in(e.path());
      std::stringstream t;
      t << in.rdbuf();
      texts.push_back(t.str());
    }
  const std::vector<std::string> keys{"slots",     "cpu",     "count",    "max_slots",
                                      "slots-max", "cpu_max", "max-count"};
  for (int round = 0; round < 8; ++round) {
    std::string text;
    for (auto i = rng() % 6 + 1; i > 0; --i) {
      if (rng() % 4 == 0) text += "// comment\n\n";
      text += fmt::format("{:{}}h{}{}", "", rng() % 3, rng() % 4, rng() % 4 == 0 ? ".dom.net" : "");
      if (rng() % 2 == 0) text += fmt::format(" {} = {}", keys[rng() % keys.size()], 1 + rng() % 5);
      text += rng() % 5 == 0 ? " # c\n" : "\n";
    }
    texts.push_back(text);
  }
  // Four at a time: an mpirun that meets unknown names mostly waits.
  struct Case {
    std::string text, refused;
    int ours = -1;
    std::future<int> theirs, clean;
  };
  std::vector<Case> cases(texts.size());
  std::counting_semaphore<4> turns(4);
  const auto ask = [&turns](const std::string& hosts, bool keep) {
    return std::async(std::launch::async, [&turns, hosts, keep] {
      turns.acquire();
      const int total = openmpi_total(hosts, keep);
      turns.release();
      return total;
    });
  };
  for (size_t i = 0; i < texts.size(); ++i) {
    Case& c = cases[i];
    c.text = texts[i];
    bool keep_fqdn = true;
    try {
      const Cluster cluster = parse_hostfile(c.text, "f");
      c.ours = cluster.total_slots();
      keep_fqdn = cluster.keep_fqdn;
      if (i % 4 == 0) c.clean = ask(openmpi_hostfile(cluster), keep_fqdn);
    } catch (const UsageError& e) {
      c.refused = e.what();
    }
    c.theirs = ask(c.text, keep_fqdn);
  }
  int agreed = 0;
  for (Case& c : cases) {
    SCOPED_TRACE(c.text + c.refused);
    const int theirs = c.theirs.get();
    if (c.clean.valid()) {
      EXPECT_EQ(c.clean.get(), c.ours);
    }
    // Stricter than Open MPI on purpose: stray words, and more mentions than max_slots allows.
    const bool stricter = c.refused.find("stray word") != std::string::npos ||
                          c.refused.find("below its") != std::string::npos;
    if (stricter) continue;
    EXPECT_EQ(theirs, c.ours);
    agreed += c.refused.empty();
  }
  EXPECT_GE(agreed, 8);
}

TEST(HostfileOracle, SlurmAgrees) {
  if (!find_in_path("scontrol", std::getenv("PATH")))
    GTEST_SKIP() << "no scontrol in $PATH (Debian: slurm-client)";
  const test::TemporaryDirectory dir;
  const std::string conf = (dir.path() / "slurm.conf").string();
  std::ofstream(conf) << "ClusterName=x\nSlurmctldHost=localhost\nNodeName=localhost\n";
  std::mt19937 rng(5);
  for (int round = 0; round < 30; ++round) {
    std::string text;
    for (int i = 0, n = 1 + static_cast<int>(rng() % 3); i < n; ++i) {
      text += fmt::format("{}n{}", i > 0 ? "," : "", rng() % 3);
      for (int b = 0, brackets = static_cast<int>(rng() % 3); b < brackets; ++b) {
        const auto lo = rng() % 12;
        text += fmt::format("{}[{}{}-{},{}]", b > 0 ? "x" : "-", rng() % 2 == 0 ? "0" : "", lo,
                            lo + rng() % 5, rng() % 30);
      }
    }
    SCOPED_TRACE(text);
    const auto r = test::run({"scontrol", "show", "hostnames", text}, 20, {{"SLURM_CONF", conf}});
    std::string ours;
    for (const auto& n : expand_node_list(text, "x")) ours += n + "\n";
    EXPECT_EQ(ours, r.output);
  }
}

}  // namespace
}  // namespace r1::launch
