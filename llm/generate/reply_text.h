#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "graft/llm/generate/stop_strings.h"
#include "graft/llm/tokenizer/tokenizer.h"

namespace graft::llm {

/// A reply as text, from its tokens as they come: whole characters, and nothing of a stop string.
class ReplyText {
 public:
  ReplyText(const Tokenizer& tokenizer, std::vector<std::string> stops)
      : characters_(tokenizer), stops_(std::move(stops)) {}

  /// The text to show now; may be empty.
  std::string push(std::int32_t token) { return keep(stops_.push(characters_.push(token))); }
  /// The rest of it, once there are no more tokens.
  std::string finish() {
    std::string rest = stops_.push(characters_.finish());
    return keep(rest + stops_.finish());
  }

  bool stopped() const { return stops_.found(); }
  const std::string& text() const { return text_; }  ///< All that was shown.

 private:
  std::string keep(std::string piece) {
    text_ += piece;
    return piece;
  }

  TextStream characters_;
  StopStrings stops_;
  std::string text_;
};

}  // namespace graft::llm
