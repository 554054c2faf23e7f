#include "launch/hostfile.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "launch/cluster_builder.h"
#include "launch/hostfile_text.h"
#include "launch/topology/text.h"
#include "runtime/core/error.h"
#include "runtime/core/options.h"

namespace r1::launch {
using namespace hostfile;

namespace {

std::map<std::string, std::string> parse_annotation(std::string_view text,
                                                    const std::string& where) {
  std::map<std::string, std::string> out;
  const std::vector<std::string> keys{"topology", "fabric", "tier", "rack"};
  while (!(text = trim(text)).empty()) {
    const size_t end = std::min({text.find(' '), text.find('\t'), text.size()});
    const std::string_view word = text.substr(0, end);
    text.remove_prefix(end);
    const size_t eq = word.find('=');
    if (eq == std::string_view::npos || eq == 0 || eq + 1 == word.size())
      throw UsageError("{}: annotation \"{}\"; expected key=value", where, escaped(word));
    const std::string key(word.substr(0, eq));
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
      const std::string near = nearest(key, keys);
      throw UsageError("{}: annotation \"{}\" is unknown{}; allowed: topology, fabric, tier, rack",
                       where, escaped(key), near.empty() ? "" : " (did you mean " + near + "?)");
    }
    out[key] = std::string(word.substr(eq + 1));
  }
  return out;
}

enum class Key { kSlots, kMaxSlots, kUser, kPort };

std::optional<Key> key_of(std::string_view word) {
  // The spellings Open MPI 4.1.4 takes, found by trying them.
  static constexpr std::array<std::string_view, 3> kCounts{"slots", "cpu", "count"};
  for (const std::string_view count : kCounts) {
    if (word == count) return Key::kSlots;
    if (word.size() == count.size() + 4) {
      const bool before =
          word.starts_with("max") && word.ends_with(count) && (word[3] == '-' || word[3] == '_');
      const char joint = word[count.size()];
      const bool after =
          word.starts_with(count) && word.ends_with("max") && (joint == '-' || joint == '_');
      if (before || after) return Key::kMaxSlots;
    }
  }
  if (word == "username" || word == "user_name" || word == "user-name") return Key::kUser;
  if (word == "port") return Key::kPort;
  return std::nullopt;
}

/// NAME or USER@NAME.
void parse_name(std::string_view name, const std::string& where, Host* host) {
  const size_t at_sign = name.find('@');
  if (at_sign != std::string_view::npos) {
    check_user(name.substr(0, at_sign), where);
    host->user = std::string(name.substr(0, at_sign));
    name.remove_prefix(at_sign + 1);
  }
  const size_t colon = name.find(':');
  if (colon != std::string_view::npos && name.find(':', colon + 1) == std::string_view::npos)
    throw UsageError(
        "{}: \"{}\": host:count is the form of --host; in a hostfile write \"{} slots={}\"", where,
        escaped(name), escaped(name.substr(0, colon)), escaped(name.substr(colon + 1)));
  check_host_name(name, where);
  host->name = std::string(name);
}

/// A word behind the host's name, which must be a known key with a "=" behind it.
Key expect_key(std::string_view word, const Words& words, const std::string& host,
               const std::string& where) {
  if (!words.equals_next()) {
    if (word == "=") throw UsageError("{}: \"=\" without a key before it", where);
    throw UsageError(
        "{}: stray word \"{}\" after host \"{}\" (mpirun would ignore it); expected key=value "
        "with slots, "
        "max_slots, username or port",
        where, escaped(word), host);
  }
  const auto key = key_of(word);
  if (!key) {
    const std::vector<std::string> names{"slots", "max_slots", "username", "port", "cpu", "count"};
    const std::string near = nearest(word, names);
    throw UsageError(
        "{}: unknown key \"{}\"{}; allowed: slots (or cpu, count), max_slots, username, port",
        where, escaped(word), near.empty() ? "" : " (did you mean " + near + "?)");
  }
  return *key;
}

void set_value(Key key, std::string_view word, std::string_view value, const std::string& where,
               Host* host, std::optional<int>* slots) {
  if (value.empty() || value == "=") throw UsageError("{}: {} has no value", where, word);
  const auto once = [&](bool seen) {
    if (seen) throw UsageError("{}: {} is given twice for host \"{}\"", where, word, host->name);
  };
  switch (key) {
    case Key::kSlots:
      once(slots->has_value());
      *slots = number_in(value, 1, kMostSlots, std::string(word), where);
      break;
    case Key::kMaxSlots:
      once(host->max_slots.has_value());
      host->max_slots = number_in(value, 1, kMostSlots, std::string(word), where);
      break;
    case Key::kUser:
      once(!host->user.empty());
      check_user(value, where);
      host->user = std::string(value);
      break;
    case Key::kPort:
      once(host->port != 0);
      host->port = number_in(value, 1, 65535, "port", where);
      break;
  }
}

void parse_host_line(const Line& line, const std::map<std::string, std::string>& defaults,
                     ClusterBuilder* builder, const std::string& source) {
  const std::string where = at(source, line.number);
  Words words(line.text);
  std::string_view name = words.next();
  if (name.empty()) return;
  if (name == "=" || (words.equals_next() && key_of(name)))
    throw UsageError(
        "{}: the line starts with \"{}\"; expected a host name first, as in \"node1 slots=4\"",
        where, escaped(trim(line.text)));
  if (name[0] == '+')
    throw UsageError(
        "{}: relative host \"{}\" counts inside an allocation, which a hostfile of its own does "
        "not have "
        "(mpirun refuses it too); name the host",
        where, escaped(name));
  Host host;
  host.line = line.number;
  host.annotations = defaults;
  if (!line.annotation.empty())
    for (auto& [key, value] : parse_annotation(line.annotation, where))
      host.annotations[key] = value;
  parse_name(name, where, &host);
  std::optional<int> slots;
  for (std::string_view word = words.next(); !word.empty(); word = words.next()) {
    const Key key = expect_key(word, words, host.name, where);
    (void)words.next();  // the "="
    set_value(key, word, words.next(), where, &host, &slots);
  }
  if (slots && host.max_slots && *host.max_slots < *slots)
    throw UsageError("{}: max_slots {} is below slots {}", where, *host.max_slots, *slots);
  builder->add(std::move(host), slots, fmt::format("line {}", line.number));
}

}  // namespace

