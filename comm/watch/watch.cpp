#include "comm/watch/watch.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <sstream>

#include "comm/watch/hub.h"
#include "runtime/core/host.h"
#include "runtime/core/log.h"

namespace r1::comm {
namespace {

/// Ranks up to this many are listed one by one on a stall.
constexpr size_t kTableBytes = 4000;
/// The cause gets this long to tell itself before rank 0 does.
constexpr double kSpeakTime_s = 1.0;
constexpr double kConnectTime_s = 2.0;
/// After the hub's connection broke, the launcher gets this long to end this rank.
constexpr double kOrphanTime_s = 1.5;

/// This rank's connection to the hub.
class Client {
 public:
  Client(const std::string& offer, int rank, const std::string& host) {
    std::istringstream in(offer);
    in >> hello_.token >> port_;
    for (std::string address; in >> address;) addresses_.push_back(address);
    hello_.rank = rank;
    hello_.host = host;
  }

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] bool lost() const { return lost_; }
  [[nodiscard]] bool hub_finished() const { return hub_finished_; }

  /// Sends a heartbeat, connecting first where needed. An order of the hub, if there is one.
  std::optional<StopOrder> service(const std::string& beat, double now) {
    if (lost_ || hub_finished_) return std::nullopt;
    if (!fd_) connect_next(now);
    if (!fd_) return std::nullopt;
    if (!connected_) {
      pollfd p{fd_.get(), POLLOUT, 0};
      int error = 0;
      socklen_t length = sizeof error;
      if (poll(&p, 1, 0) > 0) getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &length);
      if (error != 0 || (p.revents == 0 && now - tried_at_ > kConnectTime_s)) {
        reset();  // the next address at the next beat
        return std::nullopt;
      }
      if (p.revents == 0) return std::nullopt;
      connected_ = true;
      put(to_frame(hello_));
    }
    if (!beat.empty()) put(beat);
    return receive();
  }
  void farewell() {
    if (connected_) put(farewell_frame());
  }

 private:
  void connect_next(double now) {
    if (addresses_.empty()) return;
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_port = htons(static_cast<uint16_t>(port_));
    if (inet_pton(AF_INET, addresses_[next_++ % addresses_.size()].c_str(), &a.sin_addr) != 1) return;
    fd_ = Fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd_) return;
    const int on = 1;
    setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    tried_at_ = now;
    if (connect(fd_.get(), reinterpret_cast<sockaddr*>(&a), sizeof a) != 0 && errno != EINPROGRESS) reset();
  }
  void put(const std::string& frame) {
    out_ += frame;
    while (!out_.empty()) {
      const ssize_t n = send(fd_.get(), out_.data(), out_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) break;
      out_.erase(0, static_cast<size_t>(n));
    }
    if (out_.size() > (size_t{1} << 20)) out_.clear();  // the hub does not read: it will find this rank silent
  }
  std::optional<StopOrder> receive() {
    std::array<char, 4096> buffer;
    while (true) {
      const ssize_t n = recv(fd_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
      if (n <= 0) {
        lost_ = !hub_finished_;
        break;
      }
      reader_.feed({buffer.data(), static_cast<size_t>(n)});
      while (auto frame = reader_.next()) {
        if (frame->kind == FrameKind::kFarewell) hub_finished_ = true;
        if (frame->kind == FrameKind::kStop) return stop_from(frame->payload);
      }
    }
    return std::nullopt;
  }
  void reset() {
    fd_.reset();
    connected_ = false;
  }

  Hello hello_;
  int port_ = 0;
  Fd fd_;
  std::vector<std::string> addresses_;
  size_t next_ = 0;
  double tried_at_ = 0;
  bool connected_ = false, lost_ = false, hub_finished_ = false;
  std::string out_;
  FrameReader reader_;
};

/// The table of ranks: to standard error, or to a file where it is long.
void tell_table(const WatchOptions& o, const std::string& table) {
  if (table.empty()) return;
  if (table.size() > kTableBytes && !o.stall_report.empty() && (std::ofstream(o.stall_report) << table).flush()) {
    fmt::print(stderr, "r1run: what each rank is in: {}\n", o.stall_report);
    return;
  }
  fmt::print(stderr, "r1run: what each rank is in:\n{}", table);
}

}  // namespace

