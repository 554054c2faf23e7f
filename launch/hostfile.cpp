#include "launch/hostfile.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <set>
#include <unordered_map>

#include "runtime/core/error.h"
#include "runtime/core/options.h"
#include "runtime/core/text.h"

namespace r1::launch {
namespace {

constexpr int kMostSlots = 65536;
constexpr size_t kMaxFileBytes = 64u << 20;
constexpr size_t kMaxHosts = 1'000'000;
constexpr size_t kMaxLine = 8192;

bool is_blank(char c) { return c == ' ' || c == '\t'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

std::string_view trim(std::string_view s) {
  while (!s.empty() && is_blank(s.front())) s.remove_prefix(1);
  while (!s.empty() && is_blank(s.back())) s.remove_suffix(1);
  return s;
}

/// Text that goes into a message: short, and without bytes that would disturb a terminal.
std::string shown(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 60))
    out += static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f
               ? fmt::format("\\x{:02x}", static_cast<unsigned char>(c))
               : std::string(1, c);
  return text.size() > 60 ? out + "…" : out;
}

std::string at(const std::string& source, int line) {
  return line > 0 ? fmt::format("{}:{}", source, line) : source;
}

std::optional<int64_t> whole_number(std::string_view text) {
  int64_t v = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
  if (text.empty() || !is_digit(text.front()) || error != std::errc() ||
      end != text.data() + text.size())
    return std::nullopt;
  return v;
}

int number_in(std::string_view text, int64_t least, int64_t most, const std::string& what,
              const std::string& where) {
  const auto v = whole_number(text);
  if (!v || *v < least || *v > most)
    throw UsageError("{}: {} is \"{}\"; allowed: a whole number from {} to {}", where, what,
                     shown(text), least, most);
  return static_cast<int>(*v);
}

bool is_address(const std::string& name) {
  std::array<unsigned char, 16> bytes;
  return inet_pton(AF_INET, name.c_str(), bytes.data()) == 1 ||
         inet_pton(AF_INET6, name.c_str(), bytes.data()) == 1;
}

void check_user(std::string_view user, const std::string& where) {
  const bool first = !user.empty() && (is_letter(user[0]) || user[0] == '_' || is_digit(user[0]));
  const bool rest = std::all_of(user.begin(), user.end(), [](char c) {
    return is_letter(c) || is_digit(c) || c == '_' || c == '-' || c == '.';
  });
  if (!first || !rest || user.size() > 64)
    throw UsageError("{}: user name \"{}\"; allowed: letters, digits, _ - . , at most 64 of them",
                     where, shown(user));
}

/// One line with its comment cut off, and r1run's annotation if the comment holds one.
struct Line {
  std::string text;
  std::string annotation;
  int number = 0;
};

/// Splits into lines and takes the comments (#, //, /* */) out. A block comment may span lines.
std::vector<Line> lines_of(std::string_view text, const std::string& source,
                           std::vector<std::string>* warnings) {
  if (text.size() > kMaxFileBytes)
    throw UsageError("{}: {} bytes: not a hostfile (at most {} are read)", source, text.size(),
                     kMaxFileBytes);
  std::vector<Line> lines;
  bool crlf = false, in_block = false;
  size_t from = 0;
  if (text.starts_with("\xef\xbb\xbf")) {
    warnings->push_back(source + ": starts with a byte order mark, which mpirun refuses; ignored");
    from = 3;
  }
  const bool ends_open = !text.empty() && text.back() != '\n';
  while (from < text.size()) {
    const size_t nl = std::min(text.find('\n', from), text.size());
    std::string_view raw = text.substr(from, nl - from);
    from = nl + 1;
    Line line;
    line.number = static_cast<int>(lines.size()) + 1;
    if (!raw.empty() && raw.back() == '\r') {
      crlf = true;
      raw.remove_suffix(1);
    }
    if (raw.size() > kMaxLine)
      throw UsageError("{}: line of {} characters, starting with \"{}\"; allowed: at most {}",
                       at(source, line.number), raw.size(), shown(raw), kMaxLine);
    for (size_t i = 0; i < raw.size(); ++i) {
      if (in_block) {
        if (raw.substr(i).starts_with("*/")) {
          in_block = false;
          ++i;
          line.text += ' ';
        }
      } else if (raw.substr(i).starts_with("/*")) {
        in_block = true;
        ++i;
      } else if (raw[i] == '#' || raw.substr(i).starts_with("//")) {
        std::string_view comment = trim(raw.substr(i + (raw[i] == '#' ? 1 : 2)));
        if (comment.starts_with("r1run:")) line.annotation = std::string(trim(comment.substr(6)));
        break;
      } else {
        line.text += raw[i];
      }
    }
    lines.push_back(std::move(line));
  }
  if (in_block) throw UsageError("{}: a /* comment is not closed", source);
  if (crlf)
    warnings->push_back(
        source +
        ": has Windows line ends (CRLF), which mpirun refuses; r1run hands it a clean copy");
  if (ends_open)
    warnings->push_back(source + ": the last line has no newline; r1run hands mpirun a clean copy");
  return lines;
}

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
      throw UsageError("{}: annotation \"{}\"; expected key=value", where, shown(word));
    const std::string key(word.substr(0, eq));
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
      const std::string near = nearest(key, keys);
      throw UsageError("{}: annotation \"{}\" is unknown{}; allowed: topology, fabric, tier, rack", where,
                       shown(key), near.empty() ? "" : " (did you mean " + near + "?)");
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

/// Puts hosts together: repeats, limits, names cut by mpirun.
class Builder {
 public:
  Builder(std::string source, NodefileKind kind) : kind_(kind) {
    cluster_.source = std::move(source);
  }

