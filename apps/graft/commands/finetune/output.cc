#include "apps/graft/commands/finetune/output.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "apps/graft/commands/finetune/run_record.h"
#include "apps/graft/commands/finetune/training_display.h"
#include "apps/graft/terminal/format.h"
#include "apps/graft/terminal/tell.h"
#include "apps/graft/terminal/wrap.h"
#include "apps/graft/user_error.h"
#include "graft/context.h"
#include "graft/llm/files/json_text.h"
#include "graft/llm/process/memory.h"
#include "graft/lora.h"

namespace graft::app {
namespace {

using nlohmann::ordered_json;

std::vector<std::string_view> target_names(const AdapterLayout& layout) {
  std::vector<std::string_view> names;
  for (const Projection projection : layout.options().targets) names.push_back(name_of(projection));
  return names;
}

int num_layers(const RunFacts& facts) {
  return facts.layout.all_layers() ? facts.model.num_layers
                                   : static_cast<int>(facts.layout.options().layers.size());
}

const std::string& model_name(const RunFacts& facts, const FinetuneFlags& flags) {
  return facts.model.name.empty() ? flags.model.model : facts.model.name;
}

class TextOutput : public RunOutput {
 public:
  explicit TextOutput(const FinetuneFlags& flags) : flags_(flags), display_(flags.loop.iters) {}

  void start(const RunFacts& facts) override {
    const AdapterOptions& adapter = facts.layout.options();
    entry("model", fmt::format("{}, weights in {}, on {} threads ({})", model_name(facts, flags_),
                               flags_.model.dtype, num_threads(), cpu_isa()));
    entry("adapter", fmt::format("rank {}, alpha {}, on {} of {} layers: {}", adapter.rank,
                                 adapter.alpha, num_layers(facts), facts.model.num_layers,
                                 fmt::join(target_names(facts.layout), " ")));
    entry("trainable", fmt::format("{} parameters", format_count(facts.layout.num_parameters())));
    data("train", facts.data.train, facts.max_seq_length);
    if (facts.data.valid) data("valid", *facts.data.valid, facts.max_seq_length);
    if (flags_.test) data("test", *facts.data.test, facts.max_seq_length);
  }

  void memory(std::int64_t bytes) override {
    entry("memory", fmt::format("about {} at the peak", format_bytes(bytes)));
  }

  void resumed(int iteration, const std::string& path) override {
    entry("resumed",
          fmt::format("after iteration {} of {}, from {}", iteration, flags_.loop.iters, path));
  }

  void note(const std::string& text) override { entry("note", text); }

  void step(int iteration, double loss, double rate, double left) override {
    display_.step(iteration, loss, rate, left);
  }
  void report(const TrainReport& report) override { display_.report(report); }
  void validation(int iteration, double loss) override { display_.validation(iteration, loss); }

  void test(const MeanLoss& mean) override {
    display_.finish();
    tell("test loss {:.4f} over {} tokens, perplexity {:.3f}\n", mean.loss,
         format_count(mean.targets), mean.perplexity());
  }

  void end(const RunOutcome& outcome) override {
    display_.finish();
    if (outcome.end == RunEnd::kInterrupted) return;  // an error says it
    if (outcome.end == RunEnd::kStoppedEarly) {
      tell("stopped early after iteration {} of {}: no better validation in {}\n",
           outcome.iteration, flags_.loop.iters, outcome.best.validations_since);
    }
    if (flags_.loop.early_stop > 0 && outcome.best.iteration > 0) {
      tell("the adapter is that of iteration {}, the best: validation loss {:.4f}\n",
           outcome.best.iteration, outcome.best.loss);
    }
    tell("saved to {}, peak memory {}\n", flags_.adapter_path, format_bytes(peak_memory_bytes()));
    if (!outcome.trained) return;
    tell("\n{}adapted projections that ran fused, forward and backward: {} of {}\n",
         outcome.fusion.table,
         outcome.modules - static_cast<std::int64_t>(outcome.fusion.unfused_modules.size()),
         outcome.modules);
  }

 private:
  // On a terminal, what does not fit beside the name goes on below itself.
  static void entry(const char* name, const std::string& text) {
    constexpr int kColumn = 12;
    const int width = stdout_is_terminal() ? terminal_width() : std::numeric_limits<int>::max();
    tell("{:<{}}{}\n", name, kColumn, wrapped(text, width, kColumn));
  }