int Cluster::total_slots() const {
  int n = 0;
  for (const Host& h : hosts) n += h.slots;
  return n;
}

int Cluster::widest() const {
  int n = 0;
  for (const Host& h : hosts) n = std::max(n, h.slots);
  return n;
}

void check_host_name(std::string_view name, std::string_view where) {
  if (name.empty()) throw UsageError("{}: empty host name", where);
  if (name.find(':') != std::string_view::npos && is_address(std::string(name))) return;
  if (name.size() > 253)
    throw UsageError("{}: host name of {} characters, starting with \"{}\"; allowed: at most 253",
                     where, name.size(), escaped(name));
  bool dotted_digits = true;
  size_t label = 0;
  for (size_t i = 0; i <= name.size(); ++i) {
    if (i == name.size() || name[i] == '.') {
      if (i == label)
        throw UsageError("{}: host name \"{}\" has an empty part", where, escaped(name));
      if (i - label > 63)
        throw UsageError("{}: host name \"{}\" has a part of {} characters; allowed: at most 63",
                         where, escaped(name), i - label);
      if (name[label] == '-' || name[i - 1] == '-')
        throw UsageError("{}: host name \"{}\" has a part that starts or ends with \"-\"", where,
                         escaped(name));
      label = i + 1;
      continue;
    }
    if (!is_letter(name[i]) && !is_digit(name[i]) && name[i] != '-')
      throw UsageError(
          "{}: host name \"{}\" has character '{}'; allowed: letters, digits, \"-\" and \".\", or "
          "an IP "
          "address",
          where, escaped(name), escaped(name.substr(i, 1)));
    dotted_digits = dotted_digits && is_digit(name[i]);
  }
  if (dotted_digits && name.find('.') != std::string_view::npos && !is_address(std::string(name)))
    throw UsageError("{}: \"{}\" looks like an IPv4 address but is none", where, escaped(name));
}