  /// One mention. `slots`: the count it gives, if it does; `mention`: where in the source ("line 7", "entry 2").
  void add(Host host, std::optional<int> slots, const std::string& mention) {
    const std::string where =
        host.line > 0 ? at(cluster_.source, host.line) : fmt::format("{} {}", cluster_.source, mention);
    const std::string first = mentions_.try_emplace(host.name, mention).first->second;
    const auto [it, is_new] = index_.try_emplace(host.name, cluster_.hosts.size());
    if (is_new) {
      if (index_.size() > kMaxHosts) throw UsageError("{}: more than {} hosts", where, kMaxHosts);
      const auto [spelled, fresh] = spelling_.try_emplace(lower(host.name), host.name);
      if (!fresh)
        throw UsageError(
            "{}: host \"{}\" differs from \"{}\" only in case: names of hosts do not depend on "
            "case, but "
            "mpirun would count them as two",
            where, host.name, spelled->second);
      host.slots = slots.value_or(host.max_slots.value_or(1));
      host.slots_given = slots.has_value() || host.max_slots.has_value();
      cluster_.hosts.push_back(std::move(host));
      return;
    }
    Host& known = cluster_.hosts[it->second];
    if (slots) {
      throw UsageError(
          "{}: host \"{}\" is named a second time (first in {}) with a slot count: give its "
          "slots once, "
          "or repeat its bare name once per slot",
          where, host.name, first);
    }
    if (!host.user.empty() && host.user != known.user)
      throw UsageError("{}: host \"{}\" has user \"{}\" here and \"{}\" in {}", where,
                       host.name, host.user, known.user, first);
    if (known.slots_given && !repeated_.contains(host.name))
      warn(where + ": host \"" + host.name +
           "\" has a slot count and is named again: each further mention adds one slot");
    repeated_.insert(host.name);
    ++known.slots;
    known.slots_given = true;
    for (const auto& [key, value] : host.annotations) known.annotations[key] = value;
  }

