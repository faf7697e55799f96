#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "apps/graft/terminal/loss_plot.h"
#include "apps/graft/train/loop.h"

namespace graft::app {

/// What a run leaves behind besides the adapter: `metrics.jsonl`, one JSON object a report, written
/// as it happens, and `loss.svg`.
class RunRecord {
 public:
  /// Starts the files anew in `folder`, which must exist. Throws UserError, as all members do.
  RunRecord(const std::string& folder, std::string title);

  void report(const TrainReport& report);
  void validation(int iteration, double loss, double learning_rate);
  void write_plot() const;

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  void write_line(const std::string& text);

  std::string metrics_path_;
  std::string plot_path_;
  std::string title_;
  std::unique_ptr<std::FILE, Close> metrics_;
  std::vector<LossPoint> train_;
  std::vector<LossPoint> valid_;
};

}  // namespace graft::app
