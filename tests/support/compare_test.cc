#include "support/compare.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/tensor.h"

namespace graft::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

TEST(Compare, TakesWhatIsWithinTheBound) {
  EXPECT_TRUE(close({1.0, 2.0}, {1.0, 2.1}, 0.11));
  EXPECT_TRUE(close({}, {}, 0));
  EXPECT_TRUE(close({kInf, -kInf, kNan}, {kInf, -kInf, kNan}, 0));
}

TEST(Compare, RefusesNanInfinityAndWrongSigns) {
  EXPECT_FALSE(close({kNan}, {1.0}, 1e30));
  EXPECT_FALSE(close({1.0}, {kNan}, 1e30));
  EXPECT_FALSE(close({kInf}, {1.0}, 1e30));
  EXPECT_FALSE(close({kInf}, {1.0}, kInf));
  EXPECT_FALSE(close({kInf}, {-kInf}, kInf));
  EXPECT_FALSE(close({-0.5}, {0.5}, 0.9));
  EXPECT_FALSE(close({1.0}, {1.0}, kNan));
}

TEST(Compare, RefusesAnotherLength) { EXPECT_FALSE(close({1.0}, {1.0, 1.0}, 1)); }

TEST(Compare, ToleranceIsEarnedByThePlainComputation) {
  const std::vector<double> truth = {1.0, -1.0};
  EXPECT_TRUE(as_good_as({1.019, -1.0}, {1.01, -1.0}, truth, DType::kFloat32));
  EXPECT_FALSE(as_good_as({1.021, -1.0}, {1.01, -1.0}, truth, DType::kFloat32));
  EXPECT_TRUE(as_good_as({1.0 + 5e-8, -1.0}, truth, truth, DType::kFloat32));
  EXPECT_FALSE(as_good_as({1.0 + 5e-7, -1.0}, truth, truth, DType::kFloat32));
  EXPECT_FALSE(as_good_as({1.0, 1.0}, {1.01, -1.0}, truth, DType::kFloat32));
  EXPECT_FALSE(as_good_as({kNan, -1.0}, {kNan, -1.0}, truth, DType::kFloat32));
}

TEST(TestTensor, NoticesWritesBesideItsElements) {
  const Tensor tensor(DType::kFloat32, {3, 5}, {.offset = 1, .gap = 2, .order = {}});
  EXPECT_EQ(tensor.view().stride(0), 7);
  EXPECT_TRUE(tensor.guarded());
  float* const data = tensor.view().mutable_data_as<float>();
  for (int row = 0; row < 3; ++row) {
    for (int col = 0; col < 5; ++col) data[7 * row + col] = 0;
  }
  EXPECT_TRUE(tensor.guarded());
  for (const int outside : {-1, 5, 6, 12, 19}) {
    Tensor touched = tensor;
    touched.view().mutable_data_as<float>()[outside] = 0;
    EXPECT_FALSE(touched.guarded()) << outside;
  }
}

TEST(TestTensor, KeepsValuesInEveryLayout) {
  Tensor tensor(DType::kBFloat16, {2, 3, 4}, {.offset = 3, .gap = 1, .order = {1, 0, 2}});
  EXPECT_EQ(tensor.view().stride(1), 10);
  EXPECT_EQ(tensor.view().stride(0), 5);
  for (int i = 0; i < 24; ++i) tensor.set(i, i);
  for (int i = 0; i < 24; ++i) EXPECT_EQ(tensor.as(DType::kFloat32).get(i), i);
  EXPECT_TRUE(tensor.guarded());
}

}  // namespace
}  // namespace graft::test
