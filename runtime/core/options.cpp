#include "runtime/core/options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>
#include <variant>

#include "runtime/core/error.h"
#include "runtime/core/option_table.h"

namespace r1 {

using options::Form;
using options::kGroups;
using options::Option;
using options::table;

namespace {

namespace po = boost::program_options;

// ---- The subcommands

uint32_t command_bit(std::string_view name) {
  for (size_t i = 0; i < subcommands().size(); ++i) {
    if (subcommands()[i].name == name) return 1u << i;
  }
  throw InternalError("no subcommand {}", name);
}

const Subcommand& subcommand(std::string_view name) {
  return subcommands()[static_cast<size_t>(std::countr_zero(command_bit(name)))];
}

bool is_flag(const Option& o) { return std::holds_alternative<bool JobConfig::*>(o.field); }
bool is_whole(const Option& o) {
  return std::holds_alternative<int JobConfig::*>(o.field) ||
         std::holds_alternative<int64_t JobConfig::*>(o.field) ||
         std::holds_alternative<uint64_t JobConfig::*>(o.field) ||
         std::holds_alternative<std::optional<int64_t> JobConfig::*>(o.field) ||
         std::holds_alternative<std::vector<int64_t> JobConfig::*>(o.field);
}
bool is_text(const Option& o) {
  return std::holds_alternative<std::string JobConfig::*>(o.field) ||
         std::holds_alternative<std::vector<std::string> JobConfig::*>(o.field);
}
/// May be given several times, each adding one value.
bool repeats(const Option& o) {
  return std::holds_alternative<std::vector<std::string> JobConfig::*>(o.field) &&
         o.form != Form::kCommas;
}

const Option* find_option(std::string_view command, std::string_view name) {
  const uint32_t bit = command_bit(command);
  for (const auto& o : table()) {
    if (o.name == name && (o.commands & bit) != 0) return &o;
  }
  return nullptr;
}

/// Names of the subcommands that are there.
std::vector<std::string> command_names() {
  std::vector<std::string> names;
  for (const auto& c : subcommands()) {
    if (!c.planned) names.emplace_back(c.name);
  }
  return names;
}

/// Nothing may be accepted that nothing acts on.
void check_available(const Option& o, std::string_view place) {
  if (o.planned)
    throw UsageError("{}--{}: this version of r1run cannot do that yet", place, o.name);
}

/// Subcommands that have an option of this name; empty when none has.
std::vector<std::string_view> commands_with(std::string_view name) {
  std::vector<std::string_view> out;
  for (const auto& c : subcommands()) {
    if (find_option(c.name, name) != nullptr) out.push_back(c.name);
  }
  return out;
}

// ---- Values: text <-> field

std::string number(double x) {
  return std::abs(x) < 1e15 && x == std::floor(x) ? fmt::format("{:.0f}", x) : fmt::format("{}", x);
}

std::string allowed_text(const Option& o) {
  if (is_flag(o)) return "true or false";
  if (is_text(o)) {
    if (o.choices.empty()) return "any text but none at all";
    if (o.form == Form::kCommas)
      return fmt::format("none, or some of {} with commas", fmt::join(o.choices, ", "));
    return fmt::format("{}", fmt::join(o.choices, ", "));
  }
  std::string out = o.form == Form::kDuration ? "a time"
                    : o.form == Form::kCommas ? "whole numbers with commas"
                    : is_whole(o)             ? "a whole number"
                                              : "a number";
  const bool whole_unsigned = std::holds_alternative<uint64_t JobConfig::*>(o.field);
  const double least = whole_unsigned ? 0 : o.range.least;
  if (std::isfinite(o.range.most) && std::isfinite(least) && !o.range.open_least &&
      !o.range.open_most) {
    out += fmt::format(" from {} to {}", number(least), number(o.range.most));
  } else {
    if (std::isfinite(least))
      out += fmt::format(" {} {}", o.range.open_least ? "above" : "of at least", number(least));
    if (std::isfinite(o.range.most)) {
      out += fmt::format("{} {} {}", std::isfinite(least) ? " and" : "",
                         o.range.open_most ? "below" : "at most", number(o.range.most));
    }
  }
  if (o.form == Form::kDuration) out += ", such as 500ms, 2s, 10m or 1h";
  if (!o.choices.empty()) out += fmt::format(", or {}", o.choices.front());
  return out;
}

/// "--lr -3 (command line)".
std::string cite(const Option& o, std::string_view text, const Origin& origin) {
  if (origin.kind == Origin::Kind::kFile)
    return fmt::format("{}: {} = {}", origin.where, o.name, text);
  return fmt::format("--{}{}{} ({})", o.name, text.empty() ? "" : " ", text, origin.str());
}

[[noreturn]] void refuse(const Option& o, std::string_view text, const Origin& origin,
                         std::string_view why) {
  std::string hint;
  if (!o.choices.empty()) {
    const std::vector<std::string> words(o.choices.begin(), o.choices.end());
    if (const auto near = nearest(text, words); !near.empty())
      hint = fmt::format(". Did you mean {}?", near);
  }
  throw UsageError("{}: {}; allowed: {}{}", cite(o, text, origin), why, allowed_text(o), hint);
}

void check_range(const Option& o, double x, std::string_view text, const Origin& origin) {
  const auto& r = o.range;
  if (x < r.least || (r.open_least && x == r.least)) refuse(o, text, origin, "too small");
  if (x > r.most || (r.open_most && x == r.most)) refuse(o, text, origin, "too large");
}

template <class T>
T read_whole(const Option& o, const std::string& text, const Origin& origin) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc::result_out_of_range) refuse(o, text, origin, "too large to count with");
  if (error != std::errc{} || at != end) refuse(o, text, origin, "not a whole number");
  check_range(o, static_cast<double>(value), text, origin);
  return value;
}

