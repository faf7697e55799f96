#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "graft/export.h"

namespace graft::llm {

/// Ends a text where one of some strings would begin. A part of such a string is held back until it
/// is clear that it does not become one, so that none of it is ever shown. What comes out depends
/// on the text alone, not on how it is cut into pieces.
class GRAFT_EXPORT StopStrings {
 public:
  /// Throws UserError if one of them is empty.
  explicit StopStrings(std::vector<std::string> stops);

  /// The text that is now certain to come before any stop string; nothing once one was found.
  std::string push(std::string_view piece);
  /// What was held back, at the end of a text.
  std::string finish();

  bool found() const { return found_; }

 private:
  std::size_t undecided() const;

  std::vector<std::string> stops_;
  std::string held_;
  bool found_ = false;
};

}  // namespace graft::llm
