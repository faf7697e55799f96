#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "graft/export.h"
#include "graft/llm/weights/ggml_type.h"

namespace graft::llm {

/// A metadata array, in the element type that the file gives it.
using GgufArray =
    std::variant<std::vector<std::uint8_t>, std::vector<std::int8_t>, std::vector<std::uint16_t>,
                 std::vector<std::int16_t>, std::vector<std::uint32_t>, std::vector<std::int32_t>,
                 std::vector<std::uint64_t>, std::vector<std::int64_t>, std::vector<float>,
                 std::vector<double>, std::vector<bool>, std::vector<std::string>>;

/// A metadata value, in the type that the file gives it.
using GgufValue = std::variant<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t,
                               std::uint32_t, std::int32_t, std::uint64_t, std::int64_t, float,
                               double, bool, std::string, GgufArray>;

/// A tensor as the header describes it.
struct GgufTensor {
  std::string name;
  GgmlType type;
  std::vector<std::int64_t> shape;  ///< Row-major, outermost first: the reverse of the file's.
  std::uint64_t offset;             ///< Of the first byte, from the start of the file.
  std::uint64_t bytes;
};

/// The header of a GGUF file, version 2 or 3 (ggml, docs/gguf.md): metadata and a list of tensors,
/// each lying wholly inside the file. No count, length, offset or type in the file is trusted.
///
/// Every error is a UserError of one line that opens with the file's name.
class GRAFT_EXPORT GgufFile {
 public:
  /// Reads and checks the header of the file at `path`. Tensor data is not read.
  static GgufFile open(const std::string& path);

  /// The format's checks alone, on a stream of `size` bytes that starts at the header. `name`
  /// stands for the file in messages.
  static GgufFile read(std::istream& in, std::uint64_t size, std::string name);

  const std::string& name() const { return name_; }
  std::uint32_t version() const { return version_; }
  const std::unordered_map<std::string, GgufValue>& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }  ///< In the file's order.
  const GgufTensor* find_tensor(std::string_view name) const;          ///< Null if absent.

  /// A metadata value, or nothing if the key is absent. A value of another type is an error;
  /// integers may be of any width, and a float may be given as an integer.
  const std::string* find_string(const std::string& key) const;
  std::optional<std::uint64_t> find_unsigned(const std::string& key) const;
  std::optional<double> find_number(const std::string& key) const;
  std::optional<bool> find_bool(const std::string& key) const;
  const std::vector<std::string>* find_strings(const std::string& key) const;
  std::optional<std::vector<std::int64_t>> find_integers(const std::string& key) const;

  /// The same for a key that must be there.
  const std::string& get_string(const std::string& key) const;
  std::uint64_t get_unsigned(const std::string& key) const;
  const std::vector<std::string>& get_strings(const std::string& key) const;

 private:
  friend class GgufParser;

  const GgufValue* find(const std::string& key) const;
  [[noreturn]] void fail_type(const std::string& key, std::string_view expected) const;
  [[noreturn]] void fail_absent(const std::string& key) const;

  std::string name_;
  std::uint32_t version_ = 0;
  std::unordered_map<std::string, GgufValue> metadata_;
  std::vector<GgufTensor> tensors_;
};

}  // namespace graft::llm
