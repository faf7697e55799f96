// Graft's reading of tensors against the gguf package's: tests/data/gguf_golden.json.

#include "graft/llm/weights/gguf_tensors.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "graft/llm/user_error.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "tests/llm/weights/gguf_builder.h"
#include "tests/support/tiny_model.h"

namespace graft::llm {
namespace {

using testing::GgufBuilder;
using testing::TemporaryFolder;
using testing::write_text;

// The file that these parts of data make, each a tensor (2, 256) of a type.
std::string file_of(const std::vector<std::pair<GgmlType, std::string>>& parts) {
  GgufBuilder builder;
  std::string data;
  for (const auto& [type, bytes] : parts) {
    builder.tensor(std::string(info_of(type).name) + ".weight", {256, 2},
                   static_cast<std::uint32_t>(type), data.size());
    data += bytes;
    data.resize((data.size() + 31) / 32 * 32);
  }
  return builder.bytes() + data;
}

nlohmann::json golden_blocks() {
  std::ifstream in(std::string(GRAFT_TEST_DATA) + "/gguf_golden.json");
  return nlohmann::json::parse(in).at("blocks");
}

GgmlType type_named(const std::string& name) {
  for (std::uint32_t type = 0; type < 64; ++type) {
    const GgmlTypeInfo* info = find_ggml_type(type);
    if (info && info->name == name) return info->type;
  }
  ADD_FAILURE() << name;
  return GgmlType::kF32;
}

std::string bytes_of(const std::string& hex) {
  std::string bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

TEST(GgufTensors, AreThoseOfTheGgufPackage) {
  std::vector<std::pair<GgmlType, std::string>> parts;
  const nlohmann::json golden = golden_blocks();
  ASSERT_EQ(golden.size(), 6u);
  for (const auto& block : golden) parts.emplace_back(type_named(block[0]), bytes_of(block[1]));
  const TemporaryFolder folder;
  write_text(folder.file("model.gguf"), file_of(parts));
  const auto tensors = read_gguf_tensors(GgufFile::open(folder.file("model.gguf")));

  for (const auto& block : golden) {
    const std::string name = block[0];
    mx::array tensor = tensors.at(name + ".weight");
    const bool is_affine = tensor.dtype() == mx::uint32;
    EXPECT_EQ(is_affine, name == "Q4_0" || name == "Q4_1" || name == "Q8_0");
    if (is_affine) {
      tensor = mx::dequantize(tensor, mx::astype(tensors.at(name + ".scales"), mx::float32),
                              mx::astype(tensors.at(name + ".biases"), mx::float32), 32,
                              name == "Q8_0" ? 8 : 4);
    }
    // The types of 256 are kept in float16.
    const double rounding = name.ends_with("_K") ? 0x1p-11 : name == "BF16" ? 0 : 0x1p-22;
    tensor = mx::contiguous(mx::astype(tensor, mx::float32));
    mx::eval(tensor);
    ASSERT_EQ(tensor.shape(), (mx::Shape{2, 256})) << name;
    const std::vector<double> expected = block[2];
    const double largest = std::abs(
        *std::ranges::max_element(expected, {}, [](double value) { return std::abs(value); }));
    EXPECT_GT(largest, 0.001) << name;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double bound = rounding * (std::abs(expected[i]) + 0x1p-10 * largest);
      EXPECT_NEAR(static_cast<double>(tensor.data<float>()[i]), expected[i], bound)
          << name << " " << i;
    }
  }
}

TEST(GgufTensors, OfPlainNumbersAreTheirBytes) {
  std::string f32, f16;
  for (int i = 0; i < 512; ++i) {
    f32 += GgufBuilder::raw(static_cast<float>(i) / 7);
    f16 += GgufBuilder::raw(static_cast<std::uint16_t>(0x2000 + i));
  }
  const TemporaryFolder folder;
  write_text(folder.file("model.gguf"), file_of({{GgmlType::kF32, f32}, {GgmlType::kF16, f16}}));
  const auto tensors = read_gguf_tensors(GgufFile::open(folder.file("model.gguf")));
  const mx::array& wide = tensors.at("F32.weight");
  const mx::array& narrow = tensors.at("F16.weight");
  EXPECT_EQ(wide.dtype(), mx::float32);
  EXPECT_EQ(narrow.dtype(), mx::float16);
  EXPECT_EQ(std::string(wide.data<char>(), 2048), f32);
  EXPECT_EQ(std::string(narrow.data<char>(), 1024), f16);
}

TEST(GgufTensors, OfAFileThatBecameShorterAreRefused) {
  const TemporaryFolder folder;
  const std::string path = folder.file("model.gguf");
  const std::string bytes = file_of({{GgmlType::kF32, std::string(2048, '\1')}});
  write_text(path, bytes);
  const GgufFile file = GgufFile::open(path);
  for (const std::size_t less : {std::size_t{1}, std::size_t{1000}, bytes.size()}) {
    std::filesystem::resize_file(path, bytes.size() - less);
    try {
      read_gguf_tensors(file);
      ADD_FAILURE() << "read " << less;
    } catch (const UserError& error) {
      EXPECT_EQ(error.what(), path + ": became shorter while it was read");
    }
  }
  std::filesystem::remove(path);
  EXPECT_THROW(read_gguf_tensors(file), UserError);
}

TEST(GgufTensors, OfOtherTypesAreRefused) {
  const TemporaryFolder folder;
  const std::string path = folder.file("model.gguf");
  for (const std::uint32_t type : {6u, 7u, 10u, 11u, 13u, 24u, 26u, 39u}) {
    GgufBuilder builder;
    builder.tensor("a.weight", {256}, type, 0).data(4096);
    write_text(path, builder.bytes());
    EXPECT_THROW(read_gguf_tensors(GgufFile::open(path)), UserError) << type;
  }
}

}  // namespace
}  // namespace graft::llm
