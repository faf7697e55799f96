#include "graft/llm/train/checkpoint_state.h"

#include <fmt/format.h>

#include <limits>

#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// 2 had dropout's masks from Philox 4x32-10, 32 bits an element.
constexpr int kFormat = 3;
constexpr const char* kGenerator = "philox4x32-7, 16 bits";

// nlohmann would cut a negative or a larger number off without a word.
std::int64_t count_at(const json& object, const char* key, std::int64_t least = 0) {
  const json& value = object.at(key);
  if (!value.is_number_integer() || value.get<std::int64_t>() < least ||
      (value.is_number_unsigned() &&
       value.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()})) {
    throw UserError(std::string("state.json: ") + key + " is no count");
  }
  return value.get<std::int64_t>();
}

int iteration_at(const json& object, const char* key, int least = 0) {
  const std::int64_t value = count_at(object, key, least);
  if (value > std::numeric_limits<int>::max()) {
    throw UserError(std::string("state.json: ") + key + " is too large");
  }
  return static_cast<int>(value);
}

}  // namespace

ordered_json state_of(const Checkpoint& checkpoint) {
  const auto& [flags, inputs, data, loop, trainer, metrics] = checkpoint;
  ordered_json state;
  state["format"] = kFormat;
  state["iteration"] = trainer.iteration;
  state["flags"] = flags;
  state["inputs"] = {{"model", inputs.model},
                     {"train", inputs.train},
                     {"valid", inputs.valid},
                     {"machine", inputs.machine}};
  state["data"] = {{"seed", data.seed},
                   {"batches_per_epoch", data.batches_per_epoch},
                   {"epoch", data.epoch},
                   {"position", data.position}};
  state["optimizer"] = {{"steps", trainer.optimizer.steps}};
  state["pending_gradients"] = {{"targets", trainer.pending.targets},
                                {"iterations", trainer.pending.iterations}};
  state["dropout"] = {{"generator", kGenerator},
                      {"seed", trainer.dropout.seed},
                      {"offsets", trainer.dropout.offsets}};
  state["loop"] = {{"loss_sum", loop.window.loss_sum},
                   {"seconds", loop.window.seconds},
                   {"targets", loop.window.targets},
                   {"tokens", loop.window.tokens},
                   {"trained_targets", loop.trained_targets},
                   {"validated", loop.validated},
                   {"best_loss", loop.best.loss},
                   {"best_iteration", loop.best.iteration},
                   {"validations_since_best", loop.best.validations_since}};
  return state;
}

Checkpoint checkpoint_from_state(const json& state) {
  if (const std::int64_t format = count_at(state, "format", 1); format != kFormat) {
    throw OtherFormat(
        fmt::format("its format is {}, and this version of graft goes on from {} only, with other "
                    "dropout masks",
                    format, kFormat));
  }
  Checkpoint checkpoint;
  checkpoint.flags = state.at("flags");

  const json& inputs = state.at("inputs");
  checkpoint.inputs = {inputs.at("model"), inputs.at("train"), inputs.at("valid"),
                       inputs.at("machine")};

  const json& data = state.at("data");
  checkpoint.data = {data.at("seed").get<std::uint64_t>(), count_at(data, "batches_per_epoch", 1),
                     count_at(data, "epoch"), count_at(data, "position")};

  const json& loop = state.at("loop");
  checkpoint.loop.window = {loop.at("loss_sum"), loop.at("seconds"), count_at(loop, "targets"),
                            count_at(loop, "tokens")};
  checkpoint.loop.trained_targets = count_at(loop, "trained_targets");
  checkpoint.loop.validated = iteration_at(loop, "validated", -1);
  checkpoint.loop.best = {loop.at("best_loss"), iteration_at(loop, "best_iteration"),
                          iteration_at(loop, "validations_since_best")};

  TrainerState& trainer = checkpoint.trainer;
  trainer.iteration = iteration_at(state, "iteration");
  checkpoint.loop.saved = trainer.iteration;
  trainer.optimizer.steps = count_at(state.at("optimizer"), "steps");
  const json& pending = state.at("pending_gradients");
  trainer.pending.targets = count_at(pending, "targets");
  trainer.pending.iterations = iteration_at(pending, "iterations");
  const json& dropout = state.at("dropout");
  if (dropout.at("generator") != kGenerator) {
    throw UserError(std::string("state.json: dropout's generator is not ") + kGenerator);
  }
  trainer.dropout.seed = dropout.at("seed").get<std::uint64_t>();
  trainer.dropout.offsets = dropout.at("offsets").get<std::vector<std::uint64_t>>();
  return checkpoint;
}

}  // namespace graft::llm
