#include "comm/self_queue.h"

#include "comm/arguments.h"

namespace r1::comm {

void SelfQueue::deliver(const Open& to, const void* data, size_t bytes) {
  ++matched_;
  if (to.cancelled) return;
  if (to.bytes != bytes)
    throw CommError("recv on {}: rank {} sent itself {} bytes where {} were expected",
                    owner_.name(), owner_.rank(), bytes, to.bytes);
  memory_.copy(to.data, data, bytes, to.stream);
  memory_.synchronize(to.stream);
}

void SelfQueue::send(const void* data, size_t bytes, const Stream& s) {
  if (!open_.empty()) {
    memory_.synchronize(s);  // the receive may be on another stream
    const Open to = open_.front();
    open_.pop_front();
    return deliver(to, data, bytes);
  }
  std::vector<char> copy;
  if (!spare_.empty()) {
    copy = std::move(spare_.back());
    spare_.pop_back();
  }
  copy.resize(bytes);
  memory_.copy(copy.data(), data, bytes, s);
  memory_.synchronize(s);
  messages_.push_back(std::move(copy));
}

uint64_t SelfQueue::post_recv(void* data, size_t bytes, const Stream& s) {
  const uint64_t ticket = matched_ + open_.size();
  if (messages_.empty()) {
    open_.push_back({data, bytes, s});
  } else {
    std::vector<char> message = std::move(messages_.front());
    messages_.pop_front();
    deliver({data, bytes, s}, message.data(), message.size());
    spare_.push_back(std::move(message));
  }
  return ticket;
}

void SelfQueue::wait(uint64_t ticket, const char* operation) const {
  if (!done(ticket))
    throw CommError("{} on {}: rank {} waits for a message from itself that it has not sent",
                    operation, owner_.name(), owner_.rank());
}

void SelfQueue::cancel(uint64_t ticket) noexcept {
  if (!done(ticket)) open_[ticket - matched_].cancelled = true;
}

}  // namespace r1::comm
