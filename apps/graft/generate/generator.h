#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "apps/graft/generate/sampler.h"
#include "apps/graft/model/llama.h"

namespace graft::app {

/// Whether a token ends the text.
using StopTest = std::function<bool(int)>;

/// Feeds the prompt and then samples until a stop token (which is not passed on), `max_tokens`, the
/// end of the model's context, or `on_token` returning false. Returns how many tokens it passed to
/// `on_token`. Throws UserError if the prompt does not fit into the context.
int generate(const Llama& model, const Adapter* adapter, const std::vector<int>& prompt,
             int max_tokens, const StopTest& stops, Sampler& sampler,
             const std::function<bool(int)>& on_token);

/// The most likely continuation of each prompt, up to a stop token or `max_tokens`, decoded
/// together: prompts are padded on the left, and finished rows leave the batch.
std::vector<std::vector<int>> generate_greedy(const Llama& model, const Adapter* adapter,
                                              const std::vector<std::vector<int>>& prompts,
                                              int max_tokens, const StopTest& stops);

}  // namespace graft::app
