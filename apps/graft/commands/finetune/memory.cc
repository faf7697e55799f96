#include "apps/graft/commands/finetune/memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "apps/graft/terminal/available_memory.h"
#include "apps/graft/terminal/format.h"
#include "apps/graft/user_error.h"
#include "graft/context.h"
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

struct Need {
  std::int64_t peak = 0;  ///< What would be resident at the peak of training.
  /// Of the tensors of the largest iteration or validation, allotted little sooner than they must
  /// be.
  std::int64_t bound = 0;
};

class RunMemory {
 public:
  explicit RunMemory(const RunToFit& run)
      : run_(run), now_(setting_of(run.flags)), resident_(resident_memory_bytes()) {}

  const Setting& now() const { return now_; }
  std::int64_t resident() const { return resident_; }

  Need need(const Setting& setting) const {
    const Activations activations =
        setting.grad_checkpoint ? Activations::kRecomputed : Activations::kKept;
    Need need;
    std::int64_t tensors = 0, scratch = 0;
    const auto consider = [&](const BatchShape& batch, bool gradients) {
      const auto bytes = [&](int ahead) {
        return gradients ? step_bytes(run_.config, run_.layout, batch, activations, ahead)
                         : loss_bytes(run_.config, run_.layout, batch, ahead);
      };
      // With none to run ahead, MLX's thread would spin on a core that the kernels need.
      constexpr int kLittle = 2;
      need.bound = std::max(need.bound, bytes(kLittle));
      tensors = std::max(tensors, bytes(kRunAhead));
      scratch = std::max(scratch,
                         scratch_bytes(run_.config, run_.layout, batch, gradients, num_threads()));
    };
    for (const BatchShape& batch : train_shapes(setting)) consider(batch, true);
    for (const BatchShape& batch : loss_shapes(setting)) consider(batch, false);
    need.peak = resident_ + scratch +
                std::max(tensors, save_bytes(run_.layout, optimizer_vectors())) + weights(setting) -
                weights(now_);
    return need;
  }

 private:
  std::int64_t weights(const Setting& setting) const {
    return packed_weight_bytes(run_.config, dtype_named(setting.dtype), /*training=*/true);
  }

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
    // Of an epoch that begins within the run every batch may be the largest.
    add_shapes(Batches(run_.data.train.samples, options(setting)), setting, run_.first_iteration,
               run_.flags.loop.iters, shapes);
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

  // That a checkpoint holds besides the pairs.
  int optimizer_vectors() const {
    return (run_.flags.optimizer == "sgd" ? 0 : 2) +
           (run_.flags.grad_accumulation_steps > 1 ? 1 : 0);
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

// Of values that need less and less memory, the first that fits; the last if none does.
template <class Value>
Setting first_that_fits(const RunMemory& memory, std::int64_t most, Setting setting,
                        Value Setting::*member, const std::vector<Value>& values) {
  for (const Value& value : values) {
    setting.*member = value;
    if (memory.need(setting).peak <= most) break;
  }
  return setting;
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

// The fewest changes that fit, and of as many those that cost the user least: first what leaves
// losses as they are.
std::optional<Setting> setting_that_fits(const RunMemory& memory, std::int64_t most, bool resume) {
  // A resumed run has to go on with the losses that it had: only the first may change.
  enum : unsigned { kCheckpoint = 1, kBatch = 2, kDtype = 4, kLength = 8, kAll = 16 };
  std::vector<unsigned> choices;
  for (unsigned choice = 1; choice < (resume ? kBatch : kAll); ++choice) choices.push_back(choice);
  std::ranges::stable_sort(choices, {}, [](unsigned choice) { return std::popcount(choice); });
  for (const unsigned choice : choices) {
    Setting setting = memory.now();
    if (choice & kCheckpoint) {
      if (setting.grad_checkpoint) continue;
      setting.grad_checkpoint = true;
    }
    if (choice & kDtype) {
      if (setting.dtype == "bf16") continue;
      setting.dtype = "bf16";
    }
    if (choice & kBatch) {
      const std::vector<int> sizes = smaller_batches(setting.batch_size);
      if (sizes.empty()) continue;
      setting = first_that_fits(memory, most, setting, &Setting::batch_size, sizes);
    }
    if (choice & kLength) {
      const std::vector<std::int64_t> lengths = shorter_lengths(setting.max_seq_length);
      if (lengths.empty()) continue;
      setting = first_that_fits(memory, most, setting, &Setting::max_seq_length, lengths);
    }
    if (memory.need(setting).peak <= most) return setting;
  }
  return std::nullopt;
}

}  // namespace

void return_memory_above(std::int64_t expected) {
  // So that a run that stays near its estimate, as with batches of one shape, never pays for it.
  constexpr std::int64_t kTolerated = 20;  // a part of so many
  if (resident_memory_bytes() > expected + expected / kTolerated) return_freed_memory();
}

std::int64_t check_memory(const RunToFit& run) {
  return_freed_memory();
  const RunMemory memory(run);
  const Need now = memory.need(memory.now());
  const AvailableMemory available = available_memory();
  const std::int64_t most = memory.resident() + available.bytes;
  if (now.peak <= most) {
    bound_run_ahead(now.bound);
    return std::max(now.peak, peak_memory_bytes());
  }
  const std::string need = fmt::format("training needs about {} of memory and {} leaves it {}",
                                       format_bytes(now.peak), available.limit, format_bytes(most));
  // Flags to take instead should fit with room for what the estimate may be wrong by.
  const std::int64_t surely = memory.resident() + available.bytes / 10 * 9;
  if (const auto setting = setting_that_fits(memory, surely, run.flags.resume)) {
    throw UserError(fmt::format("{}; {} would need about {}", need,
                                flags_between(memory.now(), *setting, run.flags),
                                format_bytes(memory.need(*setting).peak)));
  }
  throw UserError(need + (run.flags.resume
                              ? "; no flag that a resumed run may change makes it fit"
                              : "; even --grad-checkpoint --batch-size 1 --max-seq-length 64 "
                                "--dtype bf16 would not fit: take a smaller model"));
}

}  // namespace graft::app