double read_real(const Option& o, const std::string& text, const Origin& origin) {
  double value = 0;
  const char* const end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc::result_out_of_range)
    refuse(o, text, origin, "too large or too small for a number");
  std::string_view unit(at, static_cast<size_t>(end - at));
  if (error != std::errc{}) unit = "?";
  if (o.form == Form::kDuration && error == std::errc{}) {
    constexpr std::pair<std::string_view, double> units[] = {{"", 1},   {"s", 1},    {"ms", 1e-3},
                                                             {"m", 60}, {"min", 60}, {"h", 3600}};
    for (const auto& [name, seconds] : units) {
      if (unit == name) {
        value *= seconds;
        unit = "";
        break;
      }
    }
  }
  if (!unit.empty())
    refuse(o, text, origin, o.form == Form::kDuration ? "not a time" : "not a number");
  if (!std::isfinite(value)) refuse(o, text, origin, "not finite");
  check_range(o, value, text, origin);
  return value;
}

bool read_flag(const Option& o, const std::string& text, const Origin& origin) {
  for (const char* yes : {"true", "yes", "on", "1"}) {
    if (text == yes) return true;
  }
  for (const char* no : {"false", "no", "off", "0"}) {
    if (text == no) return false;
  }
  refuse(o, text, origin, "neither true nor false");
}

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> out;
  std::stringstream in(text);
  for (std::string part; std::getline(in, part, ',');) out.push_back(part);
  if (!text.empty() && text.back() == ',') out.emplace_back();
  return out;
}

void check_text(const Option& o, const std::string& part, const std::string& text,
                const Origin& origin) {
  if (part.empty()) refuse(o, text, origin, "empty");
  if (part.find('\0') != std::string::npos) refuse(o, "", origin, "holds a NUL character");
  if (!o.choices.empty() && std::ranges::find(o.choices, part) == o.choices.end()) {
    refuse(o, text, origin, text == part ? "not known" : fmt::format("\"{}\" is not known", part));
  }
  if (o.check != nullptr) {
    if (const auto allowed = o.check(part); !allowed.empty()) {
      throw UsageError("{}: not understood; allowed: {}", cite(o, text, origin), allowed);
    }
  }
}

/// Sets (or, for one that repeats, adds to) the field of `o`.
void assign(JobConfig& cfg, const Option& o, const std::string& text, const Origin& origin) {
  const bool is_word = !is_text(o) && !o.choices.empty() && text == o.choices.front();
  std::visit(
      [&](auto member) {
        auto& field = cfg.*member;
        using T = std::remove_reference_t<decltype(field)>;
        if constexpr (std::is_same_v<T, std::string>) {
          // What may stand without a value may be switched as a flag is.
          const std::string value = o.bare.empty() ? text : text == "true" ? std::string(o.bare) : text == "false" ? std::string(o.fallback) : text;
          check_text(o, value, text, origin);
          field = value;
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          if (o.form == Form::kCommas) {
            field.clear();
            if (text == "none" && !o.choices.empty()) return;
            for (const auto& part : split_commas(text)) {
              check_text(o, part, text, origin);
              if (std::ranges::find(field, part) != field.end())
                refuse(o, text, origin, fmt::format("{} twice", part));
              field.push_back(part);
            }
            if (field.empty()) refuse(o, text, origin, "empty");
          } else {
            check_text(o, text, text, origin);
            field.push_back(text);
          }
        } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
          field.clear();
          for (const auto& part : split_commas(text))
            field.push_back(read_whole<int64_t>(o, part, origin));
          if (field.empty()) refuse(o, text, origin, "empty");
        } else if constexpr (std::is_same_v<T, bool>) {
          field = read_flag(o, text, origin);
        } else if constexpr (std::is_same_v<T, std::optional<double>>) {
          field = read_real(o, text, origin);
        } else if constexpr (std::is_same_v<T, std::optional<int64_t>>) {
          field = read_whole<int64_t>(o, text, origin);
        } else if constexpr (std::is_same_v<T, double>) {
          field = is_word ? 0.0 : read_real(o, text, origin);
        } else {
          field = is_word ? T{0} : read_whole<T>(o, text, origin);
        }
      },
      o.field);
}

