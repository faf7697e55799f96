// The MLX host's own tests once more, as on a Mac: every call goes to Metal kernels, which the
// stand-in executes.
#include <gtest/gtest.h>

#include "metal/evaluate.h"

namespace graft::standin {
namespace {

// What goes wrong in a kernel fails the test that launched it.
class FaultListener : public ::testing::EmptyTestEventListener {
 public:
  explicit FaultListener(Standin& standin) : standin_(standin) {}

  void OnTestEnd(const ::testing::TestInfo&) override {
    const std::string fault = standin_.take_fault();
    if (!fault.empty()) ADD_FAILURE() << fault;
  }

 private:
  Standin& standin_;
};

}  // namespace
}  // namespace graft::standin

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  graft::standin::Standin standin(7);
  graft::mlx::detail::set_metal_standin(&standin);
  ::testing::UnitTest::GetInstance()->listeners().Append(
      new graft::standin::FaultListener(standin));
  const int result = RUN_ALL_TESTS();
  graft::mlx::detail::set_metal_standin(nullptr);
  return result;
}
