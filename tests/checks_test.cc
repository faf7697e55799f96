#include "checks.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <string>

#include "graft/error.h"

namespace graft {
namespace {

float memory[64];

ConstTensorView strided(std::array<std::int64_t, 2> shape, std::array<std::int64_t, 2> strides) {
  return ConstTensorView(memory, DType::kFloat32, shape, strides);
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "";
}

const Check check("op");

TEST(Checks, ShapeNamesOperationTensorAndBothShapes) {
  const ConstTensorView view(memory, DType::kFloat32, {2, 3});
  EXPECT_EQ(message_of([&] {
              check.shape("x", view, {2, 4});
            }),
            "[op] x: expected (2, 4), got (2, 3)");
  EXPECT_EQ(message_of([&] { check.shape("x", view, {2}); }), "[op] x: expected (2), got (2, 3)");
  EXPECT_EQ(message_of([&] { check.shape("x", {}, {2}); }), "[op] x: expected (2), got no tensor");
  EXPECT_EQ(message_of([&] { check.shape("x", view, {2, 3}); }), "");
}

TEST(Checks, NullMemoryIsFineOnlyWithoutElements) {
  const ConstTensorView none(nullptr, DType::kFloat32, {0, 3});
  const ConstTensorView some(nullptr, DType::kFloat32, {1, 3});
  EXPECT_EQ(message_of([&] { check.rank("x", none, 2); }), "");
  EXPECT_EQ(message_of([&] { check.rank("x", some, 2); }),
            "[op] x: expected memory for (1, 3), got a null pointer");
}

TEST(Checks, DtypeAndDeviceNameWhatIsAllowed) {
  const ConstTensorView view(memory, DType::kInt32, {2}, Device{DeviceType::kCuda, 1});
  EXPECT_EQ(message_of([&] {
              check.dtype("x", view, {DType::kFloat32, DType::kBFloat16});
            }),
            "[op] x: expected float32 or bfloat16, got int32");
  EXPECT_EQ(message_of([&] { check.device("x", view, Device{}); }),
            "[op] x: expected device cpu:0, got cuda:1");
}

TEST(Checks, DensityLooksOnlyAtAxesThatMatter) {
  EXPECT_EQ(message_of([] { check.last_axis_dense("x", strided({3, 1}, {5, 7})); }), "");
  EXPECT_EQ(message_of([] { check.last_axis_dense("x", strided({0, 3}, {5, 7})); }), "");
  EXPECT_EQ(message_of([] {
              check.last_axis_dense("x", strided({3, 2}, {1, 3}));
            }),
            "[op] x: expected stride 1 along the last axis, got strides (1, 3)");
  EXPECT_EQ(message_of([] { check.dense("x", strided({1, 4}, {9, 1})); }), "");
  EXPECT_EQ(message_of([] {
              check.dense("x", strided({2, 4}, {5, 1}));
            }),
            "[op] x: expected a dense tensor, got strides (5, 1)");
}

TEST(Checks, WritableRefusesElementsThatShareAnAddress) {
  EXPECT_EQ(message_of([] { check.writable("y", strided({3, 4}, {4, 1})); }), "");
  EXPECT_EQ(message_of([] { check.writable("y", strided({3, 4}, {1, 3})); }), "");
  EXPECT_EQ(message_of([] { check.writable("y", strided({3, 4}, {-4, 1})); }), "");
  EXPECT_EQ(message_of([] { check.writable("y", strided({1, 4}, {0, 1})); }), "");
  EXPECT_NE(message_of([] { check.writable("y", strided({3, 4}, {0, 1})); }), "");
  EXPECT_NE(message_of([] { check.writable("y", strided({3, 4}, {3, 1})); }), "");
}

TEST(Checks, RequireThrowsTheReasonAsUnsupported) {
  EXPECT_NO_THROW(require("op", Support{}));
  try {
    require("op", Support::no("because"));
    FAIL() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_STREQ(error.what(), "[op] because");
  }
}

}  // namespace
}  // namespace graft
