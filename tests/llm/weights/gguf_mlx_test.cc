// That MLX's reader survives what Graft's pass lets through, and then sees the same file.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "graft/llm/user_error.h"
#include "graft/llm/weights/gguf_file.h"
#include "mlx/io.h"
#include "tests/llm/weights/gguf_builder.h"

namespace graft::llm {
namespace {

namespace mx = ::mlx::core;
using testing::gguf_of_every_kind;
using testing::GgufBuilder;

class GgufMlxTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::temp_directory_path() /
            ("graft_gguf_mlx_test_" + std::to_string(::getpid()) + ".gguf");
  }
  void TearDown() override { std::filesystem::remove(path_); }

  // Whether the pass lets `bytes` through; if it does, MLX must see the same tensors and keys.
  bool agrees(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
    std::optional<GgufFile> file;
    try {
      file = GgufFile::open(path_.string());
    } catch (const UserError&) {
      return false;
    }
    const auto [arrays, metadata] = mx::load_gguf(path_.string());
    EXPECT_EQ(metadata.size(), file->metadata().size());
    for (const auto& [key, value] : file->metadata()) EXPECT_TRUE(metadata.contains(key)) << key;

    std::size_t expected = 0;
    for (const GgufTensor& tensor : file->tensors()) {
      const bool quantized = info_of(tensor.type).name.starts_with('Q') &&
                             tensor.type != GgmlType::kQ4_K && tensor.type != GgmlType::kQ6_K;
      expected += quantized ? 3 : 1;
      const auto found = arrays.find(tensor.name);
      if (found == arrays.end()) {
        ADD_FAILURE() << "MLX does not see " << tensor.name;
        continue;
      }
      if (!quantized) {
        EXPECT_EQ(found->second.shape(), mx::Shape(tensor.shape.begin(), tensor.shape.end()));
      }
    }
    EXPECT_EQ(arrays.size(), expected);
    return true;
  }

  std::filesystem::path path_;
};

GgufBuilder every_kind() {
  GgufBuilder builder;
  builder.number("k.u8", 0, std::uint8_t{1})
      .number("k.i8", 1, std::int8_t{-1})
      .number("k.u16", 2, std::uint16_t{2})
      .number("k.i16", 3, std::int16_t{-2})
      .uint32("k.u32", 3)
      .number("k.i32", 5, std::int32_t{-3})
      .number("k.f32", 6, 0.5f)
      .boolean("k.bool", true)
      .text("k.text", "abc")
      .text("k.empty", "")
      .strings("k.texts", {"x", "", "yz"})
      .strings("k.no_texts", {})
      .int32s("k.ints", {1, 2})
      .int32s("k.no_ints", {})
      .number("k.u64", 10, std::uint64_t{4})
      .number("k.i64", 11, std::int64_t{-4})
      .uint32("general.alignment", 64);
  builder.alignment = 64;
  std::uint64_t offset = 0;
  for (const std::uint32_t type : {0u, 1u, 2u, 3u, 8u, 12u, 14u, 24u, 25u, 26u, 30u}) {
    builder.tensor(fmt::format("t{}.weight", type), {256, 3}, type, offset);
    offset += 256 * 3 * 4;
  }
  builder.data(offset);
  return builder;
}

TEST_F(GgufMlxTest, SeesEveryKind) { EXPECT_TRUE(agrees(every_kind().bytes())); }

TEST_F(GgufMlxTest, SeesEveryNumberOfDimensions) {
  GgufBuilder builder;
  builder.tensor("a.weight", {32}, 8, 0)
      .tensor("b.weight", {32, 2}, 3, 64)
      .tensor("c.weight", {32, 2, 3}, 2, 128)
      .tensor("d.weight", {32, 1, 2, 1}, 0, 256)
      .data(512);
  EXPECT_TRUE(agrees(builder.bytes()));
}

TEST_F(GgufMlxTest, SurvivesEveryChangedByteThatPasses) {
  const std::string bytes = gguf_of_every_kind();
  ASSERT_TRUE(agrees(bytes));
  int passed = 0;
  for (std::size_t at = 0; at < bytes.size() - 836; ++at) {
    for (const int change : {1, 4, 32, 128}) {
      std::string changed = bytes;
      changed[at] = static_cast<char>(changed[at] ^ change);
      passed += agrees(changed);
    }
  }
  EXPECT_GT(passed, 100);  // Letters of names and text, at least.
}

}  // namespace
}  // namespace graft::llm
