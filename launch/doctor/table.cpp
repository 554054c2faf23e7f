// The table of versions, and what versions mean against it.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <sstream>

#include "launch/doctor/doctor.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

constexpr char kVersions[] =
#include <doctor_versions.inc>
    ;

std::string shown(const std::vector<int>& version) {
  return fmt::format("{}", fmt::join(version, "."));
}

std::vector<std::string> fields_of(const std::string& line) {
  std::vector<std::string> out;
  std::istringstream in(line);
  for (std::string field; std::getline(in, field, '\t');) out.push_back(field);
  return out;
}

}  // namespace

std::vector<int> version_of(std::string_view text) {
  std::vector<int> out;
  const char *at = text.data(), *end = text.data() + text.size();
  while (at != end) {
    int part = 0;
    const auto [next, error] = std::from_chars(at, end, part);
    if (error != std::errc{} || part < 0 || *at == '-') break;
    out.push_back(part);
    at = next;
    if (at == end || *at != '.') break;
    ++at;
  }
  return out;
}

int compare_versions(const std::vector<int>& a, const std::vector<int>& b) {
  for (size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    const int x = i < a.size() ? a[i] : 0, y = i < b.size() ? b[i] : 0;
    if (x != y) return x < y ? -1 : 1;
  }
  return 0;
}

VersionTable parse_version_table(std::string_view text, const std::string& source) {
  VersionTable table;
  std::istringstream in{std::string(text)};
  int number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.empty() || line[0] == '#') continue;
    const std::vector<std::string> f = fields_of(line);
    const auto version = [&](size_t i) {
      std::vector<int> v = version_of(f[i]);
      if (v.empty() && f[i] != "-")
        throw DataError("{}:{}: \"{}\" is no version", source, number, f[i]);
      return v;
    };
    if (f[0] == "toolkit" && f.size() == 5) {
      table.toolkits.push_back({version(1), version(2), version(3), version(4)});
    } else if (f[0] == "refuse" && f.size() == 5) {
      table.refused.push_back({f[1], version(2), version(3), f[4]});
    } else {
      throw DataError(
          "{}:{}: expected toolkit or refuse with four fields after it, separated by tabs", source,
          number);
    }
  }
  return table;
}

const VersionTable& version_table() {
  static const VersionTable table = parse_version_table(kVersions, "versions.tsv");
  return table;
}

Check check_driver(const VersionTable& table, std::string_view driver, std::string_view cuda) {
  Check c{.name = "driver",
          .found = fmt::format("driver {}, this r1run is built with CUDA {}", driver, cuda)};
  const std::vector<int> have = version_of(driver), want = version_of(cuda);
  const VersionTable::Toolkit* toolkit = nullptr;
  for (const auto& t : table.toolkits)
    if (compare_versions(t.cuda, want) <= 0 && t.cuda[0] == (want.empty() ? 0 : want[0]))
      toolkit = &t;
  if (have.empty() || toolkit == nullptr) {
    c.remedy = have.empty()
                   ? "the driver's version cannot be read"
                   : fmt::format("CUDA {} is not in the table of versions; compare by hand", cuda);
    return c;
  }
  if (compare_versions(have, toolkit->driver) >= 0) {
    c.verdict = Verdict::kOk;
  } else if (compare_versions(have, toolkit->driver_of_major) >= 0) {
    c.verdict = Verdict::kWarning;
    c.remedy = fmt::format(
        "CUDA {} came with driver {}; this older one runs it, but a GPU newer than the build "
        "cannot "
        "be used: update the driver",
        shown(toolkit->cuda), shown(toolkit->driver));
  } else {
    c.verdict = Verdict::kFailure;
    c.remedy = fmt::format(
        "CUDA {} needs driver {} or newer: update the driver, or use a build for an older CUDA",
        shown(toolkit->cuda), shown(toolkit->driver_of_major));
  }
  return c;
}

namespace {

/// "NCCL 2.28.3 to 2.28.8"; "nothing" when the table refuses no version.
std::string refused_text(const VersionTable& table, const std::string& what) {
  std::string out;
  for (const auto& r : table.refused)
    if (r.what == what)
      out += fmt::format("{}{} {} to {}", out.empty() ? "" : ", ", what, shown(r.first), shown(r.last));
  return out.empty() ? "nothing" : out;
}

}  // namespace

Check check_cudnn(const VersionTable& table, std::string_view version, std::string_view cuda) {
  Check c = check_library_version(table, "cuDNN", version);
  if (c.verdict != Verdict::kOk) return c;
  const std::vector<int> have = version_of(version), want = version_of(cuda);
  const VersionTable::Toolkit* toolkit = nullptr;
  for (const auto& t : table.toolkits)
    if (!t.cudnn.empty() && (want.empty() || compare_versions(t.cuda, want) <= 0)) {
      toolkit = &t;
      if (want.empty()) break;  // the oldest toolkit asks the least
    }
  if (toolkit != nullptr && compare_versions(have, toolkit->cudnn) < 0) {
    c.verdict = Verdict::kFailure;
    c.remedy = fmt::format("cuDNN {} is the oldest that goes with CUDA {}: install a newer one", shown(toolkit->cudnn), shown(toolkit->cuda));
  }
  return c;
}

Check check_library_version(const VersionTable& table, const std::string& what,
                            std::string_view version) {
  Check c{.name = what, .verdict = Verdict::kOk, .found = std::string(version)};
  const std::vector<int> have = version_of(version);
  if (have.empty()) {
    c.verdict = Verdict::kUnknown;
    c.remedy = "its version cannot be read";
  }
  // A file's name may tell the major version alone (libnccl.so.2): nothing to compare.
  if (have.size() == 1) {
    c.verdict = Verdict::kUnknown;
    c.remedy = fmt::format("only its major version is known: compare by hand with what is refused ({})", refused_text(table, what));
    return c;
  }
  for (const auto& r : table.refused)
    if (!have.empty() && r.what == what && compare_versions(have, r.first) >= 0 &&
        compare_versions(have, r.last) <= 0) {
      c.verdict = Verdict::kFailure;
      c.remedy = fmt::format("{} {} to {}: {}", what, shown(r.first), shown(r.last), r.why);
    }
  return c;
}

}  // namespace r1::launch
