// Checks of calls into communication libraries: each call is evaluated once, and a failure is
// thrown as CommError with the call's text, the library's own message, file:line, group and
// operation.
#pragma once

#include <string>

#include "runtime/core/error.h"

namespace r1::comm {

/// MPI's own text for an error code.
[[nodiscard]] std::string mpi_error_text(int code);
/// UCX's own text for a ucs_status_t.
[[nodiscard]] std::string ucx_error_text(int status);

}  // namespace r1::comm

/// MPI_CHECK(MPI_Isend(...), communicator, "send")
#define MPI_CHECK(call, group, operation)                                                   \
  do {                                                                                      \
    const int mpi_check_code = (call);                                                      \
    if (mpi_check_code != MPI_SUCCESS) [[unlikely]]                                         \
      throw ::r1::CommError("{} on {}: {} ({}:{}: {})", operation, (group).name(),          \
                            ::r1::comm::mpi_error_text(mpi_check_code), __FILE__, __LINE__, \
                            #call);                                                         \
  } while (false)

/// UCX_CHECK(ucp_init(...), communicator, "start"), for calls that return ucs_status_t
#define UCX_CHECK(call, group, operation)                                                     \
  do {                                                                                        \
    const auto ucx_check_status = (call);                                                     \
    if (ucx_check_status != UCS_OK) [[unlikely]]                                              \
      throw ::r1::CommError("{} on {}: {} ({}:{}: {})", operation, (group).name(),            \
                            ::r1::comm::ucx_error_text(ucx_check_status), __FILE__, __LINE__, \
                            #call);                                                           \
  } while (false)
