#include <cctype>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "graft/llm/chat/chat_template.h"

namespace graft::llm {
namespace {

// A tag's inside, and how its ends treat the text beside them.
struct Tag {
  char kind;  // '%', '{' or '#'
  std::string_view inside;
  bool trims_left;
  bool trims_right;
};

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }
bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)); }

// Position of the tag's closing mark, which strings inside may contain too.
std::size_t find_close(std::string_view source, std::size_t from, std::string_view close,
                       bool has_strings) {
  char quote = 0;
  for (std::size_t i = from; i + 1 < source.size(); ++i) {
    const char c = source[i];
    if (quote) {
      if (c == '\\') {
        ++i;
      } else if (c == quote) {
        quote = 0;
      }
    } else if (source.substr(i, 2) == close) {
      return i;
    } else if (has_strings && (c == '\'' || c == '"')) {
      quote = c;
    }
  }
  return std::string_view::npos;
}

// Whether text between two tags prints nothing, under the rules that chat templates are rendered
// with (Jinja's trim_blocks and lstrip_blocks: a block takes the line break after it and the blanks
// before it on its line).
bool prints_nothing(std::string_view text, const Tag* before, const Tag* after) {
  if (text.find_first_not_of(" \t\r\n") != std::string_view::npos) return false;
  if ((before && before->trims_right) || (after && after->trims_left)) return true;
  if (before && before->kind != '{' && text.starts_with('\n')) text.remove_prefix(1);
  if (after && after->kind != '{') {
    const std::size_t line = text.rfind('\n');
    if (line != std::string_view::npos) {
      text = text.substr(0, line + 1);
    } else if (!before || before->kind != '{') {
      text = {};
    }
  }
  return text.empty();
}

// One string literal from `at`, which is at its quote and is left behind its end.
std::optional<std::string> read_string(std::string_view inside, std::size_t& at) {
  const char quote = inside[at++];
  std::string out = "'";
  for (; at < inside.size() && inside[at] != quote; ++at) {
    char c = inside[at];
    if (c == '\\') {
      if (++at == inside.size()) return std::nullopt;
      c = inside[at];
      if (c == 'n') {
        c = '\n';
      } else if (c != '\\' && c != '\'' && c != '"') {
        return std::nullopt;
      }
    }
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\'' || c == '\\') {
      out += {'\\', c};
    } else {
      out += c;
    }
  }
  if (at == inside.size()) return std::nullopt;
  ++at;
  return out + "'";
}

// Appends an expression; `+` between two literals joins them.
void append(std::string& out, const std::string& expression) {
  if (out.ends_with("'+") && expression.starts_with('\'')) {
    out.resize(out.size() - 2);
    out.append(expression, 1);
  } else {
    out += expression;
  }
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  std::size_t begin = 0;
  for (std::size_t at; (at = text.find(from, begin)) != std::string_view::npos;) {
    out.append(text.substr(begin, at - begin)).append(to);
    begin = at + from.size();
  }
  return out.append(text.substr(begin));
}

std::optional<std::string> canonical_tag(std::string_view inside) {
  std::string out;
  for (std::size_t at = 0; at < inside.size();) {
    const char c = inside[at];
    if (c == '\'' || c == '"') {
      const auto literal = read_string(inside, at);
      if (!literal) return std::nullopt;
      append(out, *literal);
    } else if (is_space(c)) {
      while (at < inside.size() && is_space(inside[at])) ++at;
      // Blanks count only between two words.
      if (!out.empty() && is_word(out.back()) && at < inside.size() && is_word(inside[at])) {
        out += ' ';
      }
    } else {
      out += c;
      ++at;
    }
  }
  constexpr std::pair<std::string_view, std::string_view> kFields[] = {{"['role']", ".role"},
                                                                       {"['content']", ".content"}};
  for (const auto& [index, member] : kFields) out = replace_all(out, index, member);
  return out;
}

// `{{a}}{{b}}` prints what `{{a + b}}` does, for strings.
void add_output(std::vector<std::string>& tags, const std::string& expression) {
  if (tags.empty() || !tags.back().starts_with('=')) {
    tags.push_back("=" + expression);
    return;
  }
  tags.back() += '+';
  append(tags.back(), expression);
}

}  // namespace

std::optional<std::vector<std::string>> canonical_jinja(const std::string& source) {
  std::vector<std::string> tags;
  std::optional<Tag> before;
  std::size_t text_begin = 0;
  const std::string_view all = source;
  while (true) {
    std::size_t open = text_begin;
    while (open + 1 < all.size() &&
           !(all[open] == '{' &&
             std::string_view("%{#").find(all[open + 1]) != std::string_view::npos)) {
      ++open;
    }
    if (open + 1 >= all.size()) break;
    const char kind = all[open + 1];
    const std::string close_mark = {kind == '{' ? '}' : kind, '}'};
    const std::size_t close = find_close(all, open + 2, close_mark, kind != '#');
    if (close == std::string_view::npos) return std::nullopt;
    Tag tag{kind, all.substr(open + 2, close - open - 2), false, false};
    tag.trims_left = tag.inside.starts_with('-');
    if (tag.trims_left) tag.inside.remove_prefix(1);
    tag.trims_right = tag.inside.ends_with('-');
    if (tag.trims_right) tag.inside.remove_suffix(1);

    const std::string_view text = all.substr(text_begin, open - text_begin);
    if (!prints_nothing(text, before ? &*before : nullptr, &tag)) return std::nullopt;
    if (kind != '#') {
      const auto canonical = canonical_tag(tag.inside);
      if (!canonical || canonical->empty()) return std::nullopt;
      if (kind == '{') {
        add_output(tags, *canonical);
      } else {
        tags.push_back(*canonical);
      }
    }
    before = tag;
    text_begin = close + 2;
  }
  // Rendering drops one line break at the very end.
  std::string_view tail = all.substr(text_begin);
  if (tail.ends_with('\n')) tail.remove_suffix(1);
  if (!prints_nothing(tail, before ? &*before : nullptr, nullptr)) return std::nullopt;
  return tags;
}

}  // namespace graft::llm
