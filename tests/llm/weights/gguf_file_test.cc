#include "graft/llm/weights/gguf_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "graft/llm/user_error.h"
#include "tests/llm/weights/gguf_builder.h"

namespace graft::llm {
namespace {

using testing::gguf_of_every_kind;
using testing::GgufBuilder;

constexpr std::uint32_t kF32 = 0, kQ4_0 = 2, kQ8_0 = 8, kQ4_K = 12;
constexpr std::uint64_t kHuge = std::numeric_limits<std::uint64_t>::max();

// The message that reading `bytes` ends with; empty if it is read.
std::string error_of(const std::string& bytes) {
  try {
    GgufBuilder::parse(bytes);
  } catch (const UserError& error) {
    return error.what();
  }
  return {};
}

std::string error_of(const GgufBuilder& builder) { return error_of(builder.bytes()); }

// Refused, in one line that opens with the file's name and has `part` in it.
#define EXPECT_REFUSED(what, part)                               \
  do {                                                           \
    const std::string message = error_of(what);                  \
    EXPECT_EQ(message.rfind("model.gguf: ", 0), 0u) << message;  \
    EXPECT_NE(message.find(part), std::string::npos) << message; \
    EXPECT_EQ(message.find('\n'), std::string::npos) << message; \
  } while (false)

// One tensor of 64 × 3 floats.
GgufBuilder small() {
  GgufBuilder builder;
  builder.tensor("a.weight", {64, 3}, kF32, 0).data(768);
  return builder;
}

std::string overwrite(std::string bytes, std::size_t at, const std::string& with) {
  return bytes.replace(at, with.size(), with);
}

TEST(GgufFile, ReadsTensors) {
  GgufBuilder builder;
  builder.tensor("a.weight", {64, 3}, kF32, 0)
      .tensor("b.weight", {32, 2, 5}, kQ4_0, 768)
      .tensor("c.weight", {7}, kF32, 960)
      .data(960 + 28);
  const std::string bytes = builder.bytes();
  const GgufFile file = builder.parse();
  ASSERT_EQ(file.tensors().size(), 3u);
  const std::uint64_t data = bytes.size() - (960 + 28);
  const GgufTensor& a = file.tensors()[0];
  EXPECT_EQ(a.name, "a.weight");
  EXPECT_EQ(a.type, GgmlType::kF32);
  EXPECT_EQ(a.shape, (std::vector<std::int64_t>{3, 64}));
  EXPECT_EQ(a.offset, data);
  EXPECT_EQ(a.bytes, 768u);
  const GgufTensor* b = file.find_tensor("b.weight");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->shape, (std::vector<std::int64_t>{5, 2, 32}));
  EXPECT_EQ(b->bytes, 10u * 18u);
  EXPECT_EQ(b->offset, data + 768);
  EXPECT_EQ(file.find_tensor("d.weight"), nullptr);
}

TEST(GgufFile, ReadsEveryKindOfMetadata) {
  GgufBuilder builder;
  builder.number("k.u8", 0, std::uint8_t{200})
      .number("k.i8", 1, std::int8_t{-7})
      .number("k.u16", 2, std::uint16_t{60000})
      .number("k.i16", 3, std::int16_t{-30000})
      .number("k.u32", 4, std::uint32_t{4000000000})
      .number("k.i32", 5, std::int32_t{-2000000000})
      .number("k.f32", 6, 0.5f)
      .boolean("k.bool", true)
      .text("k.text", "h\xC3\xA9")
      .strings("k.texts", {"x", "", "yz"})
      .int32s("k.ints", {3, -4})
      .number("k.u64", 10, kHuge)
      .number("k.i64", 11, std::int64_t{-5});
  const GgufFile file = builder.parse();
  EXPECT_EQ(file.metadata().size(), 13u);
  EXPECT_EQ(file.find_unsigned("k.u8"), 200u);
  EXPECT_EQ(file.find_number("k.i8"), -7.0);
  EXPECT_EQ(file.find_unsigned("k.u16"), 60000u);
  EXPECT_EQ(file.find_number("k.i16"), -30000.0);
  EXPECT_EQ(file.get_unsigned("k.u32"), 4000000000u);
  EXPECT_EQ(file.find_number("k.i32"), -2000000000.0);
  EXPECT_EQ(file.find_number("k.f32"), 0.5);
  EXPECT_EQ(file.find_bool("k.bool"), true);
  EXPECT_EQ(file.get_string("k.text"), "h\xC3\xA9");
  EXPECT_EQ(file.get_strings("k.texts"), (std::vector<std::string>{"x", "", "yz"}));
  EXPECT_EQ(file.find_integers("k.ints"), (std::vector<std::int64_t>{3, -4}));
  EXPECT_EQ(file.find_unsigned("k.u64"), kHuge);
  EXPECT_EQ(file.find_number("k.i64"), -5.0);

  EXPECT_EQ(file.find_string("k.none"), nullptr);
  EXPECT_EQ(file.find_unsigned("k.none"), std::nullopt);
  EXPECT_THROW(file.get_string("k.none"), UserError);
  EXPECT_THROW(file.get_strings("k.none"), UserError);
  EXPECT_THROW(file.find_string("k.u8"), UserError);
  EXPECT_THROW(file.find_unsigned("k.i8"), UserError);
  EXPECT_THROW(file.find_unsigned("k.bool"), UserError);
  EXPECT_THROW(file.find_number("k.text"), UserError);
  EXPECT_THROW(file.find_bool("k.u8"), UserError);
  EXPECT_THROW(file.find_strings("k.ints"), UserError);
  EXPECT_THROW(file.find_integers("k.texts"), UserError);
}

TEST(GgufFile, RefusesAFalseHeader) {
  const std::string bytes = small().bytes();
  EXPECT_REFUSED("", "ends early");
  EXPECT_REFUSED("GGUF", "ends early");
  EXPECT_REFUSED(overwrite(bytes, 0, "GGML"), "not a GGUF file");
  for (const std::uint32_t version : {0u, 1u, 4u, 0xFFFFFFFFu}) {
    GgufBuilder builder = small();
    builder.version = version;
    EXPECT_REFUSED(builder, "only 2 and 3");
  }
  EXPECT_REFUSED(overwrite(bytes, 4, GgufBuilder::raw(std::uint32_t{0x03000000})), "big-endian");

  GgufBuilder version2 = small();
  version2.version = 2;
  EXPECT_EQ(error_of(version2), "");
}

TEST(GgufFile, RefusesFalseCounts) {
  const std::string bytes = small().bytes();
  for (const std::uint64_t count : {kHuge, kHuge / 33, std::uint64_t{1} << 40}) {
    EXPECT_REFUSED(overwrite(bytes, 8, GgufBuilder::raw(count)), "do not fit");
    EXPECT_REFUSED(overwrite(bytes, 16, GgufBuilder::raw(count)), "do not fit");
  }
  for (const std::int64_t wrong : {-1, 1, 2}) {
    GgufBuilder builder = small();
    builder.text("k.a", "x").tensor("b.weight", {8}, kF32, 768).data(800);
    ASSERT_EQ(error_of(builder), "");
    builder.extra_metadata = wrong;
    EXPECT_NE(error_of(builder), "") << wrong;
  }
  GgufBuilder more = small();
  more.extra_tensors = 1;
  EXPECT_NE(error_of(more), "");
}

TEST(GgufFile, RefusesFalseLengthsInMetadata) {
  const auto with = [](const std::string& entry) {
    GgufBuilder builder = small();
    builder.metadata(entry);
    return builder;
  };
  const auto raw32 = [](std::uint32_t value) { return GgufBuilder::raw(value); };
  const auto raw64 = [](std::uint64_t value) { return GgufBuilder::raw(value); };
  const std::string pad(64, 'x');
  for (const std::uint64_t length :
       {kHuge, kHuge - 7, std::uint64_t{1} << 62, std::uint64_t{4096}}) {
    EXPECT_REFUSED(with(raw64(length) + pad), "metadata entry 1 of 1");
    EXPECT_REFUSED(with(GgufBuilder::key("k.text", 8) + raw64(length)), "'k.text'");
    EXPECT_REFUSED(with(GgufBuilder::key("k.list", 9) + raw32(8) + raw64(length)), "'k.list'");
    EXPECT_REFUSED(with(GgufBuilder::key("k.list", 9) + raw32(8) + raw64(1) + raw64(length)),
                   "'k.list'");
    for (const std::uint32_t type : {0u, 3u, 5u, 7u, 11u, 12u}) {
      EXPECT_REFUSED(with(GgufBuilder::key("k.list", 9) + raw32(type) + raw64(length)), "'k.list'");
    }
  }
  EXPECT_REFUSED(with(GgufBuilder::key("k.a", 13) + pad), "unknown value type 13");
  EXPECT_REFUSED(with(GgufBuilder::key("k.a", 0xFFFFFFFF) + pad), "unknown value type");
  EXPECT_REFUSED(with(GgufBuilder::key("k.a", 9) + raw32(13) + raw64(1) + pad), "unknown type 13");
  EXPECT_REFUSED(with(GgufBuilder::key("k.a", 9) + raw32(9) + raw64(1) + pad), "arrays of arrays");
  EXPECT_REFUSED(with(GgufBuilder::key("k.a", 7) + '\2'), "a boolean is 2");
  EXPECT_REFUSED(with(GgufBuilder::key("k.a", 9) + raw32(7) + raw64(2) + '\1' + '\3'),
                 "a boolean is 3");
  EXPECT_REFUSED(with(GgufBuilder::key("", 4) + raw32(1)), "not printable");
  EXPECT_REFUSED(with(GgufBuilder::key("a\nb", 4) + raw32(1)), "not printable");
  EXPECT_REFUSED(with(GgufBuilder::key(std::string(65536, 'k'), 4) + raw32(1)), "at most 65535");

  GgufBuilder twice = small();
  twice.uint32("k.a", 1).uint32("k.a", 1);
  EXPECT_REFUSED(twice, "'k.a': given twice");
}

TEST(GgufFile, RefusesAHeaderBeyondAllReason) {
  GgufBuilder builder = small();
  builder.text("k.text", std::string((std::size_t{64} << 20) - 40, 'x'));
  EXPECT_REFUSED(builder, "larger than 64 MiB");
}

TEST(GgufFile, RefusesFalseShapes) {
  const auto shape = [](const std::vector<std::uint64_t>& dims, std::uint32_t type = kF32) {
    GgufBuilder builder;
    builder.tensor("a.weight", dims, type, 0).data(768);
    return builder;
  };
  EXPECT_REFUSED(shape({}), "'a.weight': 0 dimensions");
  EXPECT_REFUSED(shape({1, 1, 1, 1, 1}), "5 dimensions");
  EXPECT_REFUSED(shape({0}), "a dimension of 0");
  EXPECT_REFUSED(shape({8, 0}), "a dimension of 0");
  EXPECT_REFUSED(shape({kHuge}), "a dimension of");
  EXPECT_REFUSED(shape({std::uint64_t{1} << 31}), "a dimension of");
  const std::uint64_t two30 = std::uint64_t{1} << 30;
  EXPECT_REFUSED(shape({two30, two30, two30}), "exceeds 2^64");
  EXPECT_REFUSED(shape({two30, two30, 16}), "exceeds 2^64");       // Wraps around to 0.
  EXPECT_REFUSED(shape({two30, two30, 4}), "exceeds 2^64 bytes");  // 2^62 floats
  EXPECT_REFUSED(shape({two30, two30, 1}), "past the end");
  EXPECT_REFUSED(shape({16}, kQ4_0), "multiple of 32");
  EXPECT_REFUSED(shape({33, 32}, kQ8_0), "multiple of 32");
  EXPECT_REFUSED(shape({128}, kQ4_K), "multiple of 256");

  // More dimensions than the file holds.
  const std::string bytes = small().bytes();
  const std::size_t dims_at = bytes.find("a.weight") + 8;
  EXPECT_REFUSED(overwrite(bytes, dims_at, GgufBuilder::raw(std::uint32_t{0x20000001})),
                 "dimensions, expected 1 to 4");
}

TEST(GgufFile, RefusesFalseTypes) {
  // 4 and 5 are types taken back long ago.
  for (const std::uint32_t type : {4u, 5u, 31u, 36u, 38u, 40u, 1000u, 0xFFFFFFFFu}) {
    GgufBuilder builder;
    builder.tensor("a.weight", {256}, type, 0).data(4096);
    EXPECT_REFUSED(builder, "'a.weight': unknown type");
  }
}

TEST(GgufFile, RefusesFalseOffsets) {
  const auto at = [](std::uint64_t offset, std::size_t data) {
    GgufBuilder builder;
    builder.tensor("a.weight", {64, 3}, kF32, offset).data(data);
    return builder;
  };
  EXPECT_EQ(error_of(at(0, 768)), "");
  EXPECT_REFUSED(at(0, 767), "past the end");
  EXPECT_EQ(error_of(at(32, 800)), "");
  EXPECT_REFUSED(at(32, 799), "past the end");
  EXPECT_REFUSED(at(8, 4096), "not a multiple of the alignment");
  EXPECT_REFUSED(at(kHuge - 31, 4096), "past the end");  // The end wraps around to the file.
  EXPECT_REFUSED(at(std::uint64_t{1} << 63, 4096), "past the end");

  GgufBuilder overlap;
  overlap.tensor("a.weight", {64, 3}, kF32, 64).tensor("b.weight", {64}, kF32, 0).data(4096);
  EXPECT_REFUSED(overlap, "'a.weight': overlaps tensor 'b.weight'");
  GgufBuilder twice;
  twice.tensor("a.weight", {8}, kF32, 0).tensor("a.weight", {8}, kF32, 32).data(64);
  EXPECT_REFUSED(twice, "'a.weight': given twice");
}

TEST(GgufFile, RefusesFalseNames) {
  for (const std::string& name : {std::string(), std::string("a\0b", 3), std::string("a b"),
                                  std::string("\xC3\xA9.weight"), std::string("a\n.weight")}) {
    GgufBuilder builder;
    builder.tensor(name, {8}, kF32, 0).data(32);
    EXPECT_REFUSED(builder, "tensor 1 of 1: the name");
  }
  GgufBuilder builder;
  builder.tensor(std::string(65, 'a'), {8}, kF32, 0).data(32);
  EXPECT_REFUSED(builder, "at most 64");
}

TEST(GgufFile, RefusesFalseAlignments) {
  for (const std::uint32_t alignment : {0u, 1u, 4u, 24u, 131072u, 0xFFFFFFFFu}) {
    GgufBuilder builder = small();
    builder.uint32("general.alignment", alignment);
    EXPECT_REFUSED(builder, "'general.alignment'");
  }
  // Other readers see the key as a uint32 only, and would find the data elsewhere.
  GgufBuilder wide = small();
  wide.number("general.alignment", 10, std::uint64_t{32});
  EXPECT_REFUSED(wide, "expected a uint32");

  GgufBuilder builder;
  builder.alignment = 64;
  builder.uint32("general.alignment", 64).tensor("a.weight", {8}, kF32, 64).data(96);
  EXPECT_EQ(error_of(builder), "");
  EXPECT_EQ(builder.parse().tensors()[0].offset % 64, 0u);
}

TEST(GgufFile, SurvivesEveryTruncationAndEveryChangedByte) {
  const std::string bytes = gguf_of_every_kind();
  ASSERT_EQ(error_of(bytes), "");
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_NE(error_of(bytes.substr(0, size)), "") << size;
  }
  const std::size_t header = bytes.size() - 836;
  int refused = 0;
  for (std::size_t at = 0; at < header; ++at) {
    for (const int change : {1, 2, 4, 8, 16, 32, 64, 128, 255}) {
      std::string changed = bytes;
      changed[at] = static_cast<char>(changed[at] ^ change);
      refused += error_of(changed) != "";
    }
  }
  EXPECT_GT(refused, static_cast<int>(header) * 4);
}