  Cluster finish() {
    if (cluster_.hosts.empty())
      throw UsageError("{}: names no host; expected lines like \"node1 slots=4\"", cluster_.source);
    std::map<std::string, std::string> labels;
    int64_t total = 0;
    std::vector<std::string> bare;
    for (Host& h : cluster_.hosts) {
      if (kind_ == NodefileKind::kPbs) h.slots_given = true;
      total += h.slots;
      if (h.max_slots && *h.max_slots < h.slots)
        throw UsageError("{}: host \"{}\" has max_slots {} below its {} slots",
                         at(cluster_.source, h.line), h.name, *h.max_slots, h.slots);
      if (!h.slots_given) bare.push_back(h.name);
      if (is_address(h.name)) continue;
      const auto [it, fresh] =
          labels.try_emplace(lower(h.name.substr(0, h.name.find('.'))), h.name);
      if (!fresh && !cluster_.keep_fqdn) {
        cluster_.keep_fqdn = true;
        warn(
            fmt::format("{}: \"{}\" and \"{}\" share their first label, which mpirun would take "
                        "for one host; it is told "
                        "to keep full names",
                        at(cluster_.source, h.line), it->second, h.name));
      }
    }
    if (total > 16'777'216)
      throw UsageError("{}: {} slots in all; allowed: at most 16777216", cluster_.source, total);
    if (!bare.empty())
      warn(
          fmt::format("{}: {} given without a slot count ({}{}): counted as one slot, where mpirun "
                      "alone would take all "
                      "cores; write slots=N",
                      cluster_.source,
                      bare.size() == 1 ? "a host is" : fmt::format("{} hosts are", bare.size()),
                      bare.front(), bare.size() > 1 ? ", …" : ""));
    return std::move(cluster_);
  }

  void warn(std::string text) { cluster_.warnings.push_back(std::move(text)); }
  std::vector<std::string>* warnings() { return &cluster_.warnings; }

 private:
  NodefileKind kind_;
  Cluster cluster_;
  std::unordered_map<std::string, size_t> index_;
  std::unordered_map<std::string, std::string> spelling_;
  std::unordered_map<std::string, std::string> mentions_;  ///< the first of each host
  std::set<std::string> repeated_;
};

/// Reads "key = value" pairs after a host's name.
class Words {
 public:
  explicit Words(std::string_view text) : text_(text) {}
  /// Next word or "="; empty at the end.
  std::string_view next() {
    text_ = trim(text_);
    if (text_.empty()) return {};
    size_t n = 1;
    if (text_[0] != '=')
      while (n < text_.size() && !is_blank(text_[n]) && text_[n] != '=') ++n;
    const std::string_view word = text_.substr(0, n);
    text_.remove_prefix(n);
    return word;
  }
  [[nodiscard]] bool equals_next() const { return trim(text_).starts_with("="); }

