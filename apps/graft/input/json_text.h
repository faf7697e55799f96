#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace graft::app {

/// Parses a JSON object that somebody else wrote. Throws UserError, its message opening with
/// `place`, if `text` is not valid UTF-8 or not valid JSON, is not an object, gives a key twice, or
/// nests so deep that walking over it could overflow the stack.
nlohmann::json parse_json_object(std::string_view text, const std::string& place);

}  // namespace graft::app