void clear(JobConfig& cfg, const Option& o) {
  std::visit([&](auto member) { cfg.*member = {}; }, o.field);
}

/// The values of an option as texts that assign() takes: none when it is not given, several when it
/// repeats.
std::vector<std::string> texts_of(const JobConfig& cfg, const Option& o) {
  return std::visit(
      [&](auto member) -> std::vector<std::string> {
        const auto& field = cfg.*member;
        using T = std::remove_cvref_t<decltype(field)>;
        if constexpr (std::is_same_v<T, std::string>) {
          if (field.empty()) return {};
          return {field};
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          if (o.form != Form::kCommas) return field;
          if (field.empty() && o.choices.empty()) return {};
          return {field.empty() ? "none" : fmt::format("{}", fmt::join(field, ","))};
        } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
          if (field.empty()) return {};
          return {fmt::format("{}", fmt::join(field, ","))};
        } else if constexpr (std::is_same_v<T, std::optional<double>> ||
                             std::is_same_v<T, std::optional<int64_t>>) {
          if (!field) return {};
          return {fmt::format("{}", *field)};
        } else if constexpr (std::is_same_v<T, bool>) {
          return {field ? "true" : "false"};
        } else {
          const bool zero_allowed =
              o.range.least < 0 || (o.range.least == 0 && !o.range.open_least);
          if (field == T{0} && !zero_allowed) {
            if (o.choices.empty()) return {};
            return {std::string(o.choices.front())};
          }
          if (o.form == Form::kDuration) return {fmt::format("{}s", field)};
          return {fmt::format("{}", field)};
        }
      },
      o.field);
}

// ---- Where values come from

/// One value as it was given.
struct Given {
  const Option* option = nullptr;
  std::string text;
  Origin origin;
};

