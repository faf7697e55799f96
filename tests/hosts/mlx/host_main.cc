// The tests of the host run on the CPU or, where GRAFT_TEST_DEVICE says "cuda", on MLX's CUDA
// device.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cstdlib>
#include <string>

#include "kernels_here.h"

namespace {

namespace mx = ::mlx::core;

// Skips every test.
class Missing : public ::testing::EmptyTestEventListener {
 public:
  void OnTestStart(const ::testing::TestInfo&) override {
    GTEST_SKIP() << "this build of MLX or of Graft, or this machine, has no CUDA device";
  }
};

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const char* const asked = std::getenv("GRAFT_TEST_DEVICE");
  const bool cuda = asked != nullptr && std::string(asked) == "cuda";
  if (cuda && !graft::mlx::detail::on_cuda(mx::Stream(0, mx::Device::gpu))) {
    ::testing::UnitTest::GetInstance()->listeners().Append(new Missing);
  } else {
    mx::set_default_device(cuda ? mx::Device::gpu : mx::Device::cpu);
  }
  return RUN_ALL_TESTS();
}
