#pragma once

#include <string>

namespace graft::llm::testing {

/// While one lives, what the program has the system put on disk (fsync) is noted.
class NotedSyncs {
 public:
  NotedSyncs();
  ~NotedSyncs();
  NotedSyncs(const NotedSyncs&) = delete;
  NotedSyncs& operator=(const NotedSyncs&) = delete;

  /// Whether this file or folder was, under whatever name it then had.
  bool has(const std::string& path) const;
};

}  // namespace graft::llm::testing
