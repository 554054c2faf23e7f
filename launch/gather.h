// Texts from many hosts to the launcher, over TCP and without MPI: what has to work where MPI does
// not.
//
// The launcher listens on a free port; its addresses, port and a random token travel in the
// environment. A task connects, proves the token, sends one text and its clock, and ends.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launch/detect.h"
#include "launch/process.h"

namespace r1::launch {

struct GatheredText {
  std::string host, text;
  double skew_s = 0;  ///< the host's clock minus ours; the way here makes it seem up to that late
};

class GatherServer {
 public:
  /// Listens on all interfaces. Throws InternalError.
  GatherServer();
  /// Variables that the tasks need.
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> environment() const;
  [[nodiscard]] static std::vector<std::string> variable_names();
  /// Accepts and reads what has arrived; waits at most `wait_ms` for it.
  void service(int wait_ms);
  [[nodiscard]] const std::vector<GatheredText>& texts() const noexcept { return texts_; }
  /// True while a task that has shown the token has not sent everything.
  [[nodiscard]] bool receiving() const;

 private:
  struct Peer {
    Fd socket;
    std::string bytes;
    double since = 0;
    bool known = false;
  };
  /// False when the peer is done with or to be dropped.
  [[nodiscard]] bool serve(Peer* peer);
  Fd listener_;
  int port_ = 0;
  std::string token_;
  std::vector<Peer> peers_;
  std::vector<GatheredText> texts_;
};

/// True when the environment names a launcher that gathers.
[[nodiscard]] bool can_gather(const Environment& env);
/// Sends a text. False when no address answers within `limit_s`.
[[nodiscard]] bool send_gathered(const Environment& env, const std::string& host,
                                 const std::string& text, double limit_s);

}  // namespace r1::launch
