// The words that text is split into, where no vocabulary can hide a wrong one.

#include "graft/llm/tokenizer/pre_tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace graft::llm {
namespace {

std::vector<std::string> words(std::string_view text) {
  std::vector<std::string> list;
  split_smollm(text, [&](std::string_view word) { list.emplace_back(word); });
  return list;
}

TEST(PreTokenizer, DigitsStandAlone) {
  EXPECT_EQ(words("x12y"), (std::vector<std::string>{"x", "1", "2", "y"}));
  EXPECT_EQ(words("2026"), (std::vector<std::string>{"2", "0", "2", "6"}));
}

TEST(PreTokenizer, WordsTakeOneBlankBeforeThem) {
  EXPECT_EQ(words("say  it, now"), (std::vector<std::string>{"say", " ", " it", ",", " now"}));
  EXPECT_EQ(words("we'll go"), (std::vector<std::string>{"we", "'ll", " go"}));
}

}  // namespace
}  // namespace graft::llm
