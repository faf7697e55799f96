#include "apps/graft/commands/finetune/run_record.h"

#include <fmt/format.h>

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "apps/graft/user_error.h"
#include "graft/llm/files/atomic_file.h"
#include "graft/llm/process/memory.h"

namespace graft::app {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json metrics_of(const TrainReport& report) {
  return {{"iter", report.iteration},
          {"train_loss", report.loss},
          {"learning_rate", report.learning_rate},
          {"tokens_per_second", report.tokens_per_second},
          {"trained_tokens", report.trained_targets},
          {"peak_memory_bytes", peak_memory_bytes()}};
}

RunRecord::RunRecord(const std::string& folder, std::string title, const std::string& so_far)
    : metrics_path_((std::filesystem::path(folder) / "metrics.jsonl").string()),
      plot_path_((std::filesystem::path(folder) / "loss.svg").string()),
      title_(std::move(title)),
      text_(so_far) {
  check_writable(plot_path_);
  std::istringstream lines(so_far);
  for (std::string line; std::getline(lines, line);) take_points(line);
  write_file_atomically(metrics_path_, so_far);
  metrics_.reset(std::fopen(metrics_path_.c_str(), "a"));
  if (!metrics_) {
    throw UserError(
        fmt::format("{}: {}", metrics_path_, describe_failure("cannot open the file", errno)));
  }
}

void RunRecord::take_points(const std::string& line) {
  const json metrics = json::parse(line, nullptr, false);
  const auto take = [&](const char* key, std::vector<LossPoint>& points) {
    if (metrics.is_object() && metrics.contains(key) && metrics[key].is_number() &&
        metrics.contains("iter") && metrics["iter"].is_number_integer()) {
      points.push_back({metrics["iter"].get<int>(), metrics[key].get<double>()});
    }
  };
  take("train_loss", train_);
  take("val_loss", valid_);
}

void RunRecord::report(const TrainReport& report) {
  train_.push_back({report.iteration, report.loss});
  write_line(metrics_of(report).dump());
}

void RunRecord::validation(int iteration, double loss, double learning_rate) {
  valid_.push_back({iteration, loss});
  write_line(ordered_json{{"iter", iteration},
                          {"val_loss", loss},
                          {"learning_rate", learning_rate},
                          {"peak_memory_bytes", peak_memory_bytes()}}
                 .dump());
}

void RunRecord::write_plot() const {
  write_file_atomically(plot_path_, loss_plot_svg(train_, valid_, title_));
}

void RunRecord::write_line(const std::string& text) {
  const std::string line = text + "\n";
  if (std::fwrite(line.data(), 1, line.size(), metrics_.get()) != line.size() ||
      std::fflush(metrics_.get()) != 0) {
    throw UserError(
        fmt::format("{}: {}", metrics_path_, describe_failure("cannot write the file", errno)));
  }
  text_ += line;
}

}  // namespace graft::app
