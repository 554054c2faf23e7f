// Errors for people and the exit codes they end in.
//
// Host code throws one of the types below; main() of each program catches once and returns the type's code.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace r1 {

/// Exit codes of every r1run program (README, "Exit codes"). Never a multiple of 256, never >= 126.
enum class ExitCode : int {
  kOk = 0,
  kUsage = 64,      ///< usage, configuration or layout
  kBadInput = 65,   ///< content of a model, data file or checkpoint
  kNoMemory = 69,   ///< the plan does not fit in memory
  kUnavailable = 69,///< a program that is needed is not installed
  kInternal = 70,   ///< our own bug
  kCannotWrite = 73,///< output cannot be written
  kTemporary = 75,  ///< stopped by a fault or a signal; worth a restart from the checkpoint
  kDiverged = 76,   ///< NaN or Inf limit reached
};

/// Base of all errors that reach main(): a message for people and the exit code it ends in.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  [[nodiscard]] ExitCode code() const noexcept { return code_; }

 private:
  ExitCode code_;
};

#define R1_DEFINE_ERROR(Name, Code, Doc)                                                    \
  class Name : public Error {                                                               \
   public:                                                                                  \
    template <class... Args>                                                                \
    explicit Name(fmt::format_string<Args...> text, Args&&... args)                         \
        : Error(Code, fmt::format(text, std::forward<Args>(args)...)) {}                    \
  };

/// The user can fix it: names the option or file:line, the value, what is allowed.
R1_DEFINE_ERROR(UsageError, ExitCode::kUsage, "")
/// A file's content is wrong: names the file, the place in it, what was found and what was expected.
R1_DEFINE_ERROR(DataError, ExitCode::kBadInput, "")
/// It does not fit: names wanted and available bytes and the cheapest changes that would fit.
R1_DEFINE_ERROR(MemoryError, ExitCode::kNoMemory, "")
/// A program that is needed is not installed here: names it, and what to install or do instead.
R1_DEFINE_ERROR(UnavailableError, ExitCode::kUnavailable, "")
/// Output cannot be written: names the path and the system's reason.
R1_DEFINE_ERROR(StorageError, ExitCode::kCannotWrite, "")
/// A peer, a link or a device failed: names group, operation and peer. Secondary when another rank is the cause.
R1_DEFINE_ERROR(CommError, ExitCode::kTemporary, "")
/// The device or its driver failed: names the device, the call and the library's message.
R1_DEFINE_ERROR(DeviceError, ExitCode::kTemporary, "")
/// Stopped on request (signal); the checkpoint is valid.
R1_DEFINE_ERROR(StoppedError, ExitCode::kTemporary, "")
/// NaN or Inf beyond the limit.
R1_DEFINE_ERROR(DivergedError, ExitCode::kDiverged, "")
/// Our own mistake (a bug): thrown by R1_CHECK.
R1_DEFINE_ERROR(InternalError, ExitCode::kInternal, "")
#undef R1_DEFINE_ERROR

}  // namespace r1

/// Checks what must hold by our own construction; throws InternalError with the condition's text and values.
#define R1_CHECK(cond, ...)                                                                      \
  do {                                                                                           \
    if (!(cond)) [[unlikely]]                                                                    \
      throw ::r1::InternalError("{}:{}: check failed: {}: {}", __FILE__, __LINE__, #cond,        \
                                fmt::format(__VA_ARGS__));                                       \
  } while (false)
