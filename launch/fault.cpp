#include "launch/fault.h"

#include <signal.h>
#include <sys/wait.h>

#include <cstring>
#include <nlohmann/json.hpp>

namespace r1::launch {
namespace {

/// Signals by which the kernel ends a program for its own mistakes.
bool is_own_bug(int signal) {
  switch (signal) {
    case SIGSEGV:
    case SIGABRT:
    case SIGBUS:
    case SIGILL:
    case SIGFPE:
    case SIGTRAP:
    case SIGSYS:
      return true;
    default:
      return false;
  }
}

/// Text inside double quotes on one line.
std::string quoted_line(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"') {
      out += '\'';
    } else if (c == '\n') {
      out += " | ";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += ' ';
    } else {
      out += c;
    }
  }
  return out + "\"";
}

}  // namespace

Ending ending_of(int wait_status, bool oom_killed) {
  Ending e;
  if (WIFSIGNALED(wait_status)) {
    const int sig = WTERMSIG(wait_status);
    e.by_signal = true;
    e.code = static_cast<int>(is_own_bug(sig) ? ExitCode::kInternal : ExitCode::kTemporary);
    std::string name = strsignal(sig);
    if (!name.empty()) name[0] = static_cast<char>(std::tolower(name[0]));
    if (sig == SIGKILL && oom_killed) name = "killed by the kernel: out of memory";
    e.why = fmt::format("signal {} ({})", sig, name);
    return e;
  }
  e.code = WEXITSTATUS(wait_status);
  if (e.code >=
      126) {  // 126, 127: could not run; 128+n: a shell's way to say signal n. Never passed on
    e.why = fmt::format("exit code {}, which no r1run program returns", e.code);
    e.code = static_cast<int>(ExitCode::kInternal);
  }
  return e;
}

std::string describe(const FaultRecord& r) {
  const auto code = static_cast<ExitCode>(r.code);
  const bool for_user = code == ExitCode::kUsage || code == ExitCode::kBadInput ||
                        code == ExitCode::kNoMemory || code == ExitCode::kCannotWrite;
  if (for_user && r.step < 0) {
    if (r.rank < 0) return fmt::format("r1run: error: {}", r.why);
    return fmt::format("r1run: error: {} [rank {} on {}{}{}]", r.why, r.rank, r.host,
                       r.coordinates.empty() ? "" : ", ", r.coordinates);
  }
  std::string line = "r1run: FATAL";
  if (r.rank >= 0) line += fmt::format(" rank={}", r.rank);
  if (!r.host.empty()) line += fmt::format(" host={}", r.host);
  if (r.pid > 0) line += fmt::format(" pid={}", r.pid);
  line += fmt::format(" why={}", quoted_line(r.why));
  if (!r.coordinates.empty()) line += fmt::format(" mesh={}", quoted_line(r.coordinates));
  if (r.step >= 0) line += fmt::format(" step={}", r.step);
  if (!r.phase.empty()) line += fmt::format(" phase={}", quoted_line(r.phase));
  if (!r.operation.empty()) line += fmt::format(" op={}", quoted_line(r.operation));
  if (r.detected_s > 0) line += fmt::format(" detected={:.1f}s", r.detected_s);
  if (r.checkpoint_step >= 0) line += fmt::format(" ckpt={}", r.checkpoint_step);
  if (!r.flight.empty()) line += fmt::format(" flight={}", quoted_line(r.flight));
  line += fmt::format(" code={}", r.code);
  if (code == ExitCode::kTemporary)
    line += r.checkpoint_step >= 0 ? " next=\"run the same command with --resume auto\""
                                   : " next=\"run the same command again\"";
  if (code == ExitCode::kInternal)
    line += " next=\"this is a bug in r1run: please report it with this line\"";
  return line;
}

std::string to_json_line(const FaultRecord& r) {
  nlohmann::json j{{"kind", static_cast<uint32_t>(r.kind)},
                   {"code", r.code},
                   {"rank", r.rank},
                   {"host", r.host},
                   {"pid", r.pid},
                   {"why", r.why},
                   {"mesh", r.coordinates},
                   {"step", r.step},
                   {"phase", r.phase},
                   {"op", r.operation},
                   {"ckpt", r.checkpoint_step},
                   {"flight", r.flight},
                   {"detected_s", r.detected_s},
                   {"time_s", r.time_s}};
  // Text cut inside a UTF-8 sequence must not make the record unreadable.
  return j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::optional<FaultRecord> from_json_line(std::string_view line) {
  const auto j = nlohmann::json::parse(line, nullptr, false);
  if (!j.is_object()) return std::nullopt;
  try {
    FaultRecord r;
    const auto kind = j.at("kind").get<uint32_t>();
    if (kind > static_cast<uint32_t>(ReportKind::kFinished)) return std::nullopt;
    r.kind = static_cast<ReportKind>(kind);
    r.code = j.at("code").get<int>();
    r.rank = j.at("rank").get<int>();
    r.host = j.at("host").get<std::string>();
    r.pid = j.at("pid").get<int>();
    r.why = j.at("why").get<std::string>();
    r.coordinates = j.at("mesh").get<std::string>();
    r.step = j.at("step").get<int64_t>();
    r.phase = j.at("phase").get<std::string>();
    r.operation = j.value("op", std::string());
    r.checkpoint_step = j.at("ckpt").get<int64_t>();
    r.flight = j.value("flight", std::string());
    r.detected_s = j.at("detected_s").get<double>();
    r.time_s = j.at("time_s").get<double>();
    return r;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

}  // namespace r1::launch
