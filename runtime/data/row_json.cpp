#include "runtime/data/row_json.h"

#include <algorithm>
#include <utility>

#include "runtime/core/text.h"
#include "runtime/tokenizer/tokenizer.h"

namespace r1::data {
namespace {

constexpr int kMaxDepth = 128;  // of brackets in a row; real rows stay below 20

/// Depth is bounded before the parser builds anything: a row of a million '[' costs one scan.
void check_depth(std::string_view text) {
  int depth = 0;
  bool in_string = false, escaped = false;
  for (const char c : text) {
    if (in_string) {
      if (escaped)
        escaped = false;
      else if (c == '\\')
        escaped = true;
      else if (c == '"')
        in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) bad("nested more than {} deep", kMaxDepth);
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
}

}  // namespace

std::string shown(std::string_view text, size_t most) {
  std::string out = "'";
  for (const char c : text.substr(0, most))
    out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '.' : c;
  out = text::replace_invalid_utf8(out);
  return out + (text.size() > most ? "...'" : "'");
}

std::string kind_of(const Json& j) {
  switch (j.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::boolean:
      return "a boolean";
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
    case Json::value_t::number_float:
      return "a number";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::array:
      return "a list";
    case Json::value_t::object:
      return "an object";
    default:
      return "something else";
  }
}

Json parse_json(std::string_view text) {
  check_depth(text);
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::parse_error& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 5: syntax error while ...;
    // last read: '...'"
    std::string_view what = e.what();
    if (const size_t p = what.find("syntax error"); p != std::string_view::npos)
      what.remove_prefix(p);
    else if (const size_t q = what.find("] "); q != std::string_view::npos)
      what.remove_prefix(q + 2);
    if (const size_t p = what.find("; last read"); p != std::string_view::npos)
      what = what.substr(0, p);
    bad("not valid JSON: {} (byte {} of the row)", text::replace_invalid_utf8(what.substr(0, 160)),
        e.byte);
  } catch (const Json::exception& e) {  // a number out of range
    bad("not valid JSON: {}",
        text::replace_invalid_utf8(std::string_view(e.what()).substr(0, 160)));
  }
}

Json parse_row_json(std::string_view text) {
  Json row = parse_json(text);
  if (!row.is_object()) return row;
  const auto capital = [](char c) { return c >= 'A' && c <= 'Z'; };
  const auto is_spelled_otherwise = [&](const auto& item) {
    return std::any_of(item.first.begin(), item.first.end(), capital) &&
           !row.contains(lower(item.first));
  };
  auto& members = row.get_ref<Json::object_t&>();
  if (std::none_of(members.begin(), members.end(), is_spelled_otherwise)) return row;
  Json out = Json::object();
  for (auto& member : members) {
    std::string key = is_spelled_otherwise(member) ? lower(member.first) : member.first;
    if (!out.contains(key)) out[std::move(key)] = std::move(member.second);
  }
  return out;
}

std::string keys_of(const Json& row) {
  std::string out;
  int n = 0;
  for (const auto& [key, value] : row.items()) {
    if (++n > 12) return out + ", ...";
    out += (out.empty() ? "" : ", ") + shown(key, 32);
  }
  return out.empty() ? "none" : out;
}

const Json* find(const Json& object, std::string_view key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

const std::string& text_at(const Json& row, std::string_view key) {
  const Json* j = find(row, key);
  if (j == nullptr) bad("no `{}`; the row's keys are {}", key, keys_of(row));
  if (!j->is_string()) bad("`{}` is {}, expected a string", key, kind_of(*j));
  return j->get_ref<const std::string&>();
}

std::string optional_text_at(const Json& row, std::string_view key) {
  const Json* j = find(row, key);
  if (j == nullptr) return {};
  if (!j->is_string()) bad("`{}` is {}, expected a string", key, kind_of(*j));
  return j->get<std::string>();
}

std::string dump(const Json& j) { return j.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json unwrapped(const Json& j, const std::string& where) {
  if (!j.is_string()) return j;
  try {
    return parse_json(j.get_ref<const std::string&>());
  } catch (const RowError& e) {
    bad("{}: a string that is {}", where, e.what());
  }
}

}  // namespace r1::data
