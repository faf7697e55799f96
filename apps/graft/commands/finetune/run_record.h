#pragma once

#include <cstdio>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "apps/graft/terminal/loss_plot.h"
#include "apps/graft/user_error.h"
#include "graft/llm/train/loop.h"

namespace graft::app {

/// A report as a line of metrics.jsonl has it.
nlohmann::ordered_json metrics_of(const TrainReport& report);

/// What a run leaves behind besides the adapter: `metrics.jsonl`, one JSON object a report, written
/// as it happens, and `loss.svg`.
class RunRecord {
 public:
  /// Starts the files in `folder`, which must exist: anew, or after the lines of a run that goes
  /// on. Throws UserError, as all members do.
  RunRecord(const std::string& folder, std::string title, const std::string& so_far = "");

  void report(const TrainReport& report);
  void validation(int iteration, double loss, double learning_rate);
  void write_plot() const;
  const std::string& metrics() const { return text_; }  ///< What metrics.jsonl holds.

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  void take_points(const std::string& line);
  void write_line(const std::string& text);

  std::string metrics_path_;
  std::string plot_path_;
  std::string title_;
  std::string text_;
  std::unique_ptr<std::FILE, Close> metrics_;
  std::vector<LossPoint> train_;
  std::vector<LossPoint> valid_;
};

}  // namespace graft::app
