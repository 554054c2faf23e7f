// Ranks as threads of one process, for tests: nothing hangs for ever. A thread that throws poisons
// the job, so that every other rank's wait throws CommError; a rank that leaves early, and a
// deadlock of all ranks, are found and named.
#pragma once

#include <functional>
#include <string>

#include "comm/communicator.h"

namespace r1::comm {

/// Runs fn on `size` ranks, each in a thread of its own, and joins them. When one throws, the
/// others are poisoned and the first exception is thrown again here. The communicators are closed
/// by fn or not at all.
void run_ranks(int size, const std::function<void(Communicator&)>& fn,
               const std::string& name = "local");

/// For threads that are not run by run_ranks: makes every present and future wait of all ranks of
/// c's job (its subgroups too) throw CommError with this reason. c must come from make_local or a
/// split of it.
void poison_local(Communicator& c, const std::string& reason);

/// Says that this rank makes no more calls: whoever waits for it now or later throws CommError.
void leave_local(Communicator& c);

}  // namespace r1::comm