[[noreturn]] void unknown_option(std::string_view command, std::string_view shown,
                                 std::string_view name, std::string_view place) {
  std::vector<std::string> names;
  for (const auto& o : table()) {
    if ((o.commands & command_bit(command)) != 0 && !o.planned) names.emplace_back(o.name);
  }
  std::string plain(name);
  std::ranges::replace(plain, '_', '-');
  std::ranges::transform(plain, plain.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  std::string near;
  for (const auto& [other, ours] : options::other_names()) {
    if (plain == other && find_option(command, ours) != nullptr) near = ours;
  }
  if (near.empty()) near = nearest(plain, names);
  auto elsewhere = commands_with(plain);
  std::erase_if(elsewhere, [](std::string_view c) { return subcommand(c).planned; });
  std::string hint;
  if (!near.empty()) {
    hint = fmt::format(" Did you mean --{}?", near);
  } else if (!elsewhere.empty()) {
    hint = fmt::format(" It belongs to r1run {}.", fmt::join(elsewhere, ", "));
  }
  throw UsageError("{}{}: r1run {} has no such option.{} `r1run {} --help` lists them all", place,
                   shown, command, hint, command);
}

std::vector<Given> read_flags(std::string_view command, std::span<const std::string> args) {
  po::options_description known;
  for (const auto& o : table()) {
    if ((o.commands & command_bit(command)) == 0) continue;
    auto* value = po::value<std::string>();
    if (is_flag(o)) value->implicit_value("true");  // --no-shuffle, or --no-shuffle=false
    else if (!o.bare.empty()) value->implicit_value(std::string(o.bare));
    const std::string letter = o.name == "help" ? ",h" : o.name == "host" ? ",H" : "";
    known.add_options()((std::string(o.name) + letter).c_str(), value);
  }
  using namespace po::command_line_style;
  // No guessing: an abbreviation would change its meaning when an option is added.
  const int style = allow_long | long_allow_adjacent | long_allow_next | allow_short |
                    allow_dash_for_short | short_allow_next | short_allow_adjacent;
  std::vector<po::option> found;
  try {
    found = po::command_line_parser(std::vector<std::string>(args.begin(), args.end()))
                .options(known)
                .style(style)
                .allow_unregistered()
                .run()
                .options;
  } catch (const po::error_with_option_name& e) {
    const std::string name = e.get_option_name();
    const auto* o =
        find_option(command, name.substr(std::min(name.find_first_not_of('-'), name.size())));
    if (o == nullptr) throw UsageError("{}", e.what());
    throw UsageError("--{} needs a value: {} ({})", o->name, o->metavar, allowed_text(*o));
  } catch (const po::error& e) {
    throw UsageError("the command line cannot be read: {}", e.what());
  }

  const Origin here{Origin::Kind::kCommandLine, ""};
  std::vector<Given> out;
  for (const auto& f : found) {
    const std::string& token = f.original_tokens.empty() ? f.string_key : f.original_tokens.front();
    const bool bare = f.position_key >= 0;
    if (f.unregistered || (bare && token.size() > 1 && token[0] == '-')) {
      const auto name = token.substr(std::min(token.find_first_not_of('-'), token.size()));
      unknown_option(command, token.substr(0, token.find('=')), name.substr(0, name.find('=')), "");
    }
    if (bare) {
      const auto positional = subcommand(command).positional;
      if (!positional.empty()) {
        const auto* o = find_option(command, positional);
        const auto before = std::ranges::find(out, o, &Given::option);
        if (before != out.end())
          throw UsageError("\"{}\" after \"{}\": r1run {} takes one FILE; several that belong together are one argument with "
                           "commas: {},{}",
                           token, before->text, command, before->text, token);
        out.push_back({o, token, here});
        continue;
      }
      const bool is_command =
          std::ranges::find(subcommands(), token, &Subcommand::name) != subcommands().end();
      const std::string hint =
          is_command ? fmt::format("; the subcommand comes first: r1run {} ...", token)
          : !out.empty() && repeats(*out.back().option)
              ? fmt::format("; to give --{} several values, repeat it before each",
                            out.back().option->name)
              : std::string("; options begin with --");
      throw UsageError("\"{}\": r1run {} takes no argument here{}", token, command, hint);
    }
    const auto* o = find_option(command, f.string_key);
    R1_CHECK(o != nullptr && f.value.size() <= 1, "option {}", f.string_key);
    check_available(*o, "");
    const std::string text = !f.value.empty() ? f.value.front() : std::string(is_flag(*o) ? "true" : o->bare);
    // "--lr --steps 5": the next option is no value.
    if (text.starts_with("--") &&
        find_option(command, text.substr(2, text.find('=') - 2)) != nullptr &&
        !(f.original_tokens.size() == 1)) {
      throw UsageError("--{} needs a value: {} ({}); found {}", o->name, o->metavar,
                       allowed_text(*o), text);
    }
    out.push_back({o, text, here});
  }
  return out;
}

/// Undoes quoted(); `place` for messages.
std::string unquoted(const std::string& text, const std::string& place) {
  if (text.empty() || text[0] != '"') return text;
  const auto bad = [&](std::string_view why) {
    return UsageError(
        "{}: {} in {}; in quotes, # is written \\x23, a quote \\\" and a backslash \\\\", place,
        why, text);
  };
  std::string out;
  for (size_t i = 1; i < text.size(); ++i) {
    if (text[i] == '"') {
      if (i + 1 != text.size()) throw bad("text after the closing quote");
      return out;
    }
    if (text[i] != '\\') {
      out += text[i];
      continue;
    }
    if (++i == text.size()) break;
    switch (text[i]) {
      case 'n':
        out += '\n';
        break;
      case 'r':
        out += '\r';
        break;
      case 't':
        out += '\t';
        break;
      case '"':
      case '\\':
        out += text[i];
        break;
      case 'x': {
        unsigned code = 0;
        const char* const first = text.data() + i + 1;
        const char* const last = text.data() + std::min(i + 3, text.size());
        const auto [at, error] = std::from_chars(first, last, code, 16);
        if (error != std::errc{} || at != first + 2)
          throw bad("\\x without two hexadecimal digits");
        out += static_cast<char>(code);
        i += 2;
        break;
      }
      default:
        throw bad(fmt::format("unknown escape \\{}", text[i]));
    }
  }
  throw bad("no closing quote");
}

std::string quoted(const std::string& text) {
  const bool plain =
      !text.empty() && text.front() != '"' && text.front() != ' ' && text.back() != ' ' &&
      std::ranges::none_of(text, [](unsigned char c) { return c < 0x20 || c == '#' || c == 0x7f; });
  if (plain) return text;
  std::string out = "\"";
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (c == '\n')
      out += "\\n";
    else if (c == '\r')
      out += "\\r";
    else if (c == '\t')
      out += "\\t";
    else if (c == '"' || c == '\\')
      out += fmt::format("\\{}", c);
    else if (u < 0x20 || c == '#' || u == 0x7f)
      out += fmt::format("\\x{:02x}", u);
    else
      out += c;
  }
  return out + "\"";
}

/// What a file says in general, and what it says in the section of `command`, which beats that.
struct FileContent {
  std::vector<Given> general, section;
};

