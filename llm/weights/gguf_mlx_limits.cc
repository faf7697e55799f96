// What MLX 0.32's GGUF reader does not survive in a well-formed file, found by reading it
// (mlx/io/gguf.cpp, gguf_quants.cpp, and gguflib.c under them).

#include <fmt/format.h>

#include <limits>
#include <string_view>
#include <unordered_set>

#include "graft/llm/user_error.h"
#include "graft/llm/weights/gguf_file.h"

namespace graft::llm {
namespace {

constexpr std::uint64_t kMaxInt = std::numeric_limits<std::int32_t>::max();

// Every other type either stops its loop over tensors half-way or has another block size there.
bool is_readable(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
    case GgmlType::kF16:
    case GgmlType::kBF16:
    case GgmlType::kQ4_0:
    case GgmlType::kQ4_1:
    case GgmlType::kQ8_0:
    case GgmlType::kQ4_K:
    case GgmlType::kQ6_K:
    case GgmlType::kI8:
    case GgmlType::kI16:
    case GgmlType::kI32:
      return true;
    default:
      return false;
  }
}

// Kept quantized by MLX: one tensor becomes three, packed words, ".scales" and ".biases".
bool is_kept_quantized(GgmlType type) {
  return type == GgmlType::kQ4_0 || type == GgmlType::kQ4_1 || type == GgmlType::kQ8_0;
}

void check_value(const GgufFile& file, const std::string& key, const GgufValue& value) {
  const auto fail = [&](std::string_view what) {
    throw UserError(fmt::format("{}: metadata '{}': MLX cannot read {}", file.name(), key, what));
  };
  // MLX stores doubles as floats and then steps over half of their bytes.
  if (std::holds_alternative<double>(value)) fail("float64 values");
  if (const auto* array = std::get_if<GgufArray>(&value)) {
    if (std::holds_alternative<std::vector<double>>(*array)) fail("float64 arrays");
    const std::size_t length = std::visit([](const auto& held) { return held.size(); }, *array);
    if (length > kMaxInt) fail("arrays of more than 2^31 - 1 elements");
  }
}

}  // namespace

void check_mlx_limits(const GgufFile& file) {
  for (const auto& [key, value] : file.metadata()) check_value(file, key, value);

  std::unordered_set<std::string> names;
  for (const GgufTensor& tensor : file.tensors()) {
    const auto fail = [&](const std::string& what) {
      throw UserError(fmt::format("{}: tensor '{}': {}", file.name(), tensor.name, what));
    };
    const auto claim = [&](const std::string& name) {
      if (!names.insert(name).second) fail(fmt::format("MLX would load '{}' twice", name));
    };
    if (!is_readable(tensor.type)) {
      fail(fmt::format("type {} is not supported; use a file of F32, F16, BF16, Q4_0, Q4_1 or Q8_0",
                       info_of(tensor.type).name));
    }
    claim(tensor.name);
    if (!is_kept_quantized(tensor.type)) continue;

    constexpr std::string_view kSuffix = ".weight";
    if (!tensor.name.ends_with(kSuffix) || tensor.name.size() == kSuffix.size()) {
      fail("the name of a quantized tensor must end in '.weight'");
    }
    const std::string stem = tensor.name.substr(0, tensor.name.size() - kSuffix.size());
    claim(stem + ".scales");
    claim(stem + ".biases");

    // MLX counts the bytes of the packed words in an int.
    std::uint64_t elements = 1;
    for (const std::int64_t dim : tensor.shape) elements *= static_cast<std::uint64_t>(dim);
    const std::uint64_t bytes = tensor.type == GgmlType::kQ8_0 ? elements : elements / 2;
    if (bytes > kMaxInt) fail("larger than 2 GiB, which MLX cannot read");
  }
}

}  // namespace graft::llm
