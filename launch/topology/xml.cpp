#include "launch/topology/xml.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "launch/topology/import.h"
#include "runtime/core/error.h"

namespace r1::launch {
namespace {

int line_at(std::string_view text, ptrdiff_t offset) {
  const auto end = text.begin() + std::clamp<ptrdiff_t>(offset, 0, std::ssize(text));
  return 1 + static_cast<int>(std::count(text.begin(), end, '\n'));
}

void check_depth(const pugi::xml_document& document, std::string_view text,
                 const std::string& source) {
  int depth = 0;
  for (pugi::xml_node node = document.first_child(); node;) {
    if (depth > kMostXmlDepth)
      throw DataError("{}: elements nested deeper than {}: not a topology",
                      place(node, text, source), kMostXmlDepth);
    if (node.first_child()) {
      node = node.first_child();
      ++depth;
      continue;
    }
    while (node && !node.next_sibling()) {
      node = node.parent();
      --depth;
    }
    if (node) node = node.next_sibling();
  }
}

}  // namespace

void parse_xml(pugi::xml_document& document, std::string_view text, const std::string& source) {
  if (text.size() > kMostBytes)
    throw DataError("{}: {} bytes; a topology takes at most {}", source, text.size(), kMostBytes);
  const auto result = document.load_buffer(text.data(), text.size());
  if (!result)
    throw DataError("{}:{}: not well-formed XML: {}", source, line_at(text, result.offset),
                    result.description());
  check_depth(document, text, source);
}

std::string place(const pugi::xml_node& node, std::string_view text, const std::string& source) {
  return fmt::format("{}:{}", source, line_at(text, node.offset_debug()));
}

std::optional<long long> integer(std::string_view text, int base) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  if (base == 16 && (text.starts_with("0x") || text.starts_with("0X"))) text.remove_prefix(2);
  long long value = 0;
  const auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc{} || at != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<long long> integer(const pugi::xml_attribute& attribute) {
  return attribute ? integer(std::string_view(attribute.value())) : std::nullopt;
}

std::string pci_address(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c >= 'A' && c <= 'F')
      out += static_cast<char>(c - 'A' + 'a');
    else if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || c == ':' || c == '.')
      out += c;
    else if (c != ' ')
      return "";
  }
  // domain:bus:device.function; nvidia-smi and NVML write the domain with eight digits.
  const auto first = out.find(':'), second = out.find(':', first + 1), dot = out.find('.');
  if (first == std::string::npos || second == std::string::npos || dot == std::string::npos ||
      first == 0 || first > 8 || second - first != 3 || dot - second != 3 || out.size() - dot != 2)
    return "";
  std::string domain = out.substr(0, first);
  while (domain.size() > 4 && domain.front() == '0') domain.erase(0, 1);
  return std::string(domain.size() < 4 ? 4 - domain.size() : 0, '0') + domain + out.substr(first);
}

std::string hex4(std::string_view text) {
  const auto value = integer(text, 16);
  if (!value || *value < 0 || *value > 0xffff) return "";
  return fmt::format("{:04x}", *value);
}

}  // namespace r1::launch
