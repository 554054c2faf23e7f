#include "launch/arguments.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <set>

#include "runtime/core/error.h"

namespace r1::launch {
namespace {

int positive(const std::string& option, const std::string& value) {
  int n = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), n);
  if (error != std::errc() || end != value.data() + value.size() || n < 1)
    throw UsageError("{} {}: not a positive whole number", option, value);
  return n;
}

std::string trimmed(const std::string& s) {
  const size_t b = s.find_first_not_of(" \t\r"), e = s.find_last_not_of(" \t\r");
  return b == std::string::npos ? "" : s.substr(b, e - b + 1);
}

/// Mesh sizes of an INI file; flags override them.
void read_config(const std::string& path, Arguments* a) {
  std::ifstream in(path);
  if (!in) return;  // the ranks say what is wrong with it
  for (std::string line; std::getline(in, line);) {
    line = line.substr(0, line.find('#'));
    const size_t eq = line.find('=');
    if (eq == std::string::npos) continue;
    const std::string key = trimmed(line.substr(0, eq)), value = trimmed(line.substr(eq + 1));
    if (key == "pp") a->mesh.pp = positive(path + ": pp =", value);
    if (key == "dp") a->mesh.dp = positive(path + ": dp =", value);
    if (key == "tp") a->mesh.tp = positive(path + ": tp =", value);
    if (key == "threads") a->threads = positive(path + ": threads =", value);
  }
}

double duration_s(const std::string& option, const std::string& value) {
  char* end = nullptr;
  const double v = std::strtod(value.c_str(), &end);
  const std::string unit(end);
  const double scale = unit.empty() || unit == "s"    ? 1
                       : unit == "ms"                 ? 1e-3
                       : unit == "m" || unit == "min" ? 60
                                                      : 0;
  if (end == value.c_str() || scale == 0 || !(v > 0) || v > 1e6)
    throw UsageError("{} {}: not a duration; allowed: a number with ms, s or min, as in 2s", option,
                     value);
  return v * scale;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> out;
  size_t from = 0;
  while (from <= text.size()) {
    const size_t to = std::min(text.find(separator, from), text.size());
    out.push_back(trimmed(text.substr(from, to - from)));
    from = to + 1;
  }
  return out;
}

}  // namespace

bool needs_ranks(const std::string& s) {
  return s == "train" || s == "eval" || s == "generate" || s == "verify" || s == "bench";
}

Arguments read_arguments(const std::vector<std::string>& arguments) {
  Arguments a;
  size_t i = 0;
  if (!arguments.empty() && !arguments[0].empty() && arguments[0][0] != '-') {
    a.subcommand = arguments[0];
    a.for_ranks.push_back(arguments[0]);
    i = 1;
  }
  // --config first, wherever it stands: flags beat the file.
  for (size_t k = i; k < arguments.size(); ++k) {
    if (arguments[k] == "--config" && k + 1 < arguments.size()) read_config(arguments[k + 1], &a);
    if (arguments[k].starts_with("--config=")) read_config(arguments[k].substr(9), &a);
  }
  for (; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    const size_t eq = word.find('=');
    const std::string name = word.substr(0, eq);
    const auto value = [&]() -> std::string {
      if (eq != std::string::npos) return word.substr(eq + 1);
      if (i + 1 >= arguments.size()) throw UsageError("{}: a value is missing", name);
      return arguments[++i];
    };
    if (word == "--dry-run") {
      a.dry_run = true;
    } else if (name == "--hostfile") {
      a.hostfile = value();
    } else if (name == "--host" || name == "-H") {
      a.hosts = value();
    } else if (name == "--max-restarts") {
      a.max_restarts = positive(name, value());
    } else {
      const size_t first = i;
      if (word == "--help" || word == "-h") a.help = true;
      if (word == "--version") a.version = true;
      if (name == "--pp") a.mesh.pp = positive(name, value());
      if (name == "--dp") a.mesh.dp = positive(name, value());
      if (name == "--tp") a.mesh.tp = positive(name, value());
      if (name == "--threads") a.threads = positive(name, value());
      if (name == "--peer-timeout") a.peer_timeout_s = duration_s(name, value());
      if (a.subcommand == "verify" && name == "--layouts") a.layouts = split(value(), ',');
      if (a.subcommand == "verify" && name == "--json") a.json = value();
      if (a.subcommand == "verify" && name == "--reference") a.reference = value();
      for (size_t k = first; k <= i; ++k) a.for_ranks.push_back(arguments[k]);
    }
  }
  return a;
}

std::vector<std::string> without_options(const std::vector<std::string>& arguments,
                                         const std::vector<std::string>& names) {
  std::vector<std::string> out;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    const bool named = std::find(names.begin(), names.end(), word) != names.end();
    const bool with_value = std::any_of(names.begin(), names.end(), [&](const std::string& n) {
      return word.starts_with(n + "=");
    });
    if (named) {
      ++i;  // and its value
    } else if (!with_value) {
      out.push_back(word);
    }
  }
  return out;
}

}  // namespace r1::launch