FileContent read_file(std::string_view command, const std::string& path) {
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  in.peek();  // a directory opens, and fails here
  if (!in.is_open() || in.bad()) {
    throw UsageError("--config {}: cannot be read ({})", path,
                     std::generic_category().message(errno));
  }
  FileContent out;
  std::map<std::pair<const Option*, bool>, int> line_of;
  std::string section;
  std::string line;
  for (int n = 1; std::getline(in, line); ++n) {
    const auto place = fmt::format("{}:{}", path, n);
    if (n == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);
    if (line.find('\0') != std::string::npos) throw UsageError("{}: not a text file", place);
    const auto hash = line.find('#');
    const auto begin = line.find_first_not_of(" \t\r");
    if (begin == std::string::npos || hash == begin) continue;
    if (hash != std::string::npos && line[hash - 1] != ' ' && line[hash - 1] != '\t') {
      // Boost would cut the value here without a word.
      throw UsageError(
          "{}: # begins a comment; put a blank before it, or write the value \"in quotes\" with "
          "\\x23 for #",
          place);
    }
    if (line[begin] == '[') {
      const auto end = line.find(']');
      section = end == std::string::npos ? "" : line.substr(begin + 1, end - begin - 1);
      if (std::ranges::find(subcommands(), section, &Subcommand::name) == subcommands().end()) {
        const auto names = command_names();
        throw UsageError("{}: a section is a subcommand in brackets, one of {}; found {}", place,
                         fmt::join(names, ", "), line.substr(begin));
      }
      continue;
    }
    // One line at a time, because Boost does not tell lines: `name = value`, blanks and comments
    // are its business.
    std::vector<po::option> found;
    try {
      std::istringstream one(line);
      const po::options_description none;
      found = po::parse_config_file(one, none, /*allow_unregistered=*/true).options;
    } catch (const po::error&) {
      found.clear();
    }
    if (found.size() != 1) {
      throw UsageError("{}: expected `name = value`, a [subcommand] or a # comment; found {}",
                       place, line.substr(begin, line.find_last_not_of(" \t\r") - begin + 1));
    }
    const auto& name = found.front().string_key;
    if (name == "config" || name == "help")
      throw UsageError("{}: {} is for the command line only", place, name);
    const std::string_view reader = section.empty() ? command : std::string_view(section);
    const auto* o = find_option(reader, name);
    if (o == nullptr && (!section.empty() || commands_with(name).empty())) {
      unknown_option(reader, name, name, place + ": ");
    }
    if (o == nullptr || reader != command) continue;
    check_available(*o, place + ": ");
    if (const auto [at, is_new] = line_of.emplace(std::pair(o, section.empty()), n);
        !is_new && !repeats(*o)) {
      throw UsageError("{}: {} was already given in line {}", place, name, at->second);
    }
    const auto& value = found.front().value;
    const auto text = unquoted(value.empty() ? "" : value.front(), place);
    (section.empty() ? out.general : out.section)
        .push_back({o, text, {Origin::Kind::kFile, place}});
  }
  return out;
}

/// Applies one source (a file, or the command line): what repeats replaces what an earlier source
/// said.
void apply_source(JobConfig& cfg, const std::vector<Given>& source) {
  std::set<const Option*> seen;
  for (const auto& g : source) {
    if (seen.insert(g.option).second) clear(cfg, *g.option);
    assign(cfg, *g.option, g.text, g.origin);
    cfg.origins.insert_or_assign(std::string(g.option->name), g.origin);
  }
}

/// A later flag beats an earlier one, so that a command can be completed; but where they differ it may be a slip.
std::vector<std::string> contradictions(const std::vector<Given>& flags) {
  std::vector<std::string> out;
  for (auto later = flags.begin(); later != flags.end(); ++later) {
    const auto earlier = std::find_if(std::make_reverse_iterator(later), flags.rend(),
                                      [&](const Given& g) { return g.option == later->option; });
    if (earlier == flags.rend() || earlier->text == later->text || repeats(*later->option)) continue;
    out.push_back(fmt::format("--{0} {1} and --{0} {2}: given twice, the later one ({2}) counts", later->option->name,
                              earlier->text, later->text));
  }
  return out;
}

