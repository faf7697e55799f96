#include "graft/tensor_view.h"

#include <gtest/gtest.h>

#include <array>

#include "graft/error.h"

namespace graft {
namespace {

TEST(TensorView, DenseShapeHasRowMajorStrides) {
  const ConstTensorView view(nullptr, DType::kFloat32, {2, 64, 512});
  EXPECT_EQ(view.rank(), 3);
  EXPECT_EQ(view.stride(0), 64 * 512);
  EXPECT_EQ(view.stride(1), 512);
  EXPECT_EQ(view.stride(2), 1);
  EXPECT_EQ(view.size(), 2 * 64 * 512);
  EXPECT_EQ(view.shape_string(), "(2, 64, 512)");
}

TEST(TensorView, DefaultIsAbsentAndEmptyIsPresent) {
  EXPECT_FALSE(ConstTensorView().present());
  EXPECT_TRUE(ConstTensorView(nullptr, DType::kFloat32, {0, 4}).present());
}

TEST(TensorView, TransposedSwapsShapeAndStrides) {
  const ConstTensorView view = ConstTensorView(nullptr, DType::kBFloat16, {3, 5}).transposed();
  EXPECT_EQ(view.dim(0), 5);
  EXPECT_EQ(view.stride(0), 1);
  EXPECT_EQ(view.stride(1), 5);
}

TEST(TensorView, RefusesNegativeDimensions) {
  EXPECT_THROW(ConstTensorView(nullptr, DType::kFloat32, {2, -1}), Error);
}

}  // namespace
}  // namespace graft