 private:
  std::string_view text_;
};

void parse_host_line(const Line& line, const std::map<std::string, std::string>& defaults,
                     Builder* builder, const std::string& source) {
  const std::string where = at(source, line.number);
  Words words(line.text);
  std::string_view name = words.next();
  if (name.empty()) return;
  if (name == "=" || (words.equals_next() && key_of(name)))
    throw UsageError(
        "{}: the line starts with \"{}\"; expected a host name first, as in \"node1 slots=4\"",
        where, shown(trim(line.text)));
  if (name[0] == '+')
    throw UsageError(
        "{}: relative host \"{}\" counts inside an allocation, which a hostfile of its own does "
        "not have "
        "(mpirun refuses it too); name the host",
        where, shown(name));
  Host host;
  host.line = line.number;
  host.annotations = defaults;
  if (!line.annotation.empty())
    for (auto& [key, value] : parse_annotation(line.annotation, where))
      host.annotations[key] = value;
  const size_t at_sign = name.find('@');
  if (at_sign != std::string_view::npos) {
    check_user(name.substr(0, at_sign), where);
    host.user = std::string(name.substr(0, at_sign));
    name.remove_prefix(at_sign + 1);
  }
  const size_t colon = name.find(':');
  if (colon != std::string_view::npos && name.find(':', colon + 1) == std::string_view::npos)
    throw UsageError(
        "{}: \"{}\": host:count is the form of --host; in a hostfile write \"{} slots={}\"", where,
        shown(name), shown(name.substr(0, colon)), shown(name.substr(colon + 1)));
  check_host_name(name, where);
  host.name = std::string(name);
  std::optional<int> slots;
  for (std::string_view word = words.next(); !word.empty(); word = words.next()) {
    if (!words.equals_next()) {
      if (word == "=") throw UsageError("{}: \"=\" without a key before it", where);
      throw UsageError(
          "{}: stray word \"{}\" after host \"{}\" (mpirun would ignore it); expected key=value "
          "with slots, "
          "max_slots, username or port",
          where, shown(word), host.name);
    }
    const auto key = key_of(word);
    if (!key) {
      const std::vector<std::string> names{"slots", "max_slots", "username",
                                           "port",  "cpu",       "count"};
      const std::string near = nearest(word, names);
      throw UsageError(
          "{}: unknown key \"{}\"{}; allowed: slots (or cpu, count), max_slots, username, port",
          where, shown(word), near.empty() ? "" : " (did you mean " + near + "?)");
    }
    (void)words.next();  // the "="
    const std::string_view value = words.next();
    if (value.empty() || value == "=") throw UsageError("{}: {} has no value", where, word);
    const auto once = [&](bool seen) {
      if (seen) throw UsageError("{}: {} is given twice for host \"{}\"", where, word, host.name);
    };
    switch (*key) {
      case Key::kSlots:
        once(slots.has_value());
        slots = number_in(value, 1, kMostSlots, std::string(word), where);
        break;
      case Key::kMaxSlots:
        once(host.max_slots.has_value());
        host.max_slots = number_in(value, 1, kMostSlots, std::string(word), where);
        break;
      case Key::kUser:
        once(!host.user.empty());
        check_user(value, where);
        host.user = std::string(value);
        break;
      case Key::kPort:
        once(host.port != 0);
        host.port = number_in(value, 1, 65535, "port", where);
        break;
    }
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
                     where, name.size(), shown(name));
  bool dotted_digits = true;
  size_t label = 0;
  for (size_t i = 0; i <= name.size(); ++i) {
    if (i == name.size() || name[i] == '.') {
      if (i == label)
        throw UsageError("{}: host name \"{}\" has an empty part", where, shown(name));
      if (i - label > 63)
        throw UsageError("{}: host name \"{}\" has a part of {} characters; allowed: at most 63",
                         where, shown(name), i - label);
      if (name[label] == '-' || name[i - 1] == '-')
        throw UsageError("{}: host name \"{}\" has a part that starts or ends with \"-\"", where,
                         shown(name));
      label = i + 1;
      continue;
    }
    if (!is_letter(name[i]) && !is_digit(name[i]) && name[i] != '-')
      throw UsageError(
          "{}: host name \"{}\" has character '{}'; allowed: letters, digits, \"-\" and \".\", or "
          "an IP "
          "address",
          where, shown(name), shown(name.substr(i, 1)));
    dotted_digits = dotted_digits && is_digit(name[i]);
  }
  if (dotted_digits && name.find('.') != std::string_view::npos && !is_address(std::string(name)))
    throw UsageError("{}: \"{}\" looks like an IPv4 address but is none", where, shown(name));
}

Cluster parse_hostfile(std::string_view text, const std::string& source, NodefileKind kind) {
  Builder builder(source, kind);
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

namespace {

std::string read_text(const std::string& path, const char* what) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw UsageError("{} {}: {}", what, path, std::strerror(errno));
  std::string text;
  std::array<char, 65536> buffer;
  while (in.read(buffer.data(), buffer.size()) || in.gcount() > 0) {
    text.append(buffer.data(), static_cast<size_t>(in.gcount()));
    if (text.size() > kMaxFileBytes) break;  // lines_of says so
  }
  if (in.bad() || (text.empty() && !in.eof()))
    throw UsageError("{} {}: cannot be read{}", what, path,
                     errno != 0 ? fmt::format(": {}", std::strerror(errno)) : "");
  return text;
}

}  // namespace

Cluster read_hostfile(const std::string& path, NodefileKind kind) {
  return parse_hostfile(read_text(path, "hostfile"), path, kind);
}

std::vector<RankfileEntry> read_rankfile(const std::string& path) {
  return parse_rankfile(read_text(path, "rankfile"), path);
}

Cluster filtered(const Cluster& hostfile, std::string_view host_list) {
  Cluster out = hostfile;
  out.hosts.clear();
  for (const Host& w : parse_host_list(host_list, "--host").hosts) {
    const size_t named = host_list.find(w.name + ":1");  // with more it shows
    const bool counted = w.slots > 1 || (named != std::string_view::npos &&
                                         (named == 0 || std::string_view(", @").find(host_list[named - 1]) != std::string_view::npos));
    const auto it = std::ranges::find(hostfile.hosts, w.name, &Host::name);
    if (it == hostfile.hosts.end())
      throw UsageError("--host: {} is not in {}: with a hostfile, --host takes from its hosts", w.name, hostfile.source);
    if (counted && w.slots > it->slots)
      throw UsageError("--host: {} slots of {}, but {} gives it {}", w.slots, w.name, at(hostfile.source, it->line), it->slots);
    out.hosts.push_back(*it);
    if (counted) out.hosts.back().slots = w.slots;
  }
  return out;
}

Cluster parse_host_list(std::string_view text, const std::string& source) {
  Builder builder(source, NodefileKind::kPbs);
  size_t from = 0;
  for (int entry = 1; from <= text.size(); ++entry) {
    const size_t to = std::min(text.find(',', from), text.size());
    std::string_view item = trim(text.substr(from, to - from));
    from = to + 1;
    const std::string mention = fmt::format("entry {} (\"{}\")", entry, shown(item));
    if (item.empty())
      throw UsageError("{}: \"{}\" has an empty item; expected HOST[:SLOTS],…", source,
                       shown(text));
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
                        fmt::format("the count of \"{}\"", shown(item)), source);
      item = item.substr(0, colon);
    }
    check_host_name(item, source);
    host.name = std::string(item);
    builder.add(std::move(host), slots, mention);
  }
  return builder.finish();
}

