#include <gtest/gtest.h>

#include <array>
#include <string>

#include "graft/context.h"
#include "graft/error.h"
#include "graft/linear.h"

namespace graft {
namespace {

std::array<float, 64> memory;

// A linear layer whose tensors are all on `device`.
LinearForward linear_on(Device device) {
  const auto view = [&](std::initializer_list<std::int64_t> shape) {
    return TensorView(memory.data(), DType::kFloat32, shape, device);
  };
  return {view({2, 3}), view({4, 3}), {}, view({2, 4})};
}

template <class Call>
std::pair<ErrorCode, std::string> error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {};
}

std::pair<ErrorCode, std::string> error_on(Device device) {
  return error_of([&] {
    Context context;
    linear_forward(context, linear_on(device));
  });
}

using Expected = std::pair<ErrorCode, std::string>;

TEST(Place, AContextIsOnTheCpuUnlessItIsMadeOtherwise) { EXPECT_EQ(Context().device(), Device{}); }

// Not where they are built: what a device says then is for the tests that run there.
#if !GRAFT_CUDA
TEST(Place, ACudaContextNeedsCudaKernels) {
  EXPECT_EQ(error_of([] { Context context((CudaPlace())); }),
            Expected(ErrorCode::kUnsupported, "[context] this build has no CUDA kernels"));
}

TEST(Place, TensorsOnADeviceWithoutKernelsAreRefusedWithTheReason) {
  const Device cuda{DeviceType::kCuda, 0};
  EXPECT_EQ(error_on(cuda),
            Expected(ErrorCode::kUnsupported, "[linear] this build has no CUDA kernels"));
  EXPECT_EQ(supports(linear_on(cuda)).reason, "this build has no CUDA kernels");
  EXPECT_EQ(error_on({DeviceType::kMetal, 0}).first, ErrorCode::kUnsupported);
}

#endif

TEST(Place, TensorsMustBeWhereTheContextIs) {
  EXPECT_EQ(error_on({DeviceType::kCpu, 1}),
            Expected(ErrorCode::kInvalidArgument,
                     "[linear] context: expected one for device cpu:1, got one for cpu:0"));
}

}  // namespace
}  // namespace graft