/// What can be known to be impossible, or follows, from the options alone.
void check_combinations(JobConfig& cfg) {
  const auto has = [&](std::string_view name) { return find_option(cfg.command, name) != nullptr; };
  const auto shown = [&](std::string_view name) {
    return cite(*find_option(cfg.command, name), cfg.value(name), cfg.origin(name));
  };
  if (has("steps") && has("epochs") && cfg.is_set("steps")) {
    const bool both = cfg.is_set("epochs");
    if (both && cfg.origin("steps").kind == cfg.origin("epochs").kind) {
      throw UsageError("{} and {}: give one of them", shown("steps"), shown("epochs"));
    }
    // A flag beats a file, also between the two.
    if (both && cfg.origin("epochs").kind == Origin::Kind::kCommandLine) {
      cfg.steps = 0;
      cfg.origins["steps"] = {Origin::Kind::kDerived, "--epochs is given"};
    } else {
      cfg.epochs = 0;
      cfg.origins["epochs"] = {Origin::Kind::kDerived, "--steps is given"};
    }
  }
  if (has("min-lr") && cfg.min_lr > cfg.lr) {
    throw UsageError("{}: above {}; the rate falls from --lr to --min-lr", shown("min-lr"),
                     shown("lr"));
  }
  if (has("virtual-stages")) {
    if (cfg.schedule == "interleaved" && !cfg.is_set("virtual-stages")) {
      cfg.derive("virtual-stages", "2", "--schedule interleaved");
    } else if (cfg.virtual_stages > 1 && cfg.schedule != "interleaved" && cfg.schedule != "all") {
      throw UsageError("{}: only --schedule interleaved has virtual stages, not {}",
                       shown("virtual-stages"), shown("schedule"));
    }
  }
  if (has("eval-every") && cfg.eval_every > 0 && cfg.eval_data.empty()) {
    throw UsageError("{}: there is no --eval-data to evaluate on", shown("eval-every"));
  }
  if (has("init") && !cfg.init.empty() && cfg.model.empty()) {
    throw UsageError("{}: needs --model DIR with a config.json", shown("init"));
  }
  if (has("task") && cfg.task.empty()) {
    for (const char* name : {"samples", "prompt", "max-new-tokens", "temperature", "top-k", "top-p", "min-p",
                             "repetition-penalty", "max-batch", "context", "kv-blocks", "prefill-chunk"}) {
      // The default, written down in a saved configuration, asks for nothing.
      if (cfg.is_set(name) && cfg.value(name) != find_option(cfg.command, name)->fallback)
        throw UsageError("{}: only with --task; loss and perplexity sample nothing", shown(name));
    }
  }
  if (has("prompt")) {
    std::vector<std::string> given;
    for (const char* name : {"prompt", "chat", "prompt-ids"}) {
      if (cfg.is_set(name)) given.push_back(shown(name));
    }
    if (given.size() > 1) throw UsageError("{}: give one of them", fmt::join(given, " and "));
  }
}

// ---- Help

