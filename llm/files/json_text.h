#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace graft::llm {

/// Parses a JSON object that somebody else wrote. Throws UserError, its message opening with
/// `place`, if `text` is not valid UTF-8 or not valid JSON, is not an object, gives a key twice, or
/// nests so deep that walking over it could overflow the stack.
nlohmann::json parse_json_object(std::string_view text, const std::string& place);

/// The same for a line of a file that has one object a line, as an error says. NaN, Infinity and
/// -Infinity, which are not JSON but which Python writes, are read as numbers, so that a key that
/// nobody reads may have them.
nlohmann::json parse_json_line(std::string_view text, const std::string& place);

/// The text of a value that quotes paths, which may have any bytes: what is not valid UTF-8 becomes
/// U+FFFD. Indented by so many blanks, or all on one line.
std::string lossy_json_text(const nlohmann::ordered_json& value, int indent = -1);

}  // namespace graft::llm
