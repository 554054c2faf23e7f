#include "runtime/models/offload.h"

namespace r1::models {

BlockInputOffload::BlockInputOffload(Device device, const Ring& ring)
    : backend_(backend_of(device.kind)), ring_(ring), copies_(backend_.create_stream(device)),
      forked_(backend_.create_event(device, false)), joined_(backend_.create_event(device, false)) {
  for (Buffer& b : buffers_) {
    b.copied = backend_.create_event(device, false);
    b.used = backend_.create_event(device, false);
  }
}

BlockInputOffload::~BlockInputOffload() {
  for (const Buffer& b : buffers_) {
    backend_.destroy_event(b.copied);
    backend_.destroy_event(b.used);
  }
  backend_.destroy_event(forked_);
  backend_.destroy_event(joined_);
  backend_.destroy_stream(copies_);
}

void BlockInputOffload::begin(const Stream& compute) {
  backend_.record(forked_, compute);
  backend_.wait(copies_, forked_);
  for (Buffer& b : buffers_) b.copying = b.in_use = false;
}

void BlockInputOffload::before_write(size_t layer, const Stream& compute) {
  if (buffer(layer).copying) backend_.wait(compute, buffer(layer).copied);
}

void BlockInputOffload::store(size_t layer, void* host, const Stream& compute) {
  Buffer& b = buffer(layer);
  backend_.record(b.used, compute);
  backend_.wait(copies_, b.used);
  backend_.copy(host, at(layer).data, at(layer).bytes(), copies_);
  backend_.record(b.copied, copies_);
  b.copying = true;
}

void BlockInputOffload::load(size_t layer, const void* host) {
  Buffer& b = buffer(layer);
  if (b.in_use) backend_.wait(copies_, b.used);
  backend_.copy(at(layer).data, host, at(layer).bytes(), copies_);
  backend_.record(b.copied, copies_);
  b.copying = true;
}

void BlockInputOffload::before_read(size_t layer, const Stream& compute) { before_write(layer, compute); }

void BlockInputOffload::release(size_t layer, const Stream& compute) {
  backend_.record(buffer(layer).used, compute);
  buffer(layer).in_use = true;
}

void BlockInputOffload::end(const Stream& compute) {
  backend_.record(joined_, copies_);
  backend_.wait(compute, joined_);
}

HostSlot::HostSlot(DeviceKind kind, const std::vector<parallel::PlannedTensor>& tensors)
    : memory_(kind, static_cast<size_t>(parallel::laid_out_bytes(tensors))) {
  size_t offset = 0;
  for (const parallel::PlannedTensor& t : tensors) {
    offsets_.push_back(offset);
    offset += align_up(static_cast<size_t>(t.bytes()));
  }
}

}  // namespace r1::models
