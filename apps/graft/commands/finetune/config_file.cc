#include "apps/graft/commands/finetune/config_file.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "apps/graft/user_error.h"
#include "graft/llm/files/input_file.h"
#include "graft/llm/files/json_text.h"

namespace graft::app {
namespace {

using nlohmann::json;

constexpr std::uint64_t kLargest = 1 << 20;  // bytes

// Flags that are about the call itself.
const std::set<std::string> kNotInAFile = {"--config", "--help"};

CLI::Option* flag_named(CLI::App& command, std::string name) {
  std::ranges::replace(name, '_', '-');
  name = "--" + name;
  return kNotInAFile.contains(name) ? nullptr : command.get_option_no_throw(name);
}

// As it would stand on the command line.
std::string word_of(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number()) return value.dump();
  throw UserError("expected a text or a number");
}

std::vector<std::string> words_of(const json& value) {
  std::vector<std::string> words;
  if (value.is_array()) {
    for (const json& item : value) words.push_back(word_of(item));
  } else {
    words.push_back(word_of(value));
  }
  return words;
}

void set(CLI::Option& flag, const json& value) {
  if (flag.get_items_expected_max() == 0) {  // a switch
    if (!value.is_boolean()) throw UserError("expected true or false");
    if (!value.get<bool>()) return;
    flag.add_result("true");
  } else {
    if (value.is_array() && flag.get_items_expected_max() == 1) {
      throw UserError("expected one value, not a list");
    }
    flag.add_result(words_of(value));
  }
  flag.run_callback();
}

void check_exclusions(const CLI::App& command, const std::string& path) {
  for (const CLI::Option* flag : command.get_options()) {
    for (const CLI::Option* other : flag->get_excludes()) {
      if (flag->count() == 0 || other->count() == 0) continue;
      throw UserError(fmt::format("{}: {} and {} exclude each other", path, flag->get_name(),
                                  other->get_name()));
    }
  }
}

}  // namespace

void apply_config_file(CLI::App& command, const std::string& path) {
  const json config = parse_json_object(read_input(path, kLargest), path);
  for (const auto& [key, value] : config.items()) {
    CLI::Option* flag = flag_named(command, key);
    if (flag == nullptr) {
      throw UserError(fmt::format("{}: {}: there is no such flag of graft {}; --help lists them",
                                  path, key, command.get_name()));
    }
    if (flag->count() > 0 || value.is_null()) continue;
    try {
      set(*flag, value);
    } catch (const UserError& error) {
      throw UserError(fmt::format("{}: {}: {}", path, key, error.what()));
    } catch (const CLI::Error& error) {
      throw UserError(fmt::format("{}: {}", path, error.what()));
    }
  }
  check_exclusions(command, path);
}

}  // namespace graft::app
