// What a process asks its machine.
#include "runtime/core/host.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <set>

namespace r1 {
namespace {

TEST(Host, TokensAreHexAndNeverTheSame) {
  std::set<std::string> seen;
  for (int i = 0; i < 100; ++i) {
    const std::string token = random_token(16);
    EXPECT_EQ(token.size(), 32u);
    EXPECT_EQ(token.find_first_not_of("0123456789abcdef"), std::string::npos) << token;
    EXPECT_TRUE(seen.insert(token).second);
  }
}

TEST(Host, SecretsAreEqualOnlyWhenAllOfThemIs) {
  EXPECT_TRUE(same_secret("", ""));
  EXPECT_TRUE(same_secret("secret", "secret"));
  for (const char* other : {"", "s", "secre", "secrets", "Secret", "secreT", "terces"}) EXPECT_FALSE(same_secret("secret", other)) << other;
}

TEST(Host, TheMonotonicClocksAreOneClock) {
  const int64_t before = monotonic_ns();
  const double between = monotonic_s();
  const int64_t after = monotonic_ns();
  EXPECT_LE(static_cast<double>(before) * 1e-9, between + 1e-6);
  EXPECT_LE(between, static_cast<double>(after) * 1e-9 + 1e-6);
}

TEST(Host, AddressesAreNotOfTheLoopback) {
  for (const std::string& address : own_addresses()) EXPECT_FALSE(address.starts_with("127.")) << address;
}

TEST(Host, APortTakesConnectionsAndIsFreedWithItsOwner) {
  int port = 0;
  Fd listener = listen_tcp(INADDR_LOOPBACK, 8, &port);
  ASSERT_TRUE(listener);
  ASSERT_GT(port, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const auto connects = [&] {
    const Fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    return connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0;
  };
  EXPECT_TRUE(connects());
  pollfd p{listener.get(), POLLIN, 0};
  EXPECT_EQ(poll(&p, 1, 5000), 1);
  const Fd peer(accept(listener.get(), nullptr, nullptr));
  EXPECT_TRUE(peer);
  listener.reset();
  EXPECT_FALSE(connects());
}

TEST(Host, ADescriptorHasOneOwner) {
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  Fd a(fds[0]);
  const Fd writer(fds[1]);
  Fd b(std::move(a));
  EXPECT_FALSE(a);  // NOLINT(bugprone-use-after-move): what a move leaves is the point
  EXPECT_EQ(b.get(), fds[0]);
  a = std::move(b);
  EXPECT_EQ(a.get(), fds[0]);
  const int released = a.release();
  EXPECT_FALSE(a);
  EXPECT_EQ(close(released), 0);
}

}  // namespace
}  // namespace r1
