#include "comm/watch/frames.h"

#include <algorithm>
#include <cstring>

#include "runtime/core/rng.h"

namespace r1::comm {
namespace {

constexpr uint32_t kMagic = 0x52315743;  // "CW1R"
constexpr size_t kHeader = 12, kMaxText = 1024;

class Writer {
 public:
  template <class T>
  Writer& number(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);  // little-endian hosts only, as safetensors
    return *this;
  }
  Writer& text(std::string_view t) {
    t = t.substr(0, kMaxText);
    number(static_cast<uint32_t>(t.size()));
    out_.append(t);
    return *this;
  }
  [[nodiscard]] std::string frame(FrameKind kind) const {
    Writer w;
    w.number(kMagic).number(static_cast<uint32_t>(kind)).number(static_cast<uint32_t>(out_.size()));
    return w.out_ + out_;
  }

 private:
  std::string out_;
};

class Reader {
 public:
  explicit Reader(std::string_view in) : in_(in) {}
  template <class T>
  Reader& number(T& value) {
    if (in_.size() < sizeof value) return fail();
    std::memcpy(&value, in_.data(), sizeof value);
    in_.remove_prefix(sizeof value);
    return *this;
  }
  Reader& text(std::string& t) {
    uint32_t n = 0;
    number(n);
    if (!good_ || n > kMaxText || n > in_.size()) return fail();
    t.assign(in_.substr(0, n));
    // Shown to people: nothing in it may drive their terminal.
    for (char& c : t)
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
    in_.remove_prefix(n);
    return *this;
  }
  [[nodiscard]] bool good() const { return good_; }
  [[nodiscard]] bool done() const { return good_ && in_.empty(); }

 private:
  Reader& fail() {
    good_ = false;
    in_ = {};
    return *this;
  }
  std::string_view in_;
  bool good_ = true;
};

}  // namespace

std::string to_frame(const Hello& h) { return Writer().text(h.token).text(h.host).number(h.rank).frame(FrameKind::kHello); }

std::string to_frame(const Heartbeat& b) {
  Writer w;
  w.number(b.rank).number(b.stage).number(b.step).number(b.progress).text(b.phase).number(b.phase_age_ns);
  w.number(b.op).text(b.op_text).number(b.op_group).number(b.op_sequence).number(b.op_peer).number(b.op_age_ns);
  w.number(b.boundary_step).number(b.boundary_ns).number(b.boundary_waited_ns);
  const size_t groups = std::min(b.groups.size(), detail::kFlightGroups);
  w.number(static_cast<uint32_t>(groups));
  for (size_t g = 0; g < groups; ++g) w.number(b.groups[g].name).number(b.groups[g].sequence);
  return w.frame(FrameKind::kHeartbeat);
}

std::string to_frame(const StopOrder& o) { return Writer().number(o.code).number(o.culprit).text(o.why).frame(FrameKind::kStop); }

std::string farewell_frame() { return Writer().frame(FrameKind::kFarewell); }

std::optional<Hello> hello_from(std::string_view payload) {
  Hello h;
  Reader r(payload);
  r.text(h.token).text(h.host).number(h.rank);
  return r.done() ? std::optional(h) : std::nullopt;
}

std::optional<Heartbeat> heartbeat_from(std::string_view payload) {
  Heartbeat b;
  Reader r(payload);
  r.number(b.rank).number(b.stage).number(b.step).number(b.progress).text(b.phase).number(b.phase_age_ns);
  r.number(b.op).text(b.op_text).number(b.op_group).number(b.op_sequence).number(b.op_peer).number(b.op_age_ns);
  r.number(b.boundary_step).number(b.boundary_ns).number(b.boundary_waited_ns);
  uint32_t groups = 0;
  r.number(groups);
  if (!r.good() || groups > detail::kFlightGroups) return std::nullopt;
  b.groups.resize(groups);
  for (Heartbeat::Group& g : b.groups) r.number(g.name).number(g.sequence);
  return r.done() ? std::optional(b) : std::nullopt;
}

std::optional<StopOrder> stop_from(std::string_view payload) {
  StopOrder o;
  Reader r(payload);
  r.number(o.code).number(o.culprit).text(o.why);
  return r.done() ? std::optional(o) : std::nullopt;
}

std::optional<Frame> FrameReader::next() {
  if (broken_ || buffer_.size() < kHeader) return std::nullopt;
  uint32_t magic = 0, kind = 0, length = 0;
  Reader(buffer_).number(magic).number(kind).number(length);
  if (magic != kMagic || kind < 1 || kind > 4 || length > kMaxPayload) {
    broken_ = true;
    buffer_.clear();
    return std::nullopt;
  }
  if (buffer_.size() < kHeader + length) return std::nullopt;
  Frame f{static_cast<FrameKind>(kind), buffer_.substr(kHeader, length)};
  buffer_.erase(0, kHeader + length);
  return f;
}

Heartbeat heartbeat_of(int rank, int stage, const FlightData& flight, const RankStatusWriter::ProgressNow& progress, int64_t now_ns) {
  Heartbeat b;
  b.rank = rank;
  b.stage = stage;
  b.step = flight.step >= 0 ? flight.step : progress.step;  // generation counts its passes there
  b.progress = flight.count + progress.count;
  b.phase = progress.phase;
  if (flight.action) {
    b.phase = describe(*flight.action, flight);
    b.phase_age_ns = now_ns - flight.action->begin_ns;
  }
  if (flight.operation && flight.operation->end_ns == 0) {
    const FlightRecord& r = *flight.operation;
    b.op = r.op;
    b.op_text = describe(r, flight);
    b.op_group = r.group < flight.groups.size() ? hash_name(flight.groups[r.group].name) : 0;
    b.op_sequence = r.sequence;
    b.op_peer = r.peer;
    b.op_age_ns = now_ns - r.begin_ns;
  }
  b.boundary_step = flight.step;
  b.boundary_ns = flight.step_ns;
  b.boundary_waited_ns = flight.step_waited_ns;
  for (const FlightGroup& g : flight.groups) b.groups.push_back({hash_name(g.name), g.sequence});
  return b;
}

}  // namespace r1::comm
