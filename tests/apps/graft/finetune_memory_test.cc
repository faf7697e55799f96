#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "apps/graft/commands/finetune/memory.h"
#include "graft/llm/process/memory.h"

namespace graft::app {
namespace {

constexpr std::int64_t kMb = 1'000'000;

const Remedies kRemedies{{{"--grad-checkpoint", 600 * kMb},
                          {"--batch-size 2 --grad-accumulation-steps 4 --iters 400", 500 * kMb},
                          {"--dtype bf16", 900 * kMb}},
                         300 * kMb};

TEST(Advice, NamesAllThatIsEnoughAloneInOrder) {
  EXPECT_EQ(advice(kRemedies, 700 * kMb, false),
            "it would fit with --grad-checkpoint (about 600 MB), or with --batch-size 2 "
            "--grad-accumulation-steps 4 --iters 400 (about 500 MB)");
  EXPECT_EQ(advice(kRemedies, 500 * kMb, false),
            "it would fit with --batch-size 2 --grad-accumulation-steps 4 --iters 400 (about 500 "
            "MB)");
}

TEST(Advice, NamesAllTogetherWhereNoneIsEnough) {
  const std::string all =
      "--grad-checkpoint (about 600 MB), --batch-size 2 --grad-accumulation-steps 4 --iters 400 "
      "(about 500 MB), --dtype bf16 (about 900 MB): together about 300 MB";
  EXPECT_EQ(advice(kRemedies, 400 * kMb, false), "it would fit only with all of " + all);
  EXPECT_EQ(advice(kRemedies, 200 * kMb, false),
            "it would not even fit with all of " + all + ": take a smaller model");
}

TEST(Advice, OfARunThatHasLittleLeftToChange) {
  EXPECT_EQ(advice({{}, 800 * kMb}, 700 * kMb, false), "take a smaller model");
  EXPECT_EQ(advice({{{"--grad-checkpoint", 800 * kMb}}, 800 * kMb}, 700 * kMb, true),
            "no flag that a resumed run may change makes it fit");
  EXPECT_EQ(advice({{{"--grad-checkpoint", 600 * kMb}}, 600 * kMb}, 700 * kMb, true),
            "it would fit with --grad-checkpoint (about 600 MB)");
}

TEST(ReturnMemoryAbove, GivesBackHolesOnlyPastWhatWasExpected) {
#ifndef __GLIBC__
  GTEST_SKIP() << "malloc keeps and returns memory as it likes here";
#else
  constexpr std::size_t kBlock = 100 << 10, kBlocks = 1000;
  std::vector<void*> kept;
  std::vector<void*> freed;
  for (std::size_t i = 0; i < kBlocks; ++i) {
    void* block = std::malloc(kBlock);
    ASSERT_NE(block, nullptr);
    std::memset(block, 1, kBlock);
    (i % 2 == 0 ? kept : freed).push_back(block);
  }
  for (void* block : freed) std::free(block);
  constexpr auto kHoles = static_cast<std::int64_t>(kBlock * kBlocks / 2);
  const std::int64_t grown = resident_memory_bytes();
  return_memory_above(grown);
  EXPECT_GT(resident_memory_bytes(), grown - kHoles / 10);
  return_memory_above(grown / 10 * 9);
  EXPECT_LT(resident_memory_bytes(), grown - kHoles / 10 * 8);
  for (void* block : kept) std::free(block);
#endif
}

}  // namespace
}  // namespace graft::app
