#include "graft/llm/generate/generator.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <span>

#include "graft/llm/user_error.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace graft::llm {
namespace {

// Evaluated together with the cache, whose updates would otherwise pile up as a graph.
mx::array evaluated(mx::array value, const KvCache& cache) {
  std::vector<mx::array> outputs = cache.arrays();
  outputs.push_back(value);
  mx::eval(std::move(outputs));
  return value;
}

}  // namespace

Generated generate(Sequence& sequence, std::span<const int> prompt, const GenerateOptions& options,
                   Sampler& sampler, const std::function<bool(int)>& on_token) {
  const int context = sequence.model().config().context_length;
  check_fits(sequence.model(), prompt);
  if (prompt.size() + static_cast<std::size_t>(sequence.length()) >=
      static_cast<std::size_t>(context)) {
    throw UserError(fmt::format("{} tokens after {} do not fit into the model's context of {}",
                                prompt.size(), sequence.length(), context));
  }
  Generated generated;
  if (!sequence.prefill(prompt.first(prompt.size() - 1), options.interrupted)) {
    generated.finish = Finish::kInterrupted;
    return generated;
  }
  int fed = prompt.back();
  while (std::ssize(generated.tokens) < options.max_tokens) {
    if (sequence.length() == context) {
      generated.finish = Finish::kContext;
      break;
    }
    const std::span<const float> logits = sequence.feed(fed);
    const int token = sampler(logits, sequence.tokens());
    if (options.stops(token)) {
      generated.finish = Finish::kEndToken;
      break;
    }
    generated.tokens.push_back(token);
    if (!on_token(token)) {
      generated.finish = Finish::kStopped;
      break;
    }
    fed = token;
  }
  return generated;
}

std::vector<std::vector<int>> generate_greedy(const Llama& model, const ModelAdapter* adapter,
                                              const std::vector<std::vector<int>>& prompts,
                                              int max_tokens, const StopTest& stops) {
  std::vector<std::vector<int>> outputs(prompts.size());
  if (prompts.empty()) return outputs;
  for (const std::vector<int>& prompt : prompts) check_fits(model, prompt);

  const std::size_t width = std::ranges::max(prompts, {}, &std::vector<int>::size).size();
  std::vector<int> padding;
  std::vector<int> padded;
  for (const std::vector<int>& prompt : prompts) {
    padding.push_back(static_cast<int>(width - prompt.size()));
    padded.insert(padded.end(), width - prompt.size(), prompt.front());  // masked: any token does
    padded.insert(padded.end(), prompt.begin(), prompt.end());
  }

  KvCache cache(model.config().num_layers, padding);
  std::vector<std::size_t> active(prompts.size());  // which prompt each row of the batch is
  std::iota(active.begin(), active.end(), std::size_t{0});
  mx::array tokens = mx::array(
      padded.data(), {static_cast<int>(prompts.size()), static_cast<int>(width)}, mx::int32);
  for (int count = 0;
       count < max_tokens && !active.empty() && cache.length() < model.config().context_length;
       ++count) {
    const mx::array picked = evaluated(
        mx::astype(mx::argmax(model.next_logits(tokens, cache, adapter), -1), mx::int32), cache);
    std::vector<int> kept_rows;
    std::vector<int> next;
    std::vector<std::size_t> still_active;
    for (std::size_t row = 0; row < active.size(); ++row) {
      const int token = picked.data<std::int32_t>()[row];
      if (stops(token)) continue;
      outputs[active[row]].push_back(token);
      kept_rows.push_back(static_cast<int>(row));
      next.push_back(token);
      still_active.push_back(active[row]);
    }
    if (next.size() < active.size() && !next.empty()) cache.select_rows(kept_rows);
    active = std::move(still_active);
    tokens = mx::array(next.data(), {static_cast<int>(next.size()), 1}, mx::int32);
  }
  return outputs;
}

}  // namespace graft::llm