std::string place_of(const Cluster& cluster, const Host& host) { return at(cluster.source, host.line); }

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

// -- Slurm

namespace {

struct NumberRange {
  uint64_t first = 0, last = 0;
  size_t width = 0;
};

/// "1-3,07" → ranges. Zero padding keeps the width of the first number.
std::vector<NumberRange> parse_ranges(std::string_view body, std::string_view item,
                                      const std::string& source) {
  std::vector<NumberRange> out;
  size_t from = 0;
  while (from <= body.size()) {
    const size_t to = std::min(body.find(',', from), body.size());
    const std::string_view part = body.substr(from, to - from);
    from = to + 1;
    const size_t dash = part.find('-');
    const std::string_view lo = part.substr(0, dash);
    const std::string_view hi = dash == std::string_view::npos ? lo : part.substr(dash + 1);
    const auto a = whole_number(lo), b = whole_number(hi);
    if (!a || !b || lo.size() > 18 || hi.size() > 18)
      throw UsageError(
          "{}: \"{}\": \"{}\" is no range of numbers; expected N or N-M between the brackets",
          source, shown(item), shown(part));
    if (*b < *a)
      throw UsageError("{}: \"{}\": range \"{}\" runs backwards", source, shown(item), shown(part));
    out.push_back({static_cast<uint64_t>(*a), static_cast<uint64_t>(*b), lo.size()});
  }
  return out;
}

/// Expands one item ("a[1-2]b[3-4]-ib"): the last bracket runs fastest.
void expand_item(std::string_view item, const std::string& source, std::vector<std::string>* out) {
  std::vector<std::string> names{""};
  size_t i = 0;
  while (i < item.size()) {
    if (item[i] == ']') throw UsageError("{}: \"{}\": \"]\" without \"[\"", source, shown(item));
    if (item[i] != '[') {
      const size_t end = std::min(item.find_first_of("[]", i), item.size());
      for (auto& n : names) n.append(item.substr(i, end - i));
      i = end;
      continue;
    }
    const size_t close = item.find_first_of("[]", i + 1);
    if (close == std::string_view::npos || item[close] != ']')
      throw UsageError("{}: \"{}\": \"[\" is not closed", source, shown(item));
    const auto ranges = parse_ranges(item.substr(i + 1, close - i - 1), item, source);
    uint64_t each = 0;
    for (const auto& r : ranges) each += std::min<uint64_t>(r.last - r.first + 1, kMaxHosts + 1);
    if (each * names.size() + out->size() > kMaxHosts)
      throw UsageError("{}: \"{}\" names more than {} hosts", source, shown(item), kMaxHosts);
    std::vector<std::string> longer;
    longer.reserve(names.size() * each);
    for (const auto& n : names)
      for (const auto& r : ranges)
        for (uint64_t v = r.first; v <= r.last; ++v)
          longer.push_back(fmt::format("{}{:0{}}", n, v, r.width));
    names = std::move(longer);
    i = close + 1;
  }
  for (auto& n : names) {
    check_host_name(n, source);
    out->push_back(std::move(n));
  }
  if (out->size() > kMaxHosts) throw UsageError("{}: names more than {} hosts", source, kMaxHosts);
}

}  // namespace

