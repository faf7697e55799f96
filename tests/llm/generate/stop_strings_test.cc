#include "graft/llm/generate/stop_strings.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

// The text that is shown, pushed in pieces of `size` bytes, and whether a stop string ended it.
std::pair<std::string, bool> shown(const std::string& text, const std::vector<std::string>& stops,
                                   std::size_t size) {
  StopStrings filter(stops);
  std::string out;
  for (std::size_t at = 0; at < text.size(); at += size) {
    out += filter.push(text.substr(at, size));
    // Nothing shown is ever taken back, and no stop string is among it.
    for (const std::string& stop : stops) EXPECT_EQ(out.find(stop), std::string::npos);
  }
  out += filter.finish();
  return {out, filter.found()};
}

TEST(StopStrings, CutsBeforeTheFirstHoweverTheTextComesInPieces) {
  const std::vector<std::string> stops = {"END", "\n\n", "é!"};
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"one END two", "one "},   {"END", ""},  {"EENDD", "E"},
      {"a\nb\n\nc", "a\nb"},     {"EN", "EN"}, {"ENEN EN", "ENEN EN"},
      {"cafés é! no", "cafés "}, {"", ""},     {"a\n\nEND", "a"},
      {"x END END", "x "},
  };
  for (const auto& [text, expected] : cases) {
    for (std::size_t size = 1; size <= text.size() + 1; ++size) {
      EXPECT_EQ(shown(text, stops, size).first, expected) << text << " by " << size;
      EXPECT_EQ(shown(text, stops, size).second, expected != text) << text << " by " << size;
    }
  }
}

TEST(StopStrings, StopsThatShareTheirLettersDoNotDependOnThePieces) {
  // Whichever is complete first ends the text; of two at once, the one that began first.
  for (std::size_t size = 1; size <= 8; ++size) {
    EXPECT_EQ(shown("xabcd", {"abcd", "bc"}, size).first, "xa") << size;
    EXPECT_EQ(shown("xabc", {"c", "abc"}, size).first, "x") << size;
    EXPECT_EQ(shown("aabaabaaac", {"aabaaa"}, size).first, "aab") << size;
    EXPECT_EQ(shown("aaaaab", {"aaab"}, size).first, "aa") << size;
  }
}

TEST(StopStrings, HoldsBackOnlyWhatMayBecomeOne) {
  StopStrings filter({"###"});
  EXPECT_EQ(filter.push("a#"), "a");
  EXPECT_EQ(filter.push("#"), "");
  EXPECT_EQ(filter.push("b"), "##b");
  EXPECT_EQ(filter.push("##"), "");
  EXPECT_EQ(filter.finish(), "##");
  EXPECT_FALSE(filter.found());
}

TEST(StopStrings, WithoutAnyAllComesThrough) {
  StopStrings filter({});
  EXPECT_EQ(filter.push("text"), "text");
  EXPECT_EQ(filter.finish(), "");
  EXPECT_THROW(StopStrings({"a", ""}), UserError);
}

}  // namespace
}  // namespace graft::llm
