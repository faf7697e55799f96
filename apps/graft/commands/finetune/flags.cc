#include "apps/graft/commands/finetune/flags.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>
#include <type_traits>

#include "apps/graft/user_error.h"
#include "graft/llm/files/utf8.h"

namespace graft::app {
namespace {

using nlohmann::json;

// Whether a resumed run may have another value than the one that it goes on with.
enum class Change { kFree, kRefused };

// Calls visit(name, member, change) for every flag that a checkpoint keeps. What --model and --data
// name is compared by its contents elsewhere, as files may move.
template <class Flags, class Visit>
void visit_saved_flags(Flags& flags, Visit&& visit) {
  constexpr Change kFree = Change::kFree;
  constexpr Change kRefused = Change::kRefused;
  visit("--model", flags.model.model, kFree);
  visit("--data", flags.data, kFree);
  visit("--dtype", flags.model.dtype, kRefused);
  visit("--threads", flags.model.threads, kRefused);  // sums are split among them
  visit("--max-seq-length", flags.max_seq_length, kRefused);
  visit("--mask-prompt", flags.mask_prompt, kRefused);
  visit("--parse-special", flags.parse_special, kRefused);
  visit("--rank", flags.adapter.rank, kRefused);
  visit("--alpha", flags.adapter.alpha, kRefused);
  visit("--dropout", flags.adapter.dropout, kRefused);
  visit("--num-layers", flags.num_layers, kRefused);
  visit("--target-modules", flags.target_modules, kRefused);
  visit("--init-adapter", flags.init_adapter, kRefused);
  visit("--resume-adapter-file", flags.resume_adapter_file, kRefused);
  visit("--batch-size", flags.batch_size, kRefused);
  visit("--grad-accumulation-steps", flags.grad_accumulation_steps, kRefused);
  visit("--optimizer", flags.optimizer, kRefused);
  visit("--learning-rate", flags.learning_rate, kRefused);
  visit("--lr-schedule", flags.lr_schedule, kRefused);
  visit("--warmup", flags.warmup, kRefused);
  // A constant rate does not look at the end, so that it may be put off.
  visit("--iters", flags.loop.iters, flags.lr_schedule == "constant" ? kFree : kRefused);
  visit("--weight-decay", flags.weight_decay, kRefused);
  visit("--max-grad-norm", flags.max_grad_norm, kRefused);
  visit("--seed", flags.seed, kRefused);
  visit("--val-batches", flags.val_batches, kRefused);
  visit("--early-stop", flags.loop.early_stop, kFree);
  visit("--test", flags.test, kFree);
  visit("--test-batches", flags.test_batches, kFree);
  visit("--grad-checkpoint", flags.grad_checkpoint, kFree);
  visit("--steps-per-report", flags.loop.steps_per_report, kFree);
  visit("--steps-per-eval", flags.loop.steps_per_eval, kFree);
  visit("--save-every", flags.loop.save_every, kFree);
  visit("--record-batches", flags.record_batches, kRefused);  // it has a line an iteration
  visit("--require-fused", flags.require_fused, kFree);
}

template <class T>
std::string shown(const T& value) {
  return fmt::format("{}", value);
}

std::string shown(const std::string& value) { return value.empty() ? "nothing" : value; }

std::string shown(const std::vector<std::string>& values) {
  return fmt::format("{}", fmt::join(values, ","));
}

template <class T>
bool same(const T& x, const T& y) {
  return x == y;
}

// Their order on the command line does not matter.
bool same(std::vector<std::string> x, std::vector<std::string> y) {
  std::ranges::sort(x);
  std::ranges::sort(y);
  return x == y;
}

// The command line lets no smaller ones pass, but the file at `path` may have been changed.
void check_counts(const FinetuneFlags& flags, const std::string& path) {
  const auto check = [&](const char* name, std::int64_t value, std::int64_t least) {
    if (value >= least) return;
    throw UserError(
        fmt::format("{}/state.json: {} is {}; expected {} or more", path, name, value, least));
  };
  check("--threads", flags.model.threads, 0);
  check("--max-seq-length", flags.max_seq_length, 2);
  check("--batch-size", flags.batch_size, 1);
  check("--grad-accumulation-steps", flags.grad_accumulation_steps, 1);
  check("--iters", flags.loop.iters, 0);
  check("--warmup", flags.warmup, 0);
  check("--early-stop", flags.loop.early_stop, 0);
  check("--val-batches", flags.val_batches, -1);
  check("--test-batches", flags.test_batches, -1);
  check("--steps-per-report", flags.loop.steps_per_report, 1);
  check("--steps-per-eval", flags.loop.steps_per_eval, 1);
  check("--save-every", flags.loop.save_every, 0);
}

std::string quoted(const std::string& word) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("_./-+=:,@%").find(c) != std::string_view::npos;
  };
  if (!word.empty() && std::ranges::all_of(word, plain)) return word;
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

}  // namespace

json saved_flags(const FinetuneFlags& flags) {
  json saved = json::object();
  visit_saved_flags(flags,
                    [&](const char* name, const auto& value, Change) { saved[name] = value; });
  return saved;
}

void take_saved_flags(FinetuneFlags& flags, const json& saved, const std::string& path) {
  visit_saved_flags(flags, [&](const char* name, auto& value, Change change) {
    std::decay_t<decltype(value)> before;
    try {
      saved.at(name).get_to(before);
    } catch (const json::exception&) {
      throw UserError(fmt::format("{}/state.json: {} is missing or of a wrong type", path, name));
    }
    if (!flags.given.contains(name)) {
      value = before;
    } else if (change == Change::kRefused && !same(value, before)) {
      throw UserError(fmt::format(
          "{} is {}, but the run in {} has {}; leave it out to go on as before, or start anew with "
          "another --adapter-path",
          name, shown(value), flags.adapter_path, shown(before)));
    }
  });
  check_counts(flags, path);
}

void check_savable(const FinetuneFlags& flags) {
  visit_saved_flags(flags, [](const char* name, const auto& value, Change) {
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::string>) {
      if (find_invalid_utf8(value) == std::string_view::npos) return;
      throw UserError(fmt::format(
          "{} {}: this path is not valid UTF-8, as the run's files have to be; rename it", name,
          value));
    }
  });
}

std::string resume_command(const FinetuneFlags& flags) {
  return fmt::format("{} finetune --adapter-path {} --resume", quoted(flags.program),
                     quoted(flags.adapter_path));
}

}  // namespace graft::app
