#include "apps/graft/commands/finetune/memory.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "apps/graft/terminal/available_memory.h"
#include "apps/graft/terminal/format.h"
#include "graft/llm/data/batches.h"
#include "graft/llm/process/allocator.h"
#include "graft/llm/process/memory.h"
#include "graft/llm/train/memory_estimate.h"

namespace graft::app {
namespace {

/// What of the flags decides how much memory a run needs, and may be changed to need less.
struct Setting {
  bool grad_checkpoint = false;
  int batch_size = 0;
  std::int64_t max_seq_length = 0;
  std::string dtype;
};

Setting setting_of(const FinetuneFlags& flags) {
  return {flags.grad_checkpoint, flags.batch_size, flags.max_seq_length, flags.model.dtype};
}

class RunMemory {
 public:
  explicit RunMemory(const RunToFit& run)
      : run_(run), now_(setting_of(run.flags)), resident_(resident_memory_bytes()) {}

  const Setting& now() const { return now_; }
  std::int64_t resident() const { return resident_; }

  /// What training would add to what is resident.
  TrainingMemory training(const Setting& setting) const {
    return training_memory(run_.trainer, {train_shapes(setting), loss_shapes(setting)},
                           setting.grad_checkpoint ? Activations::kRecomputed : Activations::kKept);
  }

  /// What would be resident at the peak. Weights are there already, in the dtype that was asked
  /// for.
  std::int64_t peak(const Setting& setting) const {
    const Llama& model = run_.trainer.model();
    const std::int64_t weights = Llama::packed_bytes(
        model.config(), {.dtype = dtype_named(setting.dtype), .training = true});
    return resident_ - model.packed_bytes() + weights + training(setting).peak();
  }

 private:
  BatchOptions options(const Setting& setting) const {
    return {.batch_size = setting.batch_size, .seed = run_.flags.seed, .pad_token = run_.pad_token};
  }

  // Sizes of the batches from step `first` to before `last`, cut off at the setting's length.
  static void add_shapes(Batches batches, const Setting& setting, std::int64_t first,
                         std::int64_t last, std::set<BatchShape>& shapes) {
    last = std::min(last, first + batches.per_epoch());
    for (std::int64_t step = first; step < last; ++step) {
      BatchShape shape = batches.shape_at(step);
      shape.length = std::min(shape.length, setting.max_seq_length);
      shapes.insert(shape);
    }
  }

  std::set<BatchShape> train_shapes(const Setting& setting) const {
    std::set<BatchShape> shapes;
    // Of an epoch that begins within the run every batch may be the largest. Smaller batches come
    // the more often.
    const std::int64_t parts = now_.batch_size / setting.batch_size;
    add_shapes(Batches(run_.data.train.samples, options(setting)), setting,
               run_.trainer.iteration(), parts * run_.flags.loop.iters, shapes);
    return shapes;
  }

  // Of validation, and of the test.
  std::set<BatchShape> loss_shapes(const Setting& setting) const {
    std::set<BatchShape> shapes;
    const auto add = [&](const std::optional<Dataset>& split, int max_batches) {
      if (!split) return;
      Batches batches(split->samples, options(setting));
      const std::int64_t count = max_batches < 0 ? batches.per_epoch() : max_batches;
      add_shapes(std::move(batches), setting, 0, count, shapes);
    };
    add(run_.data.valid, run_.flags.val_batches);
    if (run_.flags.test) add(run_.data.test, run_.flags.test_batches);
    return shapes;
  }

