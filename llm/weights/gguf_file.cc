#include "graft/llm/weights/gguf_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <system_error>
#include <type_traits>
#include <utility>

#include "graft/llm/files/input_file.h"
#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

template <class T>
constexpr bool kIsInteger = std::is_integral_v<T> && !std::is_same_v<T, bool>;

}  // namespace

GgufFile GgufFile::open(const std::string& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  // What status() cannot tell, opening says.
  if (std::filesystem::status_known(status) && std::filesystem::exists(status) &&
      !std::filesystem::is_regular_file(status)) {
    throw UserError(path + ": not a regular file");
  }
  std::ifstream in = open_input(path);
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error) throw UserError(fmt::format("{}: cannot be read: {}", path, error.message()));

  return read(in, size, path);
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto found = std::find_if(tensors_.begin(), tensors_.end(),
                                  [&](const GgufTensor& tensor) { return tensor.name == name; });
  return found == tensors_.end() ? nullptr : &*found;
}

const GgufValue* GgufFile::find(const std::string& key) const {
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? nullptr : &found->second;
}

const std::string* GgufFile::find_string(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return nullptr;
  const auto* text = std::get_if<std::string>(value);
  if (!text) fail_type(key, "a string");
  return text;
}

std::optional<std::uint64_t> GgufFile::find_unsigned(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  return std::visit(
      [&](const auto& held) -> std::uint64_t {
        using T = std::decay_t<decltype(held)>;
        if constexpr (kIsInteger<T>) {
          if (std::in_range<std::uint64_t>(held)) return static_cast<std::uint64_t>(held);
        }
        fail_type(key, "a whole number of at least 0");
      },
      *value);
}

std::optional<double> GgufFile::find_number(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  return std::visit(
      [&](const auto& held) -> double {
        using T = std::decay_t<decltype(held)>;
        if constexpr (kIsInteger<T> || std::is_floating_point_v<T>) {
          return static_cast<double>(held);
        } else {
          fail_type(key, "a number");
        }
      },
      *value);
}

std::optional<bool> GgufFile::find_bool(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  const auto* held = std::get_if<bool>(value);
  if (!held) fail_type(key, "a boolean");
  return *held;
}

const std::vector<std::string>* GgufFile::find_strings(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return nullptr;
  const auto* array = std::get_if<GgufArray>(value);
  const auto* strings = array ? std::get_if<std::vector<std::string>>(array) : nullptr;
  if (!strings) fail_type(key, "an array of strings");
  return strings;
}

std::optional<std::vector<std::int64_t>> GgufFile::find_integers(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  const auto* array = std::get_if<GgufArray>(value);
  if (!array) fail_type(key, "an array of whole numbers");
  return std::visit(
      [&](const auto& held) -> std::vector<std::int64_t> {
        using T = typename std::decay_t<decltype(held)>::value_type;
        if constexpr (kIsInteger<T>) {
          if (std::all_of(held.begin(), held.end(),
                          [](T element) { return std::in_range<std::int64_t>(element); })) {
            return {held.begin(), held.end()};
          }
        }
        fail_type(key, "an array of whole numbers");
      },
      *array);
}

const std::string& GgufFile::get_string(const std::string& key) const {
  const std::string* value = find_string(key);
  if (!value) fail_absent(key);
  return *value;
}

std::uint64_t GgufFile::get_unsigned(const std::string& key) const {
  const auto value = find_unsigned(key);
  if (!value) fail_absent(key);
  return *value;
}

const std::vector<std::string>& GgufFile::get_strings(const std::string& key) const {
  const std::vector<std::string>* value = find_strings(key);
  if (!value) fail_absent(key);
  return *value;
}

void GgufFile::fail_type(const std::string& key, std::string_view expected) const {
  throw UserError(fmt::format("{}: metadata '{}': expected {}", name_, key, expected));
}

void GgufFile::fail_absent(const std::string& key) const {
  throw UserError(fmt::format("{}: metadata '{}' is missing", name_, key));
}

}  // namespace graft::llm
