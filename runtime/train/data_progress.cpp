#include "runtime/train/data_progress.h"

#include <fmt/format.h>

#include <algorithm>

#include "runtime/core/human.h"

namespace r1::train {

using std::chrono::seconds;

std::string DataProgressLine::next(const data::DataProgress& p, Clock::time_point now) {
  if (p.path.string() != file_) {
    file_ = p.path.string();
    begin_ = now;
    due_ = now + seconds(2);
  }
  if (now < due_) return "";
  if (p.waiting) {
    due_ = now + seconds(30);
    return fmt::format("data       {}: another process tokenises it; waiting for its result", file_);
  }
  due_ = now + seconds(5);
  const double done = static_cast<double>(p.bytes_done), total = static_cast<double>(std::max<int64_t>(p.bytes_total, 1));
  std::string line = fmt::format("data       {}: {:.0f} % of {}", file_, 100.0 * std::min(1.0, done / total), human_bytes(total));
  if (p.samples == 0) return line + " read";
  line += fmt::format(", {} samples, {} tokens", human_count(p.samples), human_count(p.tokens));
  if (p.bad_rows > 0) line += fmt::format(", {} bad rows", human_count(p.bad_rows));
  const double elapsed = std::chrono::duration<double>(now - begin_).count();
  if (done > 0 && done < total) line += fmt::format(", {} to go", human_duration(elapsed * (total - done) / done));
  return line;
}

}  // namespace r1::train
