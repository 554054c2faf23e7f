#include "launch/control.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "launch/hostfile.h"
#include "runtime/core/error.h"
#include "runtime/core/host.h"

namespace r1::launch {
namespace {

constexpr size_t kWaitingLimit = 64;
constexpr double kHelloLimit_s = 2;
constexpr size_t kLineLimit = 512;
constexpr std::string_view kGreeting = "r1run-control-1 ";
constexpr char kBeat[] = "h\n", kEnd[] = "e\n";

/// Reads what is there. False at the end of the stream or on an error.
bool read_available(const Fd& fd, std::string* into) {
  std::array<char, 1024> buffer;
  while (into->size() <= kLineLimit) {
    const ssize_t n = recv(fd.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (n > 0) {
      into->append(buffer.data(), static_cast<size_t>(n));
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
  }
  return true;
}

void send_text(const Fd& fd, std::string_view text) {
  // Heartbeats are tiny: when the socket's buffer is full the peer is gone, and silence will say
  // so.
  [[maybe_unused]] const ssize_t n =
      send(fd.get(), text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

}  // namespace

std::vector<std::string> addresses_of(std::string_view contact) {
  std::vector<std::string> out;
  constexpr std::string_view kScheme = "tcp://";
  size_t from = contact.find(kScheme);
  if (from == std::string_view::npos) return out;
  from += kScheme.size();
  std::string_view list = contact.substr(from, contact.find(';', from) - from);
  list = list.substr(0, list.rfind(':'));
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    const std::string address(list.substr(0, comma));
    list.remove_prefix(std::min(list.size(), comma + 1));
    in_addr ignored{};
    if (inet_pton(AF_INET, address.c_str(), &ignored) == 1) out.push_back(address);
  }
  return out;
}

std::vector<std::string> contact_addresses() {
  std::vector<std::string> out = own_addresses();
  out.emplace_back("127.0.0.1");
  return out;
}

ControlServer::ControlServer() : token_(random_token(32)) {
  listener_ = listen_tcp(INADDR_ANY, 1024, &port_);
  R1_CHECK(static_cast<bool>(listener_), "cannot listen for the hosts of the job: {}", std::strerror(errno));
}

ControlServer::~ControlServer() = default;

bool ControlServer::serve(Peer* peer) {
  const double now = monotonic_s();
  bool open = read_available(peer->socket, &peer->partial);
  for (size_t nl = peer->partial.find('\n'); nl != std::string::npos;
       nl = peer->partial.find('\n')) {
    const std::string line = peer->partial.substr(0, nl);
    peer->partial.erase(0, nl + 1);
    if (peer->host.empty()) {
      const std::string_view rest =
          std::string_view(line).substr(std::min(line.size(), kGreeting.size()));
      const size_t blank = rest.find(' ');
      if (!line.starts_with(kGreeting) || blank == std::string_view::npos ||
          !same_secret(rest.substr(0, blank), token_))
        return false;
      const std::string host(rest.substr(blank + 1));
      try {
        check_host_name(host, "control channel");
      } catch (const UsageError&) {
        if (host.empty() || host.size() > 64)
          return false;  // machines may call themselves what no hostfile would
      }
      peer->host = host;
    }
    last_heard_[peer->host] = now;
    send_text(peer->socket, kBeat);
  }
  if (peer->partial.size() > kLineLimit) return false;
  if (peer->host.empty() && now - peer->since > kHelloLimit_s) return false;
  return open;
}

void ControlServer::service() {
  while (true) {
    Fd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) break;
    const auto waiting =
        std::count_if(peers_.begin(), peers_.end(), [](const Peer& p) { return p.host.empty(); });
    if (static_cast<size_t>(waiting) >= kWaitingLimit) continue;  // closed at once
    peers_.push_back(Peer{std::move(socket), "", "", monotonic_s()});
  }
  std::vector<Peer> kept;
  kept.reserve(peers_.size());
  for (Peer& p : peers_)
    if (serve(&p)) kept.push_back(std::move(p));
  peers_ = std::move(kept);
}

std::vector<std::string> ControlServer::connected() const {
  std::vector<std::string> hosts;
  for (const Peer& p : peers_)
    if (!p.host.empty() && std::ranges::find(hosts, p.host) == hosts.end()) hosts.push_back(p.host);
  return hosts;
}

void ControlServer::end_all() {
  for (const Peer& p : peers_)
    if (!p.host.empty()) send_text(p.socket, kEnd);
}

ControlClient::ControlClient(std::vector<std::string> addresses, int port, std::string token,
                             std::string host, double peer_timeout_s)
    : addresses_(std::move(addresses)),
      port_(port),
      hello_(fmt::format("{}{} {}\n", kGreeting, token, host)),
      interval_s_(peer_timeout_s / 4),
      peer_timeout_s_(peer_timeout_s) {
  connect_next();
}

void ControlClient::connect_next() {
  connected_ = false;
  socket_.reset();
  if (addresses_.empty()) return;
  const std::string& address = addresses_[next_address_++ % addresses_.size()];
  socket_ = Fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port_));
  inet_pton(AF_INET, address.c_str(), &to.sin_addr);
  started_ = monotonic_s();
  if (socket_ && connect(socket_.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)) != 0 &&
      errno != EINPROGRESS)
    socket_.reset();
  const int on = 1;
  if (socket_) setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

void ControlClient::service() {
  const double now = monotonic_s();
  if (addresses_.empty()) return;
  if (!socket_) {
    if (now - started_ > interval_s_) connect_next();
    return;
  }
  if (!connected_) {
    pollfd p{socket_.get(), POLLOUT, 0};
    int error = 0;
    socklen_t length = sizeof(error);
    if (poll(&p, 1, 0) == 1) {
      getsockopt(socket_.get(), SOL_SOCKET, SO_ERROR, &error, &length);
      if (error != 0) {
        socket_.reset();
        return;
      }
      connected_ = true;
      send_text(socket_, hello_);
      next_beat_ = now + interval_s_;
    } else if (now - started_ > peer_timeout_s_) {
      connect_next();  // an address on another network may swallow the attempt
    }
    return;
  }
  std::string heard;
  const bool open = read_available(socket_, &heard);
  if (!heard.empty()) last_heard_ = now;
  asked_to_end_ = asked_to_end_ || heard.find(kEnd[0]) != std::string::npos;
  if (!open) {
    socket_.reset();
    return;
  }
  if (now >= next_beat_) {
    send_text(socket_, kBeat);
    next_beat_ = now + interval_s_;
  }
}

double ControlClient::silence_s() const {
  return last_heard_ == 0 ? 0 : monotonic_s() - last_heard_;
}

}  // namespace r1::launch
