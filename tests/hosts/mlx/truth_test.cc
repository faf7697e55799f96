#include "truth.h"

#include <limits>

// The comparator itself: what must fail does.
namespace graft::mlx::testing {
namespace {

TEST(Truth, ErrorSeesNanInfinityAndSign) {
  const std::vector<double> truth{1.0, -2.0, 3.0};
  EXPECT_EQ(max_error(mx::array({1.0f, -2.0f, 3.0f}), truth), 0.0);
  EXPECT_EQ(max_error(mx::array({1.0f, 2.0f, 3.0f}), truth), 4.0);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(max_error(mx::array({nan, -2.0f, 3.0f}), truth), INFINITY);
  EXPECT_EQ(max_error(mx::array({1.0f, -2.0f, nan}), truth), INFINITY);
  EXPECT_EQ(max_error(mx::array({1.0f, -infinity, 3.0f}), truth), INFINITY);
  EXPECT_EQ(max_error(mx::array({1.0f, -2.0f}), truth), INFINITY);
}

TEST(Truth, RmsErrorSeesOneBadElementInMany) {
  std::vector<float> data(10000, 1.0f);
  const std::vector<double> truth(10000, 1.0);
  const auto error = [&] { return rms_error(mx::array(data.begin(), {10000}), truth); };
  EXPECT_EQ(error(), 0.0);
  data[77] = -1.0f;
  EXPECT_NEAR(error(), 0.02, 1e-9);
  data[77] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(error(), INFINITY);
  data[77] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(error(), INFINITY);
}

TEST(Truth, FiniteDifferencesOfACube) {
  const auto cube = [](const std::vector<mx::array>& in) {
    return mx::sum(mx::multiply(mx::square(in[0]), in[0]));
  };
  const auto slope = finite_differences(cube, {mx::array({1.0f, -2.0f})}, 0);
  EXPECT_NEAR(slope[0], 3.0, 1e-2);
  EXPECT_NEAR(slope[1], 12.0, 1e-2);
}

}  // namespace
}  // namespace graft::mlx::testing
