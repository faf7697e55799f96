#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "graft/llm/weights/gguf_file.h"

namespace graft::llm::testing {

/// Bytes of a GGUF file, laid down field by field, so that a test can lie in any of them.
class GgufBuilder {
 public:
  template <class T>
  static std::string raw(T value) {
    std::string bytes(sizeof(T), '\0');
    std::memcpy(bytes.data(), &value, sizeof(T));
    return bytes;
  }

  static std::string string(std::string_view text) {
    return raw<std::uint64_t>(text.size()) + std::string(text);
  }

  static std::string key(std::string_view name, std::uint32_t type) {
    return string(name) + raw(type);
  }

  GgufBuilder& metadata(std::string entry) {
    metadata_.push_back(std::move(entry));
    return *this;
  }
  template <class T>
  GgufBuilder& number(std::string_view name, std::uint32_t type, T value) {
    return metadata(key(name, type) + raw(value));
  }
  GgufBuilder& uint32(std::string_view name, std::uint32_t value) { return number(name, 4, value); }
  GgufBuilder& boolean(std::string_view name, bool value) {
    return number(name, 7, static_cast<std::uint8_t>(value));
  }
  GgufBuilder& text(std::string_view name, std::string_view value) {
    return metadata(key(name, 8) + string(value));
  }
  GgufBuilder& strings(std::string_view name, const std::vector<std::string>& values) {
    std::string entry = key(name, 9) + raw(std::uint32_t{8}) + raw<std::uint64_t>(values.size());
    for (const std::string& value : values) entry += string(value);
    return metadata(std::move(entry));
  }
  GgufBuilder& int32s(std::string_view name, const std::vector<std::int32_t>& values) {
    std::string entry = key(name, 9) + raw(std::uint32_t{5}) + raw<std::uint64_t>(values.size());
    for (const std::int32_t value : values) entry += raw(value);
    return metadata(std::move(entry));
  }

  /// `dims` in the file's order, innermost first.
  GgufBuilder& tensor(std::string_view name, const std::vector<std::uint64_t>& dims,
                      std::uint32_t type, std::uint64_t offset) {
    std::string entry = string(name) + raw(static_cast<std::uint32_t>(dims.size()));
    for (const std::uint64_t dim : dims) entry += raw(dim);
    tensors_.push_back(entry + raw(type) + raw(offset));
    return *this;
  }

  GgufBuilder& data(std::size_t bytes) {
    data_bytes_ = bytes;
    return *this;
  }

  std::uint32_t version = 3;
  std::uint64_t alignment = 32;
  std::int64_t extra_tensors = 0;  ///< By how much the counts in the header are wrong.
  std::int64_t extra_metadata = 0;

  std::string bytes() const {
    std::string out = "GGUF" + raw(version) +
                      raw(tensors_.size() + static_cast<std::uint64_t>(extra_tensors)) +
                      raw(metadata_.size() + static_cast<std::uint64_t>(extra_metadata));
    for (const std::string& entry : metadata_) out += entry;
    for (const std::string& entry : tensors_) out += entry;
    if (!tensors_.empty()) out.resize((out.size() + alignment - 1) / alignment * alignment);
    out.append(data_bytes_, '\0');
    return out;
  }

  static GgufFile parse(const std::string& bytes) {
    std::istringstream in(bytes);
    return GgufFile::read(in, bytes.size(), "model.gguf");
  }
  GgufFile parse() const { return parse(bytes()); }

 private:
  std::vector<std::string> metadata_;
  std::vector<std::string> tensors_;
  std::size_t data_bytes_ = 0;
};

/// A small file with an entry of each kind, a plain tensor and a quantized one.
inline std::string gguf_of_every_kind() {
  GgufBuilder builder;
  builder.uint32("general.alignment", 32)
      .text("k.text", "abc")
      .strings("k.texts", {"x", "yz"})
      .int32s("k.ints", {1, 2})
      .boolean("k.bool", true)
      .tensor("a.weight", {64, 3}, 0, 0)
      .tensor("b.weight", {32, 2}, 8, 768)
      .data(768 + 68);
  return builder.bytes();
}

}  // namespace graft::llm::testing