  const RunToFit& run_;
  const Setting now_;
  const std::int64_t resident_;
};

// The flags to add to get from one setting to the other. Smaller batches that are parts of a whole
// one make the same updates, if so many more of them are taken together.
std::string flags_between(const Setting& from, const Setting& to, const FinetuneFlags& given) {
  std::string flags;
  if (to.grad_checkpoint != from.grad_checkpoint) flags += " --grad-checkpoint";
  if (to.batch_size != from.batch_size) {
    const std::int64_t parts = from.batch_size / to.batch_size;
    flags += fmt::format(" --batch-size {} --grad-accumulation-steps {} --iters {}", to.batch_size,
                         parts * given.grad_accumulation_steps, parts * given.loop.iters);
  }
  if (to.dtype != from.dtype) flags += " --dtype " + to.dtype;
  if (to.max_seq_length != from.max_seq_length) {
    flags += fmt::format(" --max-seq-length {}", to.max_seq_length);
  }
  return flags.substr(1);
}

// The largest part of a batch that divides it comes first: so many of them make the same update.
std::vector<int> smaller_batches(int batch_size) {
  std::vector<int> sizes;
  for (int size = batch_size / 2; size >= 1; --size) {
    if (batch_size % size == 0) sizes.push_back(size);
  }
  return sizes;
}

std::vector<std::int64_t> shorter_lengths(std::int64_t length) {
  constexpr std::int64_t kShortest = 64;
  std::vector<std::int64_t> lengths;
  for (std::int64_t half = 1; half * 2 < length; half *= 2) {
    if (half >= kShortest) lengths.insert(lengths.begin(), half);
  }
  return lengths;
}

// First what leaves the losses as they are. Of smaller batches and shorter lengths, the first that
// fits, or else the smallest.
Remedies remedies_of(const RunMemory& memory, std::int64_t most, const FinetuneFlags& flags) {
  Remedies remedies;
  Setting all = memory.now();
  const auto try_values = [&](auto Setting::*member, const auto& values) {
    std::optional<Remedy> best;
    for (const auto& value : values) {
      Setting setting = memory.now();
      setting.*member = value;
      all.*member = value;
      best = {flags_between(memory.now(), setting, flags), memory.peak(setting)};
      if (best->peak <= most) break;
    }
    if (best) remedies.each.push_back(*best);
  };
  if (!all.grad_checkpoint) try_values(&Setting::grad_checkpoint, std::array{true});
  // A resumed run has to go on with the losses that it had.
  if (!flags.resume) {
    try_values(&Setting::batch_size, smaller_batches(all.batch_size));
    if (all.dtype != "bf16") try_values(&Setting::dtype, std::array<std::string, 1>{"bf16"});
    try_values(&Setting::max_seq_length, shorter_lengths(all.max_seq_length));
  }
  remedies.together = memory.peak(all);
  return remedies;
}

}  // namespace

void return_memory_above(std::int64_t expected) {
  // So that a run that stays near its estimate, as with batches of one shape, never pays for it.
  constexpr std::int64_t kTolerated = 20;  // a part of so many
  if (resident_memory_bytes() > expected + expected / kTolerated) return_freed_memory();
}

std::string advice(const Remedies& remedies, std::int64_t most, bool resume) {
  std::vector<std::string> enough, all;
  for (const Remedy& remedy : remedies.each) {
    all.push_back(fmt::format("{} (about {})", remedy.flags, format_bytes(remedy.peak)));
    if (remedy.peak <= most) enough.push_back(all.back());
  }
  if (!enough.empty()) return fmt::format("it would fit with {}", fmt::join(enough, ", or with "));
  if (resume) return "no flag that a resumed run may change makes it fit";
  const std::string together =
      fmt::format("{}: together about {}", fmt::join(all, ", "), format_bytes(remedies.together));
  if (remedies.together <= most) return "it would fit only with all of " + together;
  return all.empty() ? "take a smaller model"
                     : "it would not even fit with all of " + together + ": take a smaller model";
}

std::int64_t check_memory(const RunToFit& run) {
  return_freed_memory();
  const RunMemory memory(run);
  const TrainingMemory training = memory.training(memory.now());
  const std::int64_t peak = memory.resident() + training.peak();
  const AvailableMemory available = available_memory();
  const std::int64_t most = memory.resident() + available.bytes;
  if (peak <= most) {
    bound_run_ahead(training.bound);
    return std::max(peak, peak_memory_bytes());
  }
  // Flags to take instead should fit with room for what the estimate may be wrong by.
  const std::int64_t surely = memory.resident() + available.bytes / 10 * 9;
  const Remedies remedies = remedies_of(memory, surely, run.flags);
  throw UserError(fmt::format("training needs about {} of memory and {} leaves it {}; {}",
                              format_bytes(peak), available.limit, format_bytes(most),
                              advice(remedies, surely, run.flags.resume)));
}

}  // namespace graft::app
