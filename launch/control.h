// The control channel between the launcher and one parent of ranks on every host: heartbeats both
// ways, so that each side notices when the other is cut off. (Open MPI's own keepalive is blind
// while its daemon has output that is not acknowledged, and it does not name the host.)
//
// The launcher listens on a free port; parents find its addresses where Open MPI's daemon found
// mpirun (OMPI_MCA_orte_hnp_uri) and prove themselves with a random token that travels in the
// environment, never in an argument.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "launch/process.h"

namespace r1::launch {

inline constexpr const char* kControlPortVariable = "R1RUN_CONTROL_PORT";
inline constexpr const char* kControlTokenVariable = "R1RUN_CONTROL_TOKEN";
/// IPv4 addresses of the launcher, with commas: where no launcher of MPI says how to reach it (srun).
inline constexpr const char* kControlAddressVariable = "R1RUN_CONTROL_ADDRESS";

/// Where processes of other hosts and of this one reach this one: IPv4 addresses, loopback last.
[[nodiscard]] std::vector<std::string> contact_addresses();

/// IPv4 addresses in an Open MPI contact string ("123.0;tcp://10.0.0.1,192.168.0.1:4000;tcp6://…").
[[nodiscard]] std::vector<std::string> addresses_of(std::string_view contact);

/// The launcher's end. Strangers are dropped: a wrong token at once, silence after 2 s, more than
/// 64 waiting.
class ControlServer {
 public:
  /// Listens on all interfaces. Throws InternalError when the system gives no port.
  ControlServer();
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;
  [[nodiscard]] int port() const noexcept { return port_; }
  [[nodiscard]] const std::string& token() const noexcept { return token_; }
  /// Accepts, reads and answers what has arrived. Never blocks.
  void service();
  /// Tells every parent that has joined to end its rank: the cause is known.
  void end_all();
  /// Monotonic time of the last heartbeat of each host that ever joined.
  [[nodiscard]] const std::map<std::string, double>& last_heard() const noexcept {
    return last_heard_;
  }
  /// Hosts whose connection is open: a parent that ends closes it, a host that is cut off cannot.
  [[nodiscard]] std::vector<std::string> connected() const;

 private:
  struct Peer {
    Fd socket;
    std::string host;  ///< empty until the token was right
    std::string partial;
    double since = 0;
  };
  /// False when the peer is to be dropped.
  [[nodiscard]] bool serve(Peer* peer);

  Fd listener_;
  int port_ = 0;
  std::string token_;
  std::vector<Peer> peers_;
  std::map<std::string, double> last_heard_;
};

/// The parent's end.
class ControlClient {
 public:
  /// Starts connecting to the first address that answers; never blocks.
  ControlClient(std::vector<std::string> addresses, int port, std::string token, std::string host,
                double peer_timeout_s);
  /// Sends what is due and reads what has come. Call it several times a second.
  void service();
  /// Seconds since the launcher was last heard; 0 while it never was (then nothing can be
  /// concluded).
  [[nodiscard]] double silence_s() const;
  /// The launcher has said that the job is over.
  [[nodiscard]] bool asked_to_end() const noexcept { return asked_to_end_; }

 private:
  void connect_next();

  std::vector<std::string> addresses_;
  int port_;
  std::string hello_;
  double interval_s_, peer_timeout_s_;
  size_t next_address_ = 0;
  bool asked_to_end_ = false;
  Fd socket_;
  bool connected_ = false;
  double started_ = 0, next_beat_ = 0, last_heard_ = 0;
};

}  // namespace r1::launch
