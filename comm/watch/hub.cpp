#include "comm/watch/hub.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "runtime/core/error.h"
#include "runtime/core/host.h"

namespace r1::comm {
namespace {

constexpr size_t kMaxStrangers = 64;
constexpr double kStrangerTime_s = 2.0;
/// A parent process that saw its rank die tells it within this time, and the launcher begins to end the others.
constexpr double kOthersSpeak_s = 1.5;
/// A pause of this process longer than this accuses nobody.
constexpr double kOwnPause_s = 1.0;

}  // namespace

// ---- what is concluded

Judge::Judge(const WatchOptions& options)
    : o_(options), views_(static_cast<size_t>(options.size)), heard_at_(static_cast<size_t>(options.size)),
      ended_at_(static_cast<size_t>(options.size)) {}

void Judge::joined(int rank, const std::string& host, double now) {
  views_[static_cast<size_t>(rank)].host = host;
  heard_at_[static_cast<size_t>(rank)] = now;
}

void Judge::heard(const Heartbeat& beat, double now) {
  RankView& v = views_[static_cast<size_t>(beat.rank)];
  if (!v.joined || v.beat.progress != beat.progress) moved_at_ = now;
  v.joined = true;
  v.beat = beat;
  heard_at_[static_cast<size_t>(beat.rank)] = now;
}

void Judge::farewell(int rank, double now) {
  views_[static_cast<size_t>(rank)].finished = true;
  ended_at_[static_cast<size_t>(rank)] = now;
  moved_at_ = now;
}

void Judge::lost(int rank, double now) {
  RankView& v = views_[static_cast<size_t>(rank)];
  if (v.finished || v.gone) return;
  v.gone = true;
  ended_at_[static_cast<size_t>(rank)] = now;
}

std::optional<Judge::Verdict> Judge::judge(double now) {
  if (last_ > 0 && now - last_ > kOwnPause_s) {
    // This process was stopped or starved: what it has not heard meanwhile says nothing.
    for (double& t : heard_at_) t += now - last_;
    moved_at_ += now - last_;
  }
  last_ = now;
  for (size_t r = 0; r < views_.size(); ++r) {
    const int rank = static_cast<int>(r);
    const RankView& v = views_[r];
    if (v.gone && now - ended_at_[r] > kOthersSpeak_s)
      return Verdict{.culprits = {rank}, .primary = false, .why = fmt::format("rank {} vanished", rank), .table = {}};
    if (v.joined && !v.finished && !v.gone && now - heard_at_[r] > o_.peer_timeout_s + kOthersSpeak_s)
      return Verdict{.culprits = {rank}, .why = fmt::format("rank {} on {} is silent for {:.1f} s: stopped, or its host is cut off",
                                                            rank, v.host, now - heard_at_[r]), .table = stall_table(views_)};
  }
  // Seconds without progress: a rank that left before the others shows sooner than a stall.
  const double still = now - moved_at_;
  const bool some_finished = std::any_of(views_.begin(), views_.end(), [](const RankView& v) { return v.finished; });
  const bool all_finished = std::all_of(views_.begin(), views_.end(), [](const RankView& v) { return v.finished || v.gone; });
  if (all_finished || moved_at_ == 0) return std::nullopt;
  const bool started = std::any_of(views_.begin(), views_.end(), [](const RankView& v) { return v.beat.step >= 0; });
  const double limit = o_.stall_timeout_s * (started ? 1 : 3), soon = std::min(o_.peer_timeout_s, limit);
  if (still <= soon) return std::nullopt;
  const Diagnosis d = diagnose(views_, still);
  // Neither of these gets better by waiting.
  if (still <= limit && !some_finished && !d.deadlock) return std::nullopt;
  if (d.culprits.empty()) return std::nullopt;
  const RankView& first = views_[static_cast<size_t>(d.culprits.front())];
  Verdict verdict{.culprits = d.culprits, .speaks = !first.finished && !first.gone, .why = d.why, .table = stall_table(views_)};
  if (first.finished || d.deadlock) verdict.code = ExitCode::kInternal;
  return verdict;
}

// ---- sockets

WatchHub::WatchHub(const WatchOptions& options, bool one_host)
    : o_(options), judge_(options), one_host_(one_host), token_(random_token(16)) {
  listener_ = listen_tcp(one_host ? INADDR_LOOPBACK : INADDR_ANY, 1024, &port_);
  if (!listener_) throw CommError("the control channel gets no port: {}", std::strerror(errno));
  judge_.joined(options.rank, options.host, 0);
}

WatchHub::~WatchHub() = default;

std::string WatchHub::offer() const {
  std::string text = fmt::format("{} {}", token_, port_);
  if (one_host_) return text + " 127.0.0.1";
  for (const std::string& address : own_addresses()) text += " " + address;
  return text;
}

std::vector<int> WatchHub::sockets() const {
  std::vector<int> out{listener_.get()};
  for (const Peer& p : peers_) out.push_back(p.fd.get());
  return out;
}

void WatchHub::read(Peer& peer, double now) {
  std::array<char, 16384> buffer;
  bool ended = false;
  while (true) {
    const ssize_t n = recv(peer.fd.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
    ended = n <= 0;
    if (ended) break;
    peer.reader.feed({buffer.data(), static_cast<size_t>(n)});
  }
  while (auto frame = peer.reader.next()) {
    if (peer.rank < 0) {
      const auto hello = frame->kind == FrameKind::kHello ? hello_from(frame->payload) : std::nullopt;
      if (!hello || !same_secret(hello->token, token_) || hello->rank < 0 || hello->rank >= o_.size) return peer.fd.reset();
      peer.rank = hello->rank;
      judge_.joined(peer.rank, hello->host, now);
    } else if (frame->kind == FrameKind::kHeartbeat) {
      const auto beat = heartbeat_from(frame->payload);
      if (!beat || beat->rank != peer.rank) return peer.fd.reset();
      judge_.heard(*beat, now);
    } else if (frame->kind == FrameKind::kFarewell) {
      judge_.farewell(peer.rank, now);
    }
  }
  if (ended || peer.reader.broken()) {
    if (peer.rank >= 0) judge_.lost(peer.rank, now);
    peer.fd.reset();
  }
}

std::optional<Judge::Verdict> WatchHub::service(const Heartbeat& own, double now) {
  while (true) {
    Fd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) break;
    const auto strangers = std::count_if(peers_.begin(), peers_.end(), [](const Peer& p) { return p.rank < 0; });
    if (static_cast<size_t>(strangers) >= kMaxStrangers) continue;  // closed at once
    const int on = 1;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    peers_.push_back({.fd = std::move(fd), .rank = -1, .since = now, .reader = {}});
  }
  for (Peer& p : peers_) {
    read(p, now);
    if (p.rank < 0 && p.fd && now - p.since > kStrangerTime_s) p.fd.reset();
  }
  std::erase_if(peers_, [](const Peer& p) { return !p.fd; });
  judge_.heard(own, now);
  return judge_.judge(now);
}

void WatchHub::stop(const Judge::Verdict& verdict) {
  for (const Peer& p : peers_) {
    if (p.rank < 0) continue;
    const bool cause = verdict.speaks && p.rank == verdict.culprits.front();
    const std::string frame = to_frame(StopOrder{.code = static_cast<int32_t>(verdict.code), .culprit = cause ? 1u : 0u, .why = verdict.why});
    static_cast<void>(send(p.fd.get(), frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL));
  }
}

void WatchHub::farewell() {
  const std::string frame = farewell_frame();
  for (const Peer& p : peers_)
    if (p.rank >= 0) static_cast<void>(send(p.fd.get(), frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL));
}

HubOffer make_hub(const WatchOptions& options, bool one_host) {
  HubOffer o;
  o.hub = std::make_unique<WatchHub>(options, one_host);
  o.text = o.hub->offer();
  return o;
}

}  // namespace r1::comm
