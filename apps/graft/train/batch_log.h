#pragma once

#include <fstream>
#include <string>

#include "apps/graft/data/batches.h"

namespace graft::app {

/// Writes each batch as a JSON line, {"tokens": [[...], ...], "targets": [[...], ...]}, so that
/// another program can train on the same batches in the same order.
class BatchLog {
 public:
  /// An empty path keeps no log. Throws UserError.
  explicit BatchLog(const std::string& path);

  void write(const Batch& batch);

 private:
  std::string path_;
  std::ofstream out_;
};

}  // namespace graft::app
