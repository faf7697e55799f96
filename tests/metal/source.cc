#include "metal/source.h"

#include <regex>
#include <stdexcept>

namespace graft::standin {
namespace {

// The text with every match of `pattern` replaced by `make(match)`.
template <class Make>
std::string replace_each(const std::string& text, const std::regex& pattern, const Make& make) {
  std::string result;
  auto end = text.begin();
  for (std::sregex_iterator match(text.begin(), text.end(), pattern), none; match != none;
       ++match) {
    result.append(end, text.begin() + match->position());
    result += make(*match);
    end = text.begin() + match->position() + match->length();
  }
  return result.append(end, text.end());
}

// Comments become spaces, so that nothing in them is taken for code.
std::string without_comments(std::string text) {
  for (std::size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i] != '/' || (text[i + 1] != '/' && text[i + 1] != '*')) continue;
    const bool line = text[i + 1] == '/';
    const std::size_t close = text.find(line ? "\n" : "*/", i + 2);
    const std::size_t end = close == std::string::npos ? text.size() : close + (line ? 0 : 2);
    for (; i < end; ++i) {
      if (text[i] != '\n') text[i] = ' ';
    }
    --i;
  }
  return text;
}

// Where the parenthesis that opens at `open` is closed.
std::size_t closing(const std::string& text, std::size_t open) {
  int depth = 0;
  for (std::size_t i = open; i < text.size(); ++i) {
    if (text[i] == '(') ++depth;
    if (text[i] == ')' && --depth == 0) return i;
  }
  throw std::runtime_error("metal source: a parenthesis is not closed");
}

std::vector<Parameter> parse_parameters(const std::string& list) {
  static const std::regex form(
      R"(\s*([^,\[\]]*?[\s*&])\s*(\w+)\s*\[\[\s*([\w()\s]+?)\s*\]\]\s*(,|$))");
  static const std::regex space(R"(\b(device|constant|threadgroup|thread)\b\s*)");
  std::vector<Parameter> parameters;
  std::size_t at = 0;
  std::smatch match;
  while (at < list.size() && list.find_first_not_of(" \n\t", at) != std::string::npos) {
    const std::string rest = list.substr(at);
    if (!std::regex_search(rest, match, form, std::regex_constants::match_continuous)) {
      throw std::runtime_error("metal source: a parameter of another form: " + rest);
    }
    parameters.push_back({std::regex_replace(match[1].str(), space, ""), match[2], match[3]});
    at += static_cast<std::size_t>(match.length());
  }
  return parameters;
}

// Threadgroup arrays belong to all threads of a group: the machine makes one for all.
std::string share_arrays(const std::string& text) {
  static const std::regex array(
      R"(\bthreadgroup\s+([\w:]+(?:<[^<>;]*>)?)\s+(\w+)\s*((?:\[[^\]]*\])+)\s*;)");
  int id = 0;
  return replace_each(text, array, [&id](const std::smatch& match) {
    return "auto& " + match[2].str() + " = graft_threadgroup_array<" + match[1].str() +
           match[3].str() + ">(" + std::to_string(id++) + ");";
  });
}

// A function of C linkage that calls the kernel with a thread's buffers and builtins.
std::string entry(const std::string& instance, const std::vector<Parameter>& parameters) {
  std::string arguments;
  int buffer = 0;
  for (const Parameter& p : parameters) {
    if (!arguments.empty()) arguments += ", ";
    if (!p.is_buffer()) {
      arguments += "graft_builtin<" + p.type + ">(thread_." + p.attribute + ")";
    } else {
      const bool reference = p.type[p.type.find_last_not_of(" \n")] == '&';
      arguments += reference ? "GraftReference" : "GraftPointer";
      arguments += "{buffers_[" + std::to_string(buffer++) + "]}";
    }
  }
  return "\nextern \"C\" GRAFT_UNSEEN void graft_enter(void* const* buffers_, "
         "const graft::standin::Thread& thread_) {\n  " +
         instance + "(" + arguments + ");\n}\n";
}

}  // namespace

Source translate(const std::string& text) {
  static const std::regex kernel(R"((?:\[\[\s*kernel\b[^\]]*\]\]|\bkernel\b)\s+void\s+(\w+)\s*\()");
  static const std::regex instantiation(
      R"(template\s*\[\[\s*host_name[^\]]*\]\]\s*\[\[\s*kernel\s*\]\]\s*decltype\(([^;]*?)\)\s*\w+<[^;]*;)");
  static const std::regex attribute(R"(\[\[[^\[\]]*\]\])");

  std::string cpp = without_comments(text);
  std::smatch match;
  std::string instance;
  if (std::regex_search(cpp, match, instantiation)) {
    instance = match[1];
    cpp = std::regex_replace(cpp, instantiation, "");
  }
  // The kernel that is instantiated, else the first one.
  const std::string wanted = instance.substr(0, instance.find('<'));
  std::sregex_iterator found(cpp.begin(), cpp.end(), kernel), none;
  while (found != none && !wanted.empty() && (*found)[1] != wanted) ++found;
  if (found == none) throw std::runtime_error("metal source: there is no kernel in it");
  match = *found;
  if (instance.empty()) instance = match[1];
  const auto open = static_cast<std::size_t>(match.position() + match.length()) - 1;
  Source source;
  source.parameters = parse_parameters(cpp.substr(open + 1, closing(cpp, open) - open - 1));
  cpp = share_arrays(std::regex_replace(cpp, attribute, ""));
  source.cpp =
      "#include <metal_stdlib>\nusing namespace metal;\n"
      "typedef half float16_t;\ntypedef bfloat bfloat16_t;\n#line 1\n" +
      cpp + entry(instance, source.parameters);
  return source;
}

}  // namespace graft::standin