Cluster parse_hostfile(std::string_view text, const std::string& source, NodefileKind kind) {
  ClusterBuilder builder(source, kind);
  std::map<std::string, std::string> defaults;
  for (const Line& line : lines_of(text, source, builder.warnings())) {
    if (!trim(line.text).empty()) {
      parse_host_line(line, defaults, &builder, source);
    } else if (!line.annotation.empty()) {
      defaults = parse_annotation(line.annotation, at(source, line.number));
    }
  }
  return builder.finish();
}

Cluster read_hostfile(const std::string& path, NodefileKind kind) {
  return parse_hostfile(read_text(path, "hostfile"), path, kind);
}

Cluster filtered(const Cluster& hostfile, std::string_view host_list) {
  Cluster out = hostfile;
  out.hosts.clear();
  for (const Host& w : parse_host_list(host_list, "--host").hosts) {
    const size_t named = host_list.find(w.name + ":1");  // with more it shows
    const bool counted =
        w.slots > 1 || (named != std::string_view::npos &&
                        (named == 0 || std::string_view(", @").find(host_list[named - 1]) !=
                                           std::string_view::npos));
    const auto it = std::ranges::find(hostfile.hosts, w.name, &Host::name);
    if (it == hostfile.hosts.end())
      throw UsageError("--host: {} is not in {}: with a hostfile, --host takes from its hosts",
                       w.name, hostfile.source);
    if (counted && w.slots > it->slots)
      throw UsageError("--host: {} slots of {}, but {} gives it {}", w.slots, w.name,
                       at(hostfile.source, it->line), it->slots);
    out.hosts.push_back(*it);
    if (counted) out.hosts.back().slots = w.slots;
  }
  return out;
}

Cluster parse_host_list(std::string_view text, const std::string& source) {
  ClusterBuilder builder(source, NodefileKind::kPbs);
  int entry = 0;
  for (const std::string_view field : fields_of(text, ',')) {
    std::string_view item = trim(field);
    const std::string mention = fmt::format("entry {} (\"{}\")", ++entry, escaped(item));
    if (item.empty())
      throw UsageError("{}: \"{}\" has an empty item; expected HOST[:SLOTS],…", source,
                       escaped(text));
    Host host;
    const size_t at_sign = item.find('@');
    if (at_sign != std::string_view::npos) {
      check_user(item.substr(0, at_sign), source);
      host.user = std::string(item.substr(0, at_sign));
      item.remove_prefix(at_sign + 1);
    }
    std::optional<int> slots;
    const size_t colon = item.find(':');
    if (colon != std::string_view::npos && colon == item.rfind(':')) {
      slots = number_in(item.substr(colon + 1), 1, kMostSlots,
                        fmt::format("the count of \"{}\"", escaped(item)), source);
      item = item.substr(0, colon);
    }
    check_host_name(item, source);
    host.name = std::string(item);
    builder.add(std::move(host), slots, mention);
  }
  return builder.finish();
}

std::string place_of(const Cluster& cluster, const Host& host) {
  return at(cluster.source, host.line);
}

std::string openmpi_hostfile(const Cluster& cluster) {
  std::string out;
  for (const Host& h : cluster.hosts) {
    out += h.user.empty() ? h.name : h.user + "@" + h.name;
    out += fmt::format(" slots={}", h.slots);
    if (h.max_slots) out += fmt::format(" max_slots={}", *h.max_slots);
    if (h.port != 0) out += fmt::format(" port={}", h.port);
    out += '\n';
  }
  return out;
}

}  // namespace r1::launch
