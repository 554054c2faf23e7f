// Lines and words of text tables; runtime/core/text.h with them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/core/text.h"

namespace r1::launch {

/// Words between blanks and tabs.
[[nodiscard]] std::vector<std::string_view> words_of(std::string_view text);
/// Cuts at each `separator`, keeping empty fields.
[[nodiscard]] std::vector<std::string_view> fields_of(std::string_view text, char separator);
/// Takes the next line off `rest`, without its line end (LF or CRLF); false at the end.
bool next_line(std::string_view& rest, std::string_view& line);
/// Without terminal control sequences (ESC [ … letter), which nvidia-smi underlines its header
/// with.
[[nodiscard]] std::string without_escapes(std::string_view text);
/// Quoted for a message: at most 60 bytes, unprintable ones as '?'.
[[nodiscard]] std::string shown(std::string_view text);

}  // namespace r1::launch