  static void data(const char* name, const Dataset& data, std::int64_t max_seq_length) {
    entry(name, fmt::format("{} samples, {} tokens to train on",
                            format_count(static_cast<std::int64_t>(data.samples.size())),
                            format_count(data.num_targets())));
    if (!data.left_out.empty()) entry("", left_out_text(data));
    if (data.truncated == 0) return;
    entry("", fmt::format("{} samples cut off at {} tokens, the first in line {}, the longest had "
                          "{} (--max-seq-length)",
                          format_count(data.truncated), max_seq_length, data.first_truncated_line,
                          format_count(data.longest)));
  }

  const FinetuneFlags& flags_;
  TrainingDisplay display_;
};

class JsonOutput : public RunOutput {
 public:
  explicit JsonOutput(const FinetuneFlags& flags) : flags_(flags) {}

  void start(const RunFacts& facts) override {
    const AdapterOptions& adapter = facts.layout.options();
    ordered_json line = {{"model", model_name(facts, flags_)},
                         {"dtype", flags_.model.dtype},
                         {"threads", num_threads()},
                         {"isa", cpu_isa()},
                         {"rank", adapter.rank},
                         {"alpha", adapter.alpha},
                         {"layers", num_layers(facts)},
                         {"target_modules", target_names(facts.layout)},
                         {"trainable_parameters", facts.layout.num_parameters()},
                         {"iters", flags_.loop.iters},
                         {"train", data(facts.data.train)}};
    if (facts.data.valid) line["valid"] = data(*facts.data.valid);
    if (flags_.test) line["test"] = data(*facts.data.test);
    print("start", std::move(line));
  }

  void memory(std::int64_t bytes) override { print("memory", {{"peak_memory_bytes", bytes}}); }
  void resumed(int iteration, const std::string& path) override {
    print("resumed", {{"iter", iteration}, {"path", path}});
  }
  void note(const std::string& text) override { print("note", {{"text", text}}); }
  void report(const TrainReport& report) override { print("train", metrics_of(report)); }
  void validation(int iteration, double loss) override {
    print("validation", {{"iter", iteration}, {"val_loss", loss}});
  }
  void saved(int iteration, const std::string& path) override {
    print("saved", {{"iter", iteration}, {"path", path}});
  }
  void test(const MeanLoss& mean) override {
    print("test",
          {{"test_loss", mean.loss}, {"perplexity", mean.perplexity()}, {"tokens", mean.targets}});
  }

  void end(const RunOutcome& outcome) override {
    ordered_json line = {{"reason", name_of(outcome.end)},
                         {"iter", outcome.iteration},
                         {"adapter_path", flags_.adapter_path},
                         {"peak_memory_bytes", peak_memory_bytes()}};
    if (outcome.best.iteration > 0) {
      line["best"] = {{"iter", outcome.best.iteration}, {"val_loss", outcome.best.loss}};
    }
    if (outcome.trained) {
      line["adapted_modules"] = outcome.modules;
      line["unfused_modules"] = outcome.fusion.unfused_modules;
    }
    print("end", std::move(line));
  }

 private:
  static ordered_json data(const Dataset& data) {
    ordered_json facts = {{"samples", data.samples.size()}, {"tokens", data.num_targets()}};
    facts.update(what_is_missing(data));
    return facts;
  }

  static const char* name_of(RunEnd end) {
    switch (end) {
      case RunEnd::kStoppedEarly:
        return "stopped early";
      case RunEnd::kInterrupted:
        return "interrupted";
      case RunEnd::kFinished:
        break;
    }
    return "finished";
  }

  static void print(const char* event, const ordered_json& facts) {
    ordered_json line = {{"event", event}};
    line.update(facts);
    tell("{}\n", lossy_json_text(line));
    std::fflush(stdout);  // whoever reads it may be waiting
  }

  const FinetuneFlags& flags_;
};

}  // namespace

void RunOutput::start(const RunFacts& facts) {
  const auto warn_of = [](const Dataset& data) {
    if (!data.left_out.empty()) warn(fmt::format("{}: {}", data.path, left_out_text(data)));
  };
  warn_of(facts.data.train);
  if (facts.data.valid) warn_of(*facts.data.valid);
  if (facts.data.test) warn_of(*facts.data.test);
}

std::unique_ptr<RunOutput> make_run_output(const FinetuneFlags& flags) {
  if (flags.json) return std::make_unique<JsonOutput>(flags);
  if (flags.quiet) return std::make_unique<RunOutput>();
  return std::make_unique<TextOutput>(flags);
}

}  // namespace graft::app
