#include "graft/llm/files/json_text.h"

#include <fmt/format.h>

#include <unordered_set>
#include <utility>
#include <vector>

#include "graft/llm/files/printable.h"
#include "graft/llm/files/utf8.h"
#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

using Json = nlohmann::json;

// Far deeper than anything that Graft reads; nlohmann copies and prints recursively.
constexpr int kMaxDepth = 64;

// What the parser itself lets pass, looked at while it parses, so that nothing is built in vain.
class Watch {
 public:
  explicit Watch(const std::string& place) : place_(place) {}

  bool operator()(int depth, Json::parse_event_t event, const Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start:
        keys_.emplace_back();
        [[fallthrough]];
      case Json::parse_event_t::array_start:
        if (depth >= kMaxDepth) fail(fmt::format("nested more than {} deep", kMaxDepth));
        break;
      case Json::parse_event_t::object_end:
        keys_.pop_back();
        break;
      case Json::parse_event_t::key: {
        const auto& key = parsed.get_ref<const std::string&>();
        if (!keys_.back().insert(key).second) {
          fail(fmt::format("\"{}\" is given twice", printable(key)));
        }
        break;
      }
      default:
        break;
    }
    return true;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw UserError(fmt::format("{}: {}", place_, what));
  }

  const std::string& place_;
  std::vector<std::unordered_set<std::string>> keys_;  // Of the objects that are open.
};

// What Python writes for numbers that JSON has no word for, made words of JSON that are as long, so
// that places in the text stay what they were.
std::string without_python_numbers(std::string_view text) {
  std::string result(text);
  const auto in_a_word = [&](std::size_t at) {
    const char c = at < result.size() ? result[at] : ' ';
    return std::string_view("+.").find(c) != std::string_view::npos || (c >= '0' && c <= '9') ||
           (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  };
  bool quoted = false;
  for (std::size_t at = 0; at < result.size(); ++at) {
    if (quoted) {
      if (result[at] == '\\') {
        ++at;
      } else if (result[at] == '"') {
        quoted = false;
      }
      continue;
    }
    quoted = result[at] == '"';
    for (const auto& [word, number] : {std::pair<std::string_view, const char*>{"NaN", "0.0"},
                                       {"-Infinity", "-0.000000"},
                                       {"Infinity", "0.000000"}}) {
      if (!std::string_view(result).substr(at).starts_with(word)) continue;
      if ((at > 0 && (in_a_word(at - 1) || result[at - 1] == '-')) || in_a_word(at + word.size())) {
        continue;
      }
      result.replace(at, word.size(), number);
    }
  }
  return result;
}

Json parse(std::string_view text, const std::string& place, const char* expected) {
  if (const std::size_t at = find_invalid_utf8(text); at != std::string_view::npos) {
    throw UserError(
        fmt::format("{}: not valid UTF-8 at byte {}; save the file as UTF-8", place, at + 1));
  }
  Json object;
  try {
    Watch watch(place);
    object = Json::parse(text, [&](int depth, Json::parse_event_t event, const Json& parsed) {
      return watch(depth, event, parsed);
    });
  } catch (const Json::parse_error& error) {
    throw UserError(fmt::format("{}: not valid JSON at byte {}{}", place, error.byte, expected));
  } catch (const Json::out_of_range&) {
    throw UserError(fmt::format("{}: a number in it is too large", place));
  }
  if (!object.is_object()) {
    throw UserError(fmt::format("{}: expected a JSON object{}", place, expected));
  }
  return object;
}

}  // namespace

Json parse_json_object(std::string_view text, const std::string& place) {
  return parse(text, place, "");
}

Json parse_json_line(std::string_view text, const std::string& place) {
  const std::size_t first = text.find_first_not_of(" \t\r");
  const bool is_list = first != std::string_view::npos && text[first] == '[';
  const char* expected = is_list ? "; the file is to have one object a line, not a list of objects"
                                 : "; the file is to have one object a line, whole on that line";
  const bool python =
      text.find("NaN") != std::string_view::npos || text.find("Infinity") != std::string_view::npos;
  return python ? parse(without_python_numbers(text), place, expected)
                : parse(text, place, expected);
}

std::string lossy_json_text(const nlohmann::ordered_json& value, int indent) {
  return value.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace graft::llm