/// `text` in lines of at most `width`, the second and later ones behind `indent` blanks.
std::string wrapped(std::string_view text, size_t indent, size_t width) {
  std::string out;
  size_t column = 0;
  while (!text.empty()) {
    const auto end = std::min(text.find(' '), text.size());
    if (column > 0 && column + 1 + end > width) {
      out += "\n" + std::string(indent, ' ');
      column = 0;
    } else if (column > 0) {
      out += ' ';
      ++column;
    }
    out += text.substr(0, end);
    column += end;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

/// Allowed values in the help: only what the metavar does not say.
std::string allowed_in_help(const Option& o) {
  if (is_flag(o) || (is_text(o) && o.choices.empty())) return "";
  if (!is_text(o) && !std::isfinite(o.range.least) && !std::isfinite(o.range.most)) return "";
  return allowed_text(o);
}

/// --name VALUE, or --name[=VALUE] where the value may be left out.
std::string shown_with_value(const Option& o) {
  if (o.metavar.empty()) return fmt::format("--{}", o.name);
  return o.bare.empty() ? fmt::format("--{} {}", o.name, o.metavar) : fmt::format("--{}[={}]", o.name, o.metavar);
}

std::string default_in_help(const Option& o) {
  if (o.name == "help") return "";
  if (is_flag(o)) return "";
  if (!o.fallback.empty()) return fmt::format("default: {}", o.fallback);
  if (!o.unset.empty()) return fmt::format("default: {}", o.unset);
  return "";
}

std::string details(const Option& o) {
  std::string out;
  for (const auto& part : {allowed_in_help(o), default_in_help(o)}) {
    if (!part.empty()) out += (out.empty() ? "" : "; ") + part;
  }
  return out;
}

constexpr size_t kHelpWidth = 100;

}  // namespace

std::string Origin::str() const {
  switch (kind) {
    case Kind::kDefault:
      return "default";
    case Kind::kDerived:
      return "derived: " + where;
    case Kind::kFile:
      return where;
    case Kind::kCommandLine:
      return "command line";
  }
  return "?";
}

Invocation split_command(std::span<const std::string> args) {
  Invocation call{.command = "train", .args = {args.begin(), args.end()}};
  if (args.empty()) return call;
  const auto& first = args.front();
  if (first == "--version") {
    call.version = true;
    return call;
  }
  if (first == "--help" || first == "-h" || (first == "help" && args.size() == 1)) {
    call.help = true;
    return call;
  }
  // `r1run help train` is `r1run train --help`.
  const bool help_of = first == "help";
  const auto& name = help_of ? args[1] : first;
  if (!help_of && name.starts_with('-')) return call;
  const auto names = command_names();
  if (std::ranges::find(subcommands(), name, &Subcommand::name) != subcommands().end() &&
      subcommand(name).planned) {
    throw UsageError("r1run {}: this version of r1run cannot do that yet; it can: {}", name,
                     fmt::join(names, ", "));
  }
  if (std::ranges::find(names, name) == names.end()) {
    const auto near = nearest(name, names);
    throw UsageError(
        "\"{}\" is no subcommand of r1run.{} Allowed: {} (`r1run --help` says what they do)", name,
        near.empty() ? "" : fmt::format(" Did you mean {}?", near), fmt::join(names, ", "));
  }
  call.command = name;
  call.args.erase(call.args.begin(), call.args.begin() + (help_of ? 2 : 1));
  if (help_of) call.args = {"--help"};
  return call;
}

Origin JobConfig::origin(std::string_view name) const {
  const auto at = origins.find(name);
  return at == origins.end() ? Origin{} : at->second;
}

bool JobConfig::is_set(std::string_view name) const {
  R1_CHECK(!commands_with(name).empty(), "no option {}", name);
  const auto kind = origin(name).kind;
  return kind == Origin::Kind::kFile || kind == Origin::Kind::kCommandLine;
}

std::string JobConfig::value(std::string_view name) const {
  const auto* o = find_option(command, name);
  R1_CHECK(o != nullptr, "r1run {} has no option {}", command, name);
  return fmt::format("{}", fmt::join(texts_of(*this, *o), " "));
}

void JobConfig::derive(std::string_view name, const std::string& text, const std::string& reason) {
  const auto* o = find_option(command, name);
  R1_CHECK(o != nullptr, "r1run {} has no option {}", command, name);
  apply_source(*this, {{o, text, {Origin::Kind::kDerived, reason}}});
}

void JobConfig::give(std::string_view name, const std::string& text) {
  const auto* o = find_option(command, name);
  R1_CHECK(o != nullptr, "r1run {} has no option {}", command, name);
  apply_source(*this, {{o, text, {Origin::Kind::kCommandLine, ""}}});
  check_combinations(*this);
}

JobConfig parse_options(std::string_view command, std::span<const std::string> args) {
  JobConfig cfg;
  cfg.command = command;
  for (const auto& o : table()) {
    if ((o.commands & command_bit(command)) != 0 && !o.fallback.empty()) {
      assign(cfg, o, std::string(o.fallback), Origin{});
    }
  }
  const auto flags = read_flags(command, args);
  if (std::ranges::any_of(
          flags, [](const Given& g) { return g.option->name == "help" && g.text == "true"; })) {
    cfg.help = true;
    return cfg;
  }
  for (const auto& g : flags) {
    if (g.option->name != "config") continue;
    const auto file = read_file(command, g.text);
    apply_source(cfg, file.general);
    apply_source(cfg, file.section);
  }
  apply_source(cfg, flags);
  cfg.warnings = contradictions(flags);
  check_combinations(cfg);
  return cfg;
}

std::vector<std::string> option_names(std::string_view command) {
  std::vector<std::string> names;
  for (const auto& o : table())
    if (find_option(command, o.name) == &o && !o.planned && o.name != "help") names.emplace_back(o.name);
  return names;
}

std::string resolved_ini(const JobConfig& cfg) {
  std::string out = fmt::format("# r1run {}\n", cfg.command);
  for (const auto& [group, title] : kGroups) {
    bool titled = false;
    for (const auto& o : table()) {
      if (o.group != group || find_option(cfg.command, o.name) != &o || o.planned ||
          o.name == "config" || o.name == "help")
        continue;
      if (!titled) out += fmt::format("\n# {}\n", title);
      titled = true;
      const auto origin = cfg.origin(o.name);
      const auto texts = texts_of(cfg, o);
      // A reason may hold anything; a comment is one line.
      std::string note = origin.str();
      std::ranges::replace_if(
          note, [](unsigned char c) { return c < 0x20; }, ' ');
      if (texts.empty()) {
        const auto meaning = origin.kind == Origin::Kind::kDefault ? std::string(o.unset) : note;
        out += fmt::format("# {} is not given{}{}\n", o.name, meaning.empty() ? "" : ": ", meaning);
      }
      for (const auto& text : texts) {
        out += fmt::format("{:<40} # {}\n", fmt::format("{} = {}", o.name, quoted(text)), note);
      }
    }
  }
  return out;
}

std::vector<std::string> given_flags(const JobConfig& cfg) {
  return given_flags(cfg, cfg.command);
}

std::vector<std::string> given_flags(const JobConfig& cfg, std::string_view command) {
  std::vector<std::string> out;
  for (const auto& o : table()) {
    if (find_option(cfg.command, o.name) != &o || find_option(command, o.name) == nullptr ||
        o.planned || !cfg.is_set(o.name) || o.name == "config")
      continue;
    for (const auto& text : texts_of(cfg, o)) {
      if (is_flag(o)) {
        out.push_back(text == "true" ? fmt::format("--{}", o.name)
                                     : fmt::format("--{}=false", o.name));
      } else {
        out.push_back(fmt::format("--{}={}", o.name, text));  // with =, a value may begin with --
      }
    }
  }
  return out;
}

std::string program_help() {
  std::string out =
      "r1run fine-tunes and evaluates DeepSeek-R1-family models, on one machine or "
      "a cluster.\n\n"
      "Usage: r1run [subcommand] [options]\n"
      "       mpirun -np 8 r1run --pp 2 --tp 4     inside an allocation, or on one machine\n"
      "       srun --mpi=pmix r1run train --config job.ini\n"
      "       r1run train --hostfile hosts --pp 2 --tp 4\n\n"
      "Subcommands\n";
  for (const auto& c : subcommands()) {
    if (!c.planned) out += fmt::format("  {:<10} {}\n", c.name, c.summary);
  }
  out +=
      "\n`r1run <subcommand> --help` lists its options; each is also a key of an INI file "
      "(--config).\n"
      "\nExit codes\n"
      "  0   done                                       73  output cannot be written\n"
      "  64  usage, configuration or layout             75  stopped by a fault or signal; restart "
      "from the checkpoint\n"
      "  65  bad model, data or checkpoint content      76  diverged (NaN or Inf limit)\n"
      "  69  does not fit in memory; a program that is needed is missing\n"
      "  70  a bug of r1run\n";
  return out;
}

std::string options_help(std::string_view command) {
  const auto& c = subcommand(command);
  std::string out = fmt::format("r1run {}: {}\n\nUsage: r1run {} [options]{}\n", command, c.summary,
                                command, c.positional.empty() ? "" : " [FILE]");
  constexpr size_t kIndent = 30;
  for (const auto& [group, title] : kGroups) {
    bool titled = false;
    for (const auto& o : table()) {
      if (o.group != group || find_option(command, o.name) != &o || o.planned) continue;
      if (!titled) out += fmt::format("\n{}\n", title);
      titled = true;
      std::string text(o.help);
      if (const auto more = details(o); !more.empty()) text += fmt::format(" [{}]", more);
      std::string left = "  " + shown_with_value(o);
      if (left.size() + 1 > kIndent) {
        out += left + "\n";
        left.clear();
      }
      out += fmt::format("{:<{}}{}\n", left, kIndent, wrapped(text, kIndent, kHelpWidth - kIndent));
    }
  }
  return out + "\nFlags beat the file of --config, which beats the defaults.\n";
}

std::string options_markdown(std::string_view command) {
  std::string out = "| option | default | meaning |\n|---|---|---|\n";
  const auto escaped = [](std::string text) {
    for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2)
      text.insert(at, 1, '\\');
    return text;
  };
  for (const auto& [group, title] : kGroups) {
    for (const auto& o : table()) {
      if (o.group != group || find_option(command, o.name) != &o || o.planned) continue;
      const auto left = shown_with_value(o);
      const auto allowed = allowed_in_help(o);
      out += fmt::format(
          "| `{}` | {} | {}{} |\n", escaped(left),
          escaped(is_flag(o) ? "off" : std::string(o.fallback.empty() ? o.unset : o.fallback)),
          escaped(std::string(o.help)), allowed.empty() ? "" : escaped(" (" + allowed + ")"));
    }
  }
  return out;
}

