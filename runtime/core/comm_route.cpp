#include "runtime/core/comm_route.h"

#include "runtime/core/error.h"

namespace r1 {

CommChoice parse_comm_choice(std::string_view text) {
  if (text == "auto" || text.empty()) return CommChoice::kAuto;
  if (text == "nccl") return CommChoice::kNccl;
  if (text == "ipc") return CommChoice::kIpc;
  if (text == "ucx") return CommChoice::kUcx;
  if (text == "mpi") return CommChoice::kMpi;
  throw UsageError("--comm {}: allowed are auto, nccl, ipc, ucx, mpi", text);
}

std::string_view comm_backend_name(CommBackend b) {
  switch (b) {
    case CommBackend::kNone:
      return "none";
    case CommBackend::kNccl:
      return "nccl";
    case CommBackend::kIpc:
      return "ipc";
    case CommBackend::kUcx:
      return "ucx";
    case CommBackend::kMpi:
      return "mpi";
  }
  return "none";
}

CommRoute choose_comm(CommChoice choice, const GroupPlace& place, std::string_view group) {
  if (place.ranks <= 1) return {};
  const bool gpu = place.most_ranks_a_gpu > 0, shared = place.most_ranks_a_gpu > 1;
  const auto both = [](CommBackend b) { return CommRoute{b, b, b}; };
  switch (choice) {
    case CommChoice::kAuto:
      if (!gpu) return both(CommBackend::kMpi);
      if (place.hosts == 1 && (shared || !place.has_nccl)) return both(CommBackend::kIpc);
      if (place.hosts == 1)
        return {CommBackend::kNccl, CommBackend::kIpc,
                place.ranks <= kMostKernelPeers ? CommBackend::kIpc : CommBackend::kNccl,
                place.ranks == 2};
      return both(!shared && place.has_nccl ? CommBackend::kNccl : CommBackend::kUcx);
    case CommChoice::kNccl:
      if (!gpu)
        throw UsageError("--comm nccl: {} is on CPUs, NCCL is for GPUs; use auto, mpi, ucx or ipc",
                         group);
      if (shared)
        throw UsageError(
            "--comm nccl: {} has {} ranks on one GPU, NCCL takes one; use auto or ipc, or start "
            "fewer ranks",
            group, place.most_ranks_a_gpu);
      return both(CommBackend::kNccl);
    case CommChoice::kIpc:
      if (place.hosts > 1)
        throw UsageError(
            "--comm ipc: {} spans {} hosts, ipc works within one; use auto, nccl, ucx or mpi",
            group, place.hosts);
      return both(CommBackend::kIpc);
    case CommChoice::kUcx:
      return both(CommBackend::kUcx);
    case CommChoice::kMpi:
      return both(CommBackend::kMpi);
  }
  return {};
}

std::string describe(const CommRoute& route) {
  if (route.any_size)
    return fmt::format("{}, collectives beside computation {}", comm_backend_name(route.messages),
                       comm_backend_name(route.collectives));
  std::string text(comm_backend_name(route.collectives));
  const bool small = route.small_collectives != route.collectives,
             messages = route.messages != route.collectives;
  if (small && messages)
    return text +
           fmt::format(", small collectives and messages {}", comm_backend_name(route.messages));
  if (small)
    text += fmt::format(", small collectives {}", comm_backend_name(route.small_collectives));
  if (messages) text += fmt::format(", messages {}", comm_backend_name(route.messages));
  return text;
}

}  // namespace r1
