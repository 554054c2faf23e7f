#include "launch/gather.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "launch/control.h"
#include "runtime/core/error.h"
#include "runtime/core/host.h"

namespace r1::launch {
namespace {

constexpr const char* kAddresses = "R1RUN_GATHER_ADDRESSES";
constexpr const char* kPort = "R1RUN_GATHER_PORT";
constexpr const char* kToken = "R1RUN_GATHER_TOKEN";
constexpr std::string_view kGreeting = "r1run-gather-1 ";
constexpr size_t kHeaderLimit = 512, kTextLimit = 16u << 20, kPeerLimit = 4096;
constexpr double kHeaderLimit_s = 5;

/// Header fields: token, host, clock, length.
struct Header {
  std::string token, host;
  double clock_s = 0;
  size_t length = 0, bytes = 0;
};

std::optional<Header> parse_header(const std::string& bytes) {
  const size_t end = bytes.find('\n');
  if (end == std::string::npos || !bytes.starts_with(kGreeting)) return std::nullopt;
  Header h;
  h.bytes = end + 1;
  std::array<char, 129> token{};
  std::array<char, 257> host{};
  unsigned long long length = 0;
  const std::string line = bytes.substr(kGreeting.size(), end - kGreeting.size());
  if (std::sscanf(line.c_str(), "%128s %256s %lf %llu", token.data(), host.data(), &h.clock_s,
                  &length) != 4 ||
      length > kTextLimit)
    return std::nullopt;
  h.token = token.data();
  h.host = host.data();
  h.length = static_cast<size_t>(length);
  return h;
}

bool send_all(int fd, std::string_view bytes, double until) {
  while (!bytes.empty()) {
    pollfd p{fd, POLLOUT, 0};
    const double left = until - monotonic_s();
    if (left <= 0 || poll(&p, 1, static_cast<int>(left * 1e3) + 1) < 0) return false;
    const ssize_t n = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

Fd connect_to(const std::string& address, int port, double limit_s) {
  Fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  if (!fd || inet_pton(AF_INET, address.c_str(), &to.sin_addr) != 1) return {};
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)) != 0) {
    if (errno != EINPROGRESS) return {};
    pollfd p{fd.get(), POLLOUT, 0};
    int error = 0;
    socklen_t length = sizeof(error);
    if (poll(&p, 1, static_cast<int>(limit_s * 1e3)) != 1 ||
        getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length) != 0 || error != 0)
      return {};
  }
  return fd;
}

}  // namespace

GatherServer::GatherServer() : token_(random_token(32)) {
  listener_ = listen_tcp(INADDR_ANY, SOMAXCONN, &port_);
  R1_CHECK(static_cast<bool>(listener_), "no port to listen on: {}", std::strerror(errno));
}

std::vector<std::string> GatherServer::variable_names() { return {kAddresses, kPort, kToken}; }

std::vector<std::pair<std::string, std::string>> GatherServer::environment() const {
  return {{kAddresses, fmt::format("{}", fmt::join(contact_addresses(), ","))},
          {kPort, std::to_string(port_)},
          {kToken, token_}};
}

bool GatherServer::receiving() const {
  return std::any_of(peers_.begin(), peers_.end(), [](const Peer& p) { return p.known; });
}

bool GatherServer::serve(Peer* peer) {
  std::array<char, 65536> buffer;
  bool open = true;
  while (true) {
    const ssize_t n = recv(peer->socket.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (n > 0) {
      peer->bytes.append(buffer.data(), static_cast<size_t>(n));
      if (peer->bytes.size() > kHeaderLimit + kTextLimit) return false;
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    open = n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    break;
  }
  const auto header = parse_header(peer->bytes);
  if (!header) {
    // A stranger, or a header that is still on its way.
    return open && peer->bytes.find('\n') == std::string::npos &&
           peer->bytes.size() < kHeaderLimit && monotonic_s() - peer->since < kHeaderLimit_s;
  }
  if (!peer->known) {
    if (!same_secret(header->token, token_)) return false;
    peer->known = true;
  }
  if (peer->bytes.size() < header->bytes + header->length) return open;

  const double skew = header->clock_s - wall_clock_s();
  texts_.push_back({header->host, peer->bytes.substr(header->bytes, header->length), skew});
  [[maybe_unused]] const ssize_t n =
      send(peer->socket.get(), "ok\n", 3, MSG_DONTWAIT | MSG_NOSIGNAL);
  return false;
}

void GatherServer::service(int wait_ms) {
  std::vector<pollfd> fds{{listener_.get(), POLLIN, 0}};
  for (const Peer& p : peers_) fds.push_back({p.socket.get(), POLLIN, 0});
  if (poll(fds.data(), fds.size(), wait_ms) < 0 && errno != EINTR)
    throw InternalError("poll: {}", std::strerror(errno));
  while (peers_.size() < kPeerLimit) {
    Fd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) break;
    peers_.push_back({std::move(socket), "", monotonic_s(), false});
  }
  std::vector<Peer> kept;
  for (Peer& p : peers_)
    if (serve(&p)) kept.push_back(std::move(p));
  peers_ = std::move(kept);
}

bool can_gather(const Environment& env) {
  return env.has(kAddresses) && env.has(kPort) && env.has(kToken);
}

bool send_gathered(const Environment& env, const std::string& host, const std::string& text,
                   double limit_s) {
  const auto port = env.number(kPort);
  std::string addresses = env.get(kAddresses).value_or("");
  if (!port || *port <= 0 || *port > 65535) return false;
  const double until = monotonic_s() + limit_s;
  while (!addresses.empty()) {
    const size_t comma = std::min(addresses.find(','), addresses.size());
    const std::string address = addresses.substr(0, comma);
    addresses.erase(0, comma + 1);
    const Fd fd = connect_to(address, static_cast<int>(*port), std::min(3.0, limit_s));
    if (!fd) continue;
    const std::string bytes =
        fmt::format("{}{} {} {:.6f} {}\n{}", kGreeting, env.get(kToken).value_or(""), host,
                    wall_clock_s(), text.size(), text);
    if (!send_all(fd.get(), bytes, until)) continue;
    pollfd p{fd.get(), POLLIN, 0};
    std::array<char, 8> answer{};
    if (poll(&p, 1, static_cast<int>(std::max(0.0, until - monotonic_s()) * 1e3) + 1) == 1 &&
        recv(fd.get(), answer.data(), answer.size(), 0) > 0)
      return true;
  }
  return false;
}

}  // namespace r1::launch
