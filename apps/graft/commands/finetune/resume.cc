#include "apps/graft/commands/finetune/resume.h"

#include <fmt/format.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/graft/terminal/tell.h"
#include "apps/graft/user_error.h"
#include "graft/context.h"
#include "graft/llm/data/fingerprint.h"
#include "graft/lora.h"
#include "graft/version.h"

namespace graft::app {
namespace {

// Says which checkpoints are passed over, and adds them to `damaged`.
std::optional<FoundCheckpoint> find_checkpoint(const std::string& folder,
                                               std::vector<std::string>& damaged) {
  std::optional<FoundCheckpoint> found = last_checkpoint(folder, damaged);
  for (const std::string& line : damaged) warn(line);
  return found;
}

std::string machine_name() {
  const char* fused = std::getenv("GRAFT_FUSED");
  return fmt::format("graft {}, {}{}", kVersion, cpu_isa(),
                     fused != nullptr && std::string_view(fused) == "0" ? ", unfused" : "");
}

void check_same(const char* flag, const std::string& path, const char* what, const std::string& now,
                const std::string& before) {
  if (now == before) return;
  const auto shown = [](const std::string& text) { return text.empty() ? "none" : text; };
  throw UserError(fmt::format(
      "{} {}: the {} changed since the checkpoint was written (fingerprint {}, then {}); give the "
      "same again, or start anew with another --adapter-path",
      flag, path, what, shown(now), shown(before)));
}

}  // namespace

FoundCheckpoint checkpoint_to_resume(FinetuneFlags& flags) {
  std::vector<std::string> damaged;
  std::optional<FoundCheckpoint> found = find_checkpoint(flags.adapter_path, damaged);
  if (!found) {
    throw UserError(
        fmt::format("{}: there is no whole checkpoint to go on from; start anew without --resume",
                    flags.adapter_path));
  }
  if (flags.given.contains("--threads")) {
    use_threads(flags.model.threads);
    flags.model.threads = num_threads();  // 0 asks for every core
  }
  take_saved_flags(flags, found->checkpoint.flags, found->path);
  return *std::move(found);
}

void refuse_interrupted_run(const FinetuneFlags& flags) {
  std::vector<std::string> damaged;
  const std::optional<FoundCheckpoint> found = find_checkpoint(flags.adapter_path, damaged);
  if (!found && !damaged.empty()) {
    throw UserError(fmt::format(
        "{}: a run is here of which no checkpoint can be read: choose another --adapter-path, or "
        "remove {}",
        flags.adapter_path, checkpoints_folder(flags.adapter_path)));
  }
  if (!found) return;
  const int done = found->checkpoint.trainer.iteration;
  FinetuneFlags saved;
  try {
    take_saved_flags(saved, found->checkpoint.flags, found->path);
  } catch (const UserError& error) {
    throw UserError(fmt::format(
        "{}; another version's run is there: choose another --adapter-path, or remove {}",
        error.what(), checkpoints_folder(flags.adapter_path)));
  }
  const int iters = saved.loop.iters;
  if (done >= iters || stops_early(found->checkpoint.loop, saved.loop)) return;
  throw UserError(
      fmt::format("{}: a run was interrupted here after iteration {} of {}; go on with --resume, "
                  "choose another "
                  "--adapter-path, or remove {}",
                  flags.adapter_path, done, iters, checkpoints_folder(flags.adapter_path)));
}

RunInputs inputs_of(const std::string& model, const DataSplits& data) {
  return {.model = model,
          .train = fingerprint_of(data.train.samples),
          .valid = data.valid ? fingerprint_of(data.valid->samples) : "",
          .machine = machine_name()};
}

void check_same_inputs(const FinetuneFlags& flags, const RunInputs& now, const RunInputs& before) {
  check_same("--model", flags.model.model, "model", now.model, before.model);
  check_same("--data", flags.data, "training samples", now.train, before.train);
  check_same("--data", flags.data, "validation samples", now.valid, before.valid);
  if (now.machine != before.machine) {
    warn(
        fmt::format("the checkpoint is from {}, this is {}: losses may differ in their last "
                    "digits from those of an unbroken run",
                    before.machine, now.machine));
  }
}

}  // namespace graft::app