std::string nearest(std::string_view word, std::span<const std::string> candidates) {
  const auto distance = [&](std::string_view b) {  // optimal string alignment
    std::vector<std::vector<size_t>> d(word.size() + 1, std::vector<size_t>(b.size() + 1));
    for (size_t i = 0; i <= word.size(); ++i) {
      for (size_t j = 0; j <= b.size(); ++j) {
        if (i == 0 || j == 0) {
          d[i][j] = i + j;
          continue;
        }
        const size_t change = word[i - 1] == b[j - 1] ? 0 : 1;
        d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + change});
        if (i > 1 && j > 1 && word[i - 1] == b[j - 2] && word[i - 2] == b[j - 1]) {
          d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
        }
      }
    }
    return d[word.size()][b.size()];
  };
  if (word.size() > 64)
    return "";  // no option is that long, and the table would grow with its square
  std::string best;
  size_t best_distance = std::max<size_t>(1, word.size() / 3) + 1;
  for (const auto& c : candidates) {
    if (const size_t d = distance(c); d < best_distance && d < c.size()) {
      best = c;
      best_distance = d;
    }
  }
  // "--micro" for --micro-batch, "--sched" for --schedule: the one that all that begin so begin
  // with.
  if (best.empty() && word.size() >= 2) {
    for (const auto& c : candidates) {
      if (!c.starts_with(word)) continue;
      if (best.empty() || best.starts_with(c)) {
        best = c;
      } else if (!c.starts_with(best)) {
        return "";
      }
    }
  }
  return best;
}

}  // namespace r1
