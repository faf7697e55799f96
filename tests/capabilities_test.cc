#include "graft/capabilities.h"

#include <gtest/gtest.h>

#include <iterator>
#include <map>
#include <set>
#include <string>

namespace graft {
namespace {

const char* const kOps[] = {"attention",  "layer_norm",    "linear",      "linear_cross_entropy",
                            "lora_delta", "lora_siblings", "lora_linear", "rms_norm",
                            "rope",       "softmax",       "swiglu"};

TEST(Capabilities, AskForEveryOperationBothWaysInThreeTypes) {
  std::map<std::string, int> asked;
  for (const Capability& capability : capabilities({})) ++asked[capability.op];
  EXPECT_EQ(asked.size(), std::size(kOps));
  for (const char* op : kOps) EXPECT_EQ(asked[op], 6) << op;
}

TEST(Capabilities, TheCpuTakesFloat32AndBFloat16) {
  for (const Capability& capability : capabilities({})) {
    const std::string op = capability.op;
    const bool expected = capability.dtype != DType::kFloat16;
    EXPECT_EQ(capability.support.yes, expected) << op << ": " << capability.support.reason;
    EXPECT_EQ(capability.support.reason.empty(), expected) << op;
  }
}

TEST(Capabilities, MetalHasKernelsForSomeInAllThreeTypes) {
  const std::set<std::string> some{"layer_norm",  "linear",   "lora_delta",
                                   "lora_linear", "rms_norm", "softmax"};
  for (const Capability& capability : capabilities({DeviceType::kMetal, 0})) {
    EXPECT_EQ(capability.support.yes, some.count(capability.op) == 1)
        << capability.op << " in " << name_of(capability.dtype) << ": "
        << capability.support.reason;
  }
}

#if !GRAFT_CUDA
TEST(Capabilities, ABackEndThatIsNotBuiltSaysSo) {
  for (const Capability& capability : capabilities({DeviceType::kCuda, 0})) {
    EXPECT_EQ(capability.support.reason, "this build has no CUDA kernels") << capability.op;
  }
}
#endif

}  // namespace
}  // namespace graft