std::vector<std::string> expand_node_list(std::string_view text, const std::string& source) {
  std::vector<std::string> out;
  size_t from = 0;
  int depth = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && text[i] == '[') ++depth;
    if (i < text.size() && text[i] == ']') --depth;
    if (i < text.size() &&
        !(depth <= 0 && (text[i] == ',' || is_blank(text[i]) || text[i] == '\n')))
      continue;
    const std::string_view item = text.substr(from, i - from);
    from = i + 1;
    if (!item.empty()) expand_item(item, source, &out);
  }
  return out;
}

std::vector<int> expand_counts(std::string_view text, const std::string& source) {
  std::vector<int> out;
  size_t from = 0;
  while (from <= text.size()) {
    const size_t to = std::min(text.find(',', from), text.size());
    const std::string_view item = trim(text.substr(from, to - from));
    from = to + 1;
    const size_t open = item.find('(');
    int repeat = 1;
    if (open != std::string_view::npos) {
      if (!item.ends_with(")") || item.substr(open + 1, 1) != "x")
        throw UsageError("{}: \"{}\"; expected N or N(xM)", source, shown(item));
      repeat = number_in(item.substr(open + 2, item.size() - open - 3), 1,
                         static_cast<int64_t>(kMaxHosts), "the repeat", source);
    }
    const int n = number_in(item.substr(0, open), 1, kMostSlots, "a count", source);
    if (out.size() + static_cast<size_t>(repeat) > kMaxHosts)
      throw UsageError("{}: counts for more than {} hosts", source, kMaxHosts);
    out.insert(out.end(), static_cast<size_t>(repeat), n);
  }
  return out;
}

Cluster slurm_cluster(std::string_view node_list, std::string_view tasks_per_node) {
  const std::string source = "SLURM_JOB_NODELIST";
  const std::vector<std::string> names = expand_node_list(node_list, source);
  std::vector<int> tasks(names.size(), 1);
  if (!tasks_per_node.empty()) tasks = expand_counts(tasks_per_node, "SLURM_TASKS_PER_NODE");
  if (tasks.size() != names.size())
    throw UsageError(
        "SLURM_TASKS_PER_NODE=\"{}\" counts {} nodes but SLURM_JOB_NODELIST=\"{}\" names {}",
        shown(tasks_per_node), tasks.size(), shown(node_list), names.size());
  Builder builder(source, NodefileKind::kPbs);
  for (size_t i = 0; i < names.size(); ++i) {
    Host h;
    h.name = names[i];
    builder.add(std::move(h), tasks[i], fmt::format("node {}", i + 1));
  }
  return builder.finish();
}

// -- rankfile

namespace {

std::vector<std::pair<int, int>> parse_core_list(std::string_view text, const std::string& where) {
  std::vector<std::pair<int, int>> out;
  size_t from = 0;
  while (from <= text.size()) {
    const size_t to = std::min(text.find(',', from), text.size());
    const std::string_view part = text.substr(from, to - from);
    from = to + 1;
    const size_t dash = part.find('-');
    const int lo = number_in(part.substr(0, dash), 0, 1 << 20, "a core", where);
    const int hi = dash == std::string_view::npos
                       ? lo
                       : number_in(part.substr(dash + 1), 0, 1 << 20, "a core", where);
    if (hi < lo) throw UsageError("{}: core range \"{}\" runs backwards", where, shown(part));
    out.emplace_back(lo, hi);
  }
  return out;
}

std::vector<RankfileEntry::Part> parse_slot_list(std::string_view text, const std::string& where) {
  std::vector<RankfileEntry::Part> out;
  size_t from = 0;
  while (from <= text.size()) {
    const size_t to = std::min(text.find(';', from), text.size());
    const std::string_view part = text.substr(from, to - from);
    from = to + 1;
    RankfileEntry::Part p;
    const size_t colon = part.find(':');
    if (colon != std::string_view::npos)
      p.socket = number_in(part.substr(0, colon), 0, 1 << 16, "a socket", where);
    const std::string_view cores = colon == std::string_view::npos ? part : part.substr(colon + 1);
    if (!(cores == "*" && p.socket >= 0)) p.cores = parse_core_list(cores, where);
    out.push_back(std::move(p));
  }
  return out;
}

}  // namespace

