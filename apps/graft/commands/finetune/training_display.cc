#include "apps/graft/commands/finetune/training_display.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "apps/graft/terminal/format.h"
#include "apps/graft/terminal/tell.h"
#include "apps/graft/user_error.h"
#include "graft/llm/process/memory.h"

namespace graft::app {
namespace {

constexpr auto kRedrawEvery = std::chrono::milliseconds(100);
constexpr const char* kEraseLine = "\r\x1b[2K";

std::string bar(double done, int width, bool utf8) {
  const int filled = std::clamp(static_cast<int>(done * width + 0.5), 0, width);
  std::string out;
  for (int i = 0; i < width; ++i) {
    out += i < filled ? (utf8 ? "━" : "#") : (utf8 ? "┄" : "-");
  }
  return out;
}

// As many facts, from the first on, as a line takes: one that breaks could not be redrawn.
std::string as_fits(const std::vector<std::string>& facts, int width) {
  std::string line;
  for (const std::string& fact : facts) {
    const std::string gap = line.empty() ? "" : "  ";
    if (static_cast<int>(line.size() + gap.size() + fact.size()) > width) break;
    line += gap + fact;
  }
  return line;
}

}  // namespace

TrainingDisplay::TrainingDisplay(int iters)
    : iters_(iters), interactive_(stdout_is_terminal()), utf8_(terminal_is_utf8()) {}

TrainingDisplay::~TrainingDisplay() { finish(); }

void TrainingDisplay::step(int iteration, double loss, double tokens_per_second,
                           double seconds_left) {
  // An average over about the last ten steps: single batches jump about.
  smooth_loss_ = iteration_ == 0 ? loss : smooth_loss_ + 0.1 * (loss - smooth_loss_);
  iteration_ = iteration;
  tokens_per_second_ = tokens_per_second;
  seconds_left_ = seconds_left;
  if (!interactive_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_draw_ < kRedrawEvery && iteration != iters_) return;
  last_draw_ = now;
  draw();
}

void TrainingDisplay::report(const TrainReport& report) {
  if (interactive_) return;  // the bar says it all
  line(fmt::format(
      "iter {:>{}}/{}  train loss {:.4f}  rate {:.2e}  {:.0f} tokens/s  {} left  peak {}",
      report.iteration, std::to_string(iters_).size(), iters_, report.loss, report.learning_rate,
      report.tokens_per_second, format_seconds(seconds_left_), format_bytes(peak_memory_bytes())));
}

void TrainingDisplay::validation(int iteration, double loss) {
  line(fmt::format("iter {:>{}}/{}  validation loss {:.4f}", iteration,
                   std::to_string(iters_).size(), iters_, loss));
  if (interactive_ && iteration_ > 0) draw();
}

void TrainingDisplay::line(const std::string& text) {
  finish();
  tell("{}\n", text);
  std::fflush(stdout);
}

void TrainingDisplay::draw() {
  const int width = terminal_width() - 1;  // a full line would make some terminals begin another
  const std::string line = as_fits(
      {fmt::format("{}/{}", iteration_, iters_), fmt::format("loss {:.3f}", smooth_loss_),
       format_seconds(seconds_left_) + " left", fmt::format("{:.0f} tokens/s", tokens_per_second_),
       "peak " + format_bytes(peak_memory_bytes())},
      width);
  const int room = std::min(40, width - static_cast<int>(line.size()) - 2);
  const double done = static_cast<double>(iteration_) / std::max(1, iters_);
  tell("{}{}{}", kEraseLine, room >= 8 ? bar(done, room, utf8_) + "  " : "", line);
  std::fflush(stdout);
  drawn_ = true;
}

void TrainingDisplay::finish() {
  if (!drawn_) return;
  tell("{}", kEraseLine);
  std::fflush(stdout);
  drawn_ = false;
}

}  // namespace graft::app
