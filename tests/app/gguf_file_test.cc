#include "apps/graft/model/gguf_file.h"

#include <gtest/gtest.h>

#include "tests/app/gguf_builder.h"

namespace graft::app {
namespace {
TEST(GgufFile, ReadsATensor) {
  testing::GgufBuilder builder;
  builder.tensor("a.weight", {64, 3}, 0, 0).data(64 * 3 * 4);
  const GgufFile file = builder.parse();
  ASSERT_EQ(file.tensors().size(), 1u);
  EXPECT_EQ(file.tensors()[0].shape, (std::vector<std::int64_t>{3, 64}));
}
}  // namespace
}  // namespace graft::app
