#include "graft/llm/model/model_names.h"

#include <algorithm>
#include <cctype>

namespace graft::llm {
namespace {

// "q4", "iq3", "f16", "bf16", "gguf": from here on a file's name says how it is stored.
bool says_how_stored(std::string_view word) {
  for (const std::string_view known : {"gguf", "f32", "f16", "bf16", "fp32", "fp16", "mxfp4"}) {
    if (word == known) return true;
  }
  if (word.starts_with("iq")) word.remove_prefix(1);
  return word.size() == 2 && word[0] == 'q' && std::isdigit(static_cast<unsigned char>(word[1]));
}

std::vector<std::string> words_of(std::string_view name) {
  while (name.ends_with('/')) name.remove_suffix(1);
  if (const std::size_t slash = name.rfind('/'); slash != std::string_view::npos) {
    name.remove_prefix(slash + 1);
  }
  std::vector<std::string> words(1);
  for (const char c : name) {
    if (const auto letter = static_cast<unsigned char>(c); std::isalnum(letter)) {
      words.back() += static_cast<char>(std::tolower(letter));
    } else if (!words.back().empty()) {
      words.emplace_back();
    }
  }
  if (words.back().empty()) words.pop_back();
  // The first word is a name in any case: a model may be called "f16.gguf" and nothing else.
  if (words.size() > 1) {
    words.erase(std::find_if(words.begin() + 1, words.end(), says_how_stored), words.end());
  }
  return words;
}

}  // namespace

bool same_model(std::string_view one, std::string_view other) {
  return words_of(one) == words_of(other);
}

bool is_named(std::string_view name, const std::vector<std::string>& names) {
  if (words_of(name).empty() || names.empty()) return true;
  return std::ranges::any_of(names,
                             [&](const std::string& known) { return same_model(name, known); });
}

}  // namespace graft::llm