class GgufPath : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::temp_directory_path() / ("graft_gguf_test_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  static std::string open_error(const std::filesystem::path& path) {
    try {
      GgufFile::open(path.string());
    } catch (const UserError& error) {
      return error.what();
    }
    return {};
  }

  std::filesystem::path folder_;
};

TEST_F(GgufPath, OpensAFile) {
  const std::filesystem::path path = folder_ / "model.gguf";
  std::ofstream(path, std::ios::binary) << small().bytes();
  const GgufFile file = GgufFile::open(path.string());
  EXPECT_EQ(file.name(), path.string());
  EXPECT_EQ(file.tensors().size(), 1u);
}

TEST_F(GgufPath, RefusesWhatIsNoFile) {
  EXPECT_NE(open_error(folder_ / "none.gguf").find("no such file"), std::string::npos);
  EXPECT_NE(open_error(folder_).find("not a regular file"), std::string::npos);
  const std::filesystem::path empty = folder_ / "empty.gguf";
  std::ofstream(empty).close();
  EXPECT_NE(open_error(empty).find("ends early"), std::string::npos);
}

// Against another program's reading: tests/data/gguf_golden.json.
TEST(GgufModel, ReadsWhatTheGgufPackageReads) {
  if (!std::filesystem::exists(GRAFT_TEST_MODEL)) {
    GTEST_SKIP() << "no model at " << GRAFT_TEST_MODEL << "; run scripts/setup.sh";
  }
  const GgufFile file = GgufFile::open(GRAFT_TEST_MODEL);
  std::ifstream in(std::string(GRAFT_TEST_DATA) + "/gguf_golden.json");
  const auto golden = nlohmann::json::parse(in);

  const auto& tensors = golden.at("tensors");
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const GgufTensor& tensor = file.tensors()[i];
    EXPECT_EQ(tensor.name, tensors[i][0]);
    EXPECT_EQ(info_of(tensor.type).name, tensors[i][1].get<std::string>());
    EXPECT_EQ(tensor.shape, tensors[i][2].get<std::vector<std::int64_t>>());
    EXPECT_EQ(tensor.offset, tensors[i][3].get<std::uint64_t>());
    EXPECT_EQ(tensor.bytes, tensors[i][4].get<std::uint64_t>());
  }

  const auto& metadata = golden.at("metadata");
  const auto& lengths = golden.at("array_lengths");
  EXPECT_EQ(file.metadata().size(), metadata.size() + lengths.size());
  for (const auto& [key, value] : metadata.items()) {
    if (value.is_string()) {
      EXPECT_EQ(file.get_string(key), value.get<std::string>()) << key;
    } else if (value.is_boolean()) {
      EXPECT_EQ(file.find_bool(key), value.get<bool>()) << key;
    } else {
      EXPECT_EQ(file.find_number(key), value.get<double>()) << key;
    }
  }
  for (const auto& [key, length] : lengths.items()) {
    const auto* array = std::get_if<GgufArray>(&file.metadata().at(key));
    ASSERT_NE(array, nullptr) << key;
    EXPECT_EQ(std::visit([](const auto& held) { return held.size(); }, *array), length) << key;
  }
}

}  // namespace
}  // namespace graft::llm
