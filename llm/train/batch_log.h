#pragma once

#include <fstream>
#include <string>

#include "graft/llm/data/batches.h"

namespace graft::llm {

/// Writes each batch as a JSON line, {"tokens": [[...], ...], "targets": [[...], ...]}, so that
/// another program can train on the same batches in the same order.
class BatchLog {
 public:
  /// An empty path keeps no log. The first `kept` lines of a log that is there stay: those of a run
  /// that goes on. Throws UserError.
  explicit BatchLog(const std::string& path, int kept = 0);

  void write(const Batch& batch);

 private:
  std::string path_;
  std::ofstream out_;
};

}  // namespace graft::llm