std::vector<RankfileEntry> parse_rankfile(std::string_view text, const std::string& source) {
  std::vector<std::string> ignored;
  std::map<int, RankfileEntry> by_rank;
  for (const Line& line : lines_of(text, source, &ignored)) {
    const std::string where = at(source, line.number);
    Words words(line.text);
    std::string_view word = words.next();
    if (word.empty()) continue;
    if (word != "rank")
      throw UsageError("{}: starts with \"{}\"; expected rank N=HOST slot=CORES", where,
                       shown(word));
    RankfileEntry e;
    e.line = line.number;
    e.rank = number_in(words.next(), 0, 1 << 24, "the rank", where);
    if (words.next() != "=") throw UsageError("{}: expected \"=\" after rank {}", where, e.rank);
    std::string_view host = words.next();
    if (host.starts_with("+"))
      throw UsageError("{}: relative host \"{}\": Open MPI 4.1.4 fails on it; name the host", where,
                       shown(host));
    if (const size_t at_sign = host.find('@'); at_sign != std::string_view::npos)
      host.remove_prefix(at_sign + 1);
    check_host_name(host, where);
    e.host = std::string(host);
    word = words.next();
    if ((word != "slot" && word != "slots") || words.next() != "=")
      throw UsageError("{}: expected slot=CORES after host \"{}\"", where, e.host);
    std::string list;
    for (word = words.next(); !word.empty(); word = words.next()) list += word;
    if (list.empty()) throw UsageError("{}: slot= has no cores", where);
    e.parts = parse_slot_list(list, where);
    const auto [it, fresh] = by_rank.try_emplace(e.rank, e);
    if (!fresh)
      throw UsageError("{}: rank {} is placed a second time (first in line {})", where, e.rank,
                       it->second.line);
  }
  if (by_rank.empty())
    throw UsageError("{}: places no rank; expected lines like \"rank 0=node1 slot=0-3\"", source);
  std::vector<RankfileEntry> out;
  for (auto& [rank, e] : by_rank) {
    if (rank != static_cast<int>(out.size()))
      throw UsageError("{}: rank {} has no line, but rank {} has", source, out.size(), rank);
    out.push_back(std::move(e));
  }
  return out;
}

std::string rankfile_text(const std::vector<RankfileEntry>& entries) {
  std::string out;
  for (const RankfileEntry& e : entries) {
    out += fmt::format("rank {}={} slot=", e.rank, e.host);
    for (size_t i = 0; i < e.parts.size(); ++i) {
      const RankfileEntry::Part& p = e.parts[i];
      if (i > 0) out += ';';
      if (p.socket >= 0) out += fmt::format("{}:", p.socket);
      if (p.cores.empty()) out += '*';
      for (size_t c = 0; c < p.cores.size(); ++c) {
        const auto [first, last] = p.cores[c];
        out += fmt::format("{}{}{}", c > 0 ? "," : "", first, last > first ? fmt::format("-{}", last) : "");
      }
    }
    out += '\n';
  }
  return out;
}

Cluster rankfile_cluster(const std::vector<RankfileEntry>& entries, const std::string& source) {
  Cluster out{.hosts = {}, .source = source};
  for (const RankfileEntry& e : entries) {
    auto it = std::ranges::find(out.hosts, e.host, &Host::name);
    if (it == out.hosts.end()) it = out.hosts.insert(it, {.name = e.host, .slots = 0, .slots_given = true, .line = e.line});
    ++it->slots;
  }
  return out;
}

}  // namespace r1::launch
