// Frames of the control channel: where the stream is cut does not matter, and what is read is written the same.
#include "comm/watch/frames.h"
#include "tests/fuzz/fuzz.h"

namespace {

using namespace r1::comm;

std::vector<Frame> frames_of(std::string_view bytes, size_t cut) {
  FrameReader reader;
  std::vector<Frame> out;
  for (const std::string_view part : {bytes.substr(0, cut), bytes.substr(cut)}) {
    reader.feed(part);
    while (auto frame = reader.next()) out.push_back(std::move(*frame));
  }
  return out;
}

/// The payload of one frame.
std::string payload_of(const std::string& frame) {
  FrameReader reader;
  reader.feed(frame);
  return reader.next()->payload;
}

}  // namespace

std::vector<std::string> r1::fuzz::seeds() {
  Heartbeat b{.rank = 3, .stage = 1, .step = 41, .progress = 7, .phase = "forward stage 1 micro-batch 2", .phase_age_ns = 7,
              .op = Operation::kAllReduce, .op_text = "all-reduce #812 of tp", .op_group = 99, .op_sequence = 812, .op_peer = -1,
              .op_age_ns = 3, .boundary_step = 41, .boundary_ns = 5, .boundary_waited_ns = 4, .groups = {{1, 2}, {3, 4}}};
  return {to_frame(Hello{.token = "secret", .host = "node", .rank = 1}), to_frame(b), farewell_frame(),
          to_frame(StopOrder{.code = 75, .culprit = 1, .why = "no progress"}), to_frame(b) + farewell_frame(), "GET / HTTP/1.1\r\n\r\n"};
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::vector<Frame> frames = frames_of(bytes, size), cut = frames_of(bytes, size / 3);
  FUZZ_REQUIRE(frames.size() == cut.size());
  for (size_t i = 0; i < frames.size(); ++i) {
    const std::string& p = frames[i].payload;
    FUZZ_REQUIRE(p == cut[i].payload && frames[i].kind == cut[i].kind && p.size() <= kMaxPayload);
    if (const auto h = hello_from(p)) FUZZ_REQUIRE(hello_from(payload_of(to_frame(*h))) == h);
    if (const auto b = heartbeat_from(p)) FUZZ_REQUIRE(heartbeat_from(payload_of(to_frame(*b))) == b);
    if (const auto s = stop_from(p)) FUZZ_REQUIRE(stop_from(payload_of(to_frame(*s))) == s);
  }
  return 0;
}
