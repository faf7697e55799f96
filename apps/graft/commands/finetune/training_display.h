#pragma once

#include <chrono>
#include <string>

#include "apps/graft/user_error.h"
#include "graft/llm/train/loop.h"

namespace graft::app {

/// Shows how training goes: a bar that redraws itself on a terminal, a plain line a report
/// elsewhere.
class TrainingDisplay {
 public:
  explicit TrainingDisplay(int iters);
  ~TrainingDisplay();
  TrainingDisplay(const TrainingDisplay&) = delete;
  TrainingDisplay& operator=(const TrainingDisplay&) = delete;

  void step(int iteration, double loss, double tokens_per_second, double seconds_left);
  void report(const TrainReport& report);
  void validation(int iteration, double loss);
  void finish();  ///< Takes the bar away.

 private:
  void line(const std::string& text);
  void draw();

  int iters_;
  bool interactive_;
  bool utf8_;
  bool drawn_ = false;
  int iteration_ = 0;
  double smooth_loss_ = 0.0;
  double tokens_per_second_ = 0.0;
  double seconds_left_ = 0.0;
  std::chrono::steady_clock::time_point last_draw_;
};

}  // namespace graft::app
