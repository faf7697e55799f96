#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "apps/graft/commands/finetune/flags.h"
#include "apps/graft/commands/finetune/fusion_table.h"
#include "apps/graft/user_error.h"
#include "graft/llm/data/dataset.h"
#include "graft/llm/evaluate/mean_loss.h"
#include "graft/llm/model/adapter_layout.h"
#include "graft/llm/model/llama_config.h"
#include "graft/llm/train/loop.h"

namespace graft::app {

/// What is known before the first iteration.
struct RunFacts {
  const LlamaConfig& model;
  const AdapterLayout& layout;
  const DataSplits& data;
  std::int64_t max_seq_length = 0;
};

/// What is known after the last.
struct RunOutcome {
  RunEnd end = RunEnd::kFinished;
  int iteration = 0;         ///< Iterations done.
  BestValidation best;       ///< Whose adapter is the one saved, with --early-stop.
  bool trained = true;       ///< Or there was nothing left to do.
  std::int64_t modules = 0;  ///< That are adapted.
  FusionSummary fusion;
};

/// What a run says on standard output as it goes along. This one says nothing there, and on
/// standard error only what a user must not miss: --quiet.
class RunOutput {
 public:
  virtual ~RunOutput() = default;

  virtual void start(const RunFacts& facts);
  virtual void memory(std::int64_t) {}  ///< Bytes that the run will need at its peak, about.
  virtual void resumed(int, const std::string&) {}   ///< After which iteration, and from where.
  virtual void note(const std::string&) {}           ///< What the user may not expect.
  virtual void step(int, double, double, double) {}  ///< As LoopObserver::on_step.
  virtual void report(const TrainReport&) {}
  virtual void validation(int, double) {}
  virtual void saved(int, const std::string&) {}  ///< The iteration, and its checkpoint.
  virtual void test(const MeanLoss&) {}
  virtual void end(const RunOutcome&) {}
};

/// Lines for people, with a bar that redraws itself on a terminal; or as --quiet or --json say,
/// which is one JSON object a line: {"event": "start", ...}. `flags` must outlive it.
std::unique_ptr<RunOutput> make_run_output(const FinetuneFlags& flags);

}  // namespace graft::app
