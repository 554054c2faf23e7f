// Small works on text that several parts need.
#pragma once

#include <string>
#include <string_view>

namespace r1 {

/// Without blanks, tabs and line ends at both ends.
[[nodiscard]] std::string_view trimmed(std::string_view text);
/// ASCII letters in lower case, whatever the locale.
[[nodiscard]] std::string lower(std::string_view text);
/// As text or a quoted attribute of XML and HTML: & < > " are escaped, control characters that XML forbids left out.
[[nodiscard]] std::string xml_escaped(std::string_view text);

}  // namespace r1
