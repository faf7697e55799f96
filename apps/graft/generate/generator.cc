#include "apps/graft/generate/generator.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <span>

#include "apps/graft/user_error.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace graft::app {
namespace {

void check_fits(const Llama& model, const std::vector<int>& prompt) {
  const int context = model.config().context_length;
  if (prompt.empty()) throw UserError("the prompt is empty");
  if (static_cast<int>(prompt.size()) >= context) {
    throw UserError(fmt::format("the prompt has {} tokens; the model's context holds {}",
                                prompt.size(), context));
  }
}

// Evaluated together with the cache, whose updates would otherwise pile up as a graph.
mx::array evaluated(mx::array value, const KvCache& cache) {
  std::vector<mx::array> outputs = cache.arrays();
  outputs.push_back(value);
  mx::eval(std::move(outputs));
  return value;
}

}  // namespace

int generate(const Llama& model, const Adapter* adapter, const std::vector<int>& prompt,
             int max_tokens, const StopTest& stops, Sampler& sampler,
             const std::function<bool(int)>& on_token) {
  check_fits(model, prompt);
  KvCache cache(model.config().num_layers);
  std::vector<int> fed = prompt;
  int count = 0;
  while (count < max_tokens && cache.length() < model.config().context_length) {
    const mx::array tokens = mx::array(fed.data(), {1, static_cast<int>(fed.size())}, mx::int32);
    const mx::array logits =
        evaluated(mx::contiguous(model.next_logits(tokens, cache, adapter)), cache);
    const int token = sampler(std::span<const float>(logits.data<float>(), logits.size()));
    if (stops(token)) break;
    ++count;
    if (!on_token(token)) break;
    fed = {token};
  }
  return count;
}

std::vector<std::vector<int>> generate_greedy(const Llama& model, const Adapter* adapter,
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

}  // namespace graft::app
