#include "graft/capabilities.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

namespace graft {
namespace {

const char* const kOps[] = {"attention",  "layer_norm",  "linear",   "linear_cross_entropy",
                            "lora_delta", "lora_linear", "rms_norm", "rope",
                            "softmax",    "swiglu"};

TEST(Capabilities, AskForEveryOperationBothWaysInThreeTypes) {
  std::map<std::string, int> asked;
  for (const Capability& capability : capabilities({})) ++asked[capability.op];
  EXPECT_EQ(asked.size(), std::size(kOps));
  for (const char* op : kOps) EXPECT_EQ(asked[op], 6) << op;
}

TEST(Capabilities, TheCpuTakesFloat32AndBFloat16) {
  for (const Capability& capability : capabilities({})) {
    const std::string op = capability.op;
    const bool expected =
        capability.dtype != DType::kFloat16 && op != "softmax" && op != "layer_norm";
    EXPECT_EQ(capability.support.yes, expected) << op << ": " << capability.support.reason;
    EXPECT_EQ(capability.support.reason.empty(), expected) << op;
  }
}

TEST(Capabilities, ABackEndThatIsNotBuiltSaysSo) {
  for (const Capability& capability : capabilities({DeviceType::kCuda, 0})) {
    EXPECT_EQ(capability.support.reason, "this build has no CUDA kernels") << capability.op;
  }
}

}  // namespace
}  // namespace graft
