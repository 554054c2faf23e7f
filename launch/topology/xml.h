// XML of other programs, read with pugixml: no entities, no external files, bounded depth.
#pragma once

#include <optional>
#include <pugixml.hpp>
#include <string>
#include <string_view>

namespace r1::launch {

inline constexpr int kMostXmlDepth = 256;

/// Parses the text; throws DataError with source and line when it is not well-formed, too large or
/// too deep.
void parse_xml(pugi::xml_document& document, std::string_view text, const std::string& source);
/// "file:12" of a node.
[[nodiscard]] std::string place(const pugi::xml_node& node, std::string_view text,
                                const std::string& source);
/// A whole number, in the given base; nullopt when absent or not one.
[[nodiscard]] std::optional<long long> integer(std::string_view text, int base = 10);
[[nodiscard]] std::optional<long long> integer(const pugi::xml_attribute& attribute);
/// "0000:C1:00.0" → "0000:c1:00.0"; "" when it is no PCI address.
[[nodiscard]] std::string pci_address(std::string_view text);
/// Four hex digits from "0x10de" or "10de"; "" when it is none.
[[nodiscard]] std::string hex4(std::string_view text);

}  // namespace r1::launch