Watch::Watch(WatchOptions options, std::unique_ptr<WatchHub> hub, const std::string& offer, const RankStatusWriter& status,
             std::function<void(const Leave&)> leave)
    : options_(std::move(options)), hub_(std::move(hub)), offer_(offer), status_(status), leave_(std::move(leave)),
      thread_([this] { run(); }) {}

Watch::~Watch() {
  ending_.store(true);
  thread_.join();
}

void Watch::run() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);  // signals are for the thread that trains
  const double interval = std::min(0.25, options_.peer_timeout_s / 8);
  Client client(offer_, options_.rank, options_.host);
  double next_beat = 0, lost_at = 0;
  while (true) {
    const bool ending = ending_.load();
    const double now = monotonic_s();
    std::vector<pollfd> fds;
    if (hub_)
      for (const int fd : hub_->sockets()) fds.push_back({fd, POLLIN, 0});
    else if (client.fd() >= 0 && !client.lost() && !client.hub_finished())
      fds.push_back({client.fd(), POLLIN, 0});
    // Short enough that an end of the job does not wait for it.
    const double wait = std::clamp(next_beat - now, 0.0, 0.05);
    if (!ending && wait > 0) poll(fds.data(), fds.size(), static_cast<int>(wait * 1e3) + 1);
    const bool due = monotonic_s() >= next_beat;
    if (due) next_beat = monotonic_s() + interval;
    if (!due && !ending && std::none_of(fds.begin(), fds.end(), [](const pollfd& f) { return f.revents != 0; })) continue;
    const auto now_ns = monotonic_ns();
    const auto progress = status_.progress();
    const Heartbeat beat = heartbeat_of(options_.rank, stage_.load(), read_flight(status_.flight_memory(), 0), progress, now_ns);
    if (hub_) {
      const auto verdict = hub_->service(beat, monotonic_s());
      if (ending) {
        hub_->farewell();
        return;
      }
      if (due)
        for (const std::string& line : hub_->slow_ranks()) log::warn("{}", line);
      if (!verdict) continue;
      tell_table(options_, verdict->table);
      const bool own = !verdict->culprits.empty() && verdict->culprits.front() == options_.rank;
      hub_->stop(*verdict);
      if (own && verdict->speaks) return leave_({.kind = ReportKind::kPrimary, .code = verdict->code, .why = verdict->why});
      if (!verdict->primary) return leave_({.kind = ReportKind::kSecondary, .code = ExitCode::kTemporary, .why = verdict->why});
      if (verdict->speaks) {
        // The cause tells it itself, with its own step and phase; where it does not, this rank does.
        const int cause = verdict->culprits.front();
        for (const double until = monotonic_s() + kSpeakTime_s; monotonic_s() < until && !hub_->has_left(cause);) {
          poll(nullptr, 0, 10);
          static_cast<void>(hub_->service(beat, monotonic_s()));
        }
        if (hub_->has_left(cause))
          return leave_({.kind = ReportKind::kSecondary, .code = ExitCode::kTemporary, .why = fmt::format("rank {}: {}", cause, verdict->why)});
        return leave_({.kind = ReportKind::kPrimary, .code = verdict->code,
                       .why = fmt::format("rank {} on {}: {}", cause, hub_->host_of(cause), verdict->why)});
      }
      return leave_({.kind = ReportKind::kPrimary, .code = verdict->code, .why = verdict->why});
    }
    const auto order = client.service(due ? to_frame(beat) : std::string(), monotonic_s());
    if (ending) return client.farewell();
    if (order)
      return leave_({.kind = order->culprit != 0 ? ReportKind::kPrimary : ReportKind::kSecondary,
                     .code = static_cast<ExitCode>(order->code), .why = order->why});
    if (client.lost()) {
      if (lost_at == 0) lost_at = monotonic_s();
      if (monotonic_s() - lost_at > kOrphanTime_s)
        return leave_({.kind = ReportKind::kSecondary, .code = ExitCode::kTemporary, .why = "rank 0 vanished"});
    }
  }
}

}  // namespace r1::comm
