#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "apps/graft/commands/finetune/memory.h"
#include "graft/llm/process/memory.h"

namespace graft::app {
namespace {

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
