#include "graft/llm/files/json_text.h"

#include <fmt/format.h>

#include <unordered_set>
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

}  // namespace

Json parse_json_object(std::string_view text, const std::string& place) {
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
    throw UserError(fmt::format("{}: not valid JSON at byte {}", place, error.byte));
  } catch (const Json::out_of_range&) {
    throw UserError(fmt::format("{}: a number in it is too large", place));
  }
  if (!object.is_object()) throw UserError(fmt::format("{}: expected a JSON object", place));
  return object;
}

std::string lossy_json_text(const nlohmann::ordered_json& value, int indent) {
  return value.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace graft::llm
