#include "graft/llm/generate/sequence.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "graft/llm/user_error.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace graft::llm {
namespace {

// Long enough for products at full speed, short enough for an interrupt to be felt.
constexpr std::size_t kChunkTokens = 512;

mx::array row_of(std::span<const int> tokens) {
  return mx::array(tokens.data(), {1, static_cast<int>(tokens.size())}, mx::int32);
}

void check_tokens(std::span<const int> tokens, const LlamaConfig& config, std::size_t before) {
  for (const int token : tokens) {
    if (token < 0 || token >= config.vocab_size) {
      throw UserError(
          fmt::format("token {}: the model has tokens 0 to {}", token, config.vocab_size - 1));
    }
  }
  if (before + tokens.size() > static_cast<std::size_t>(config.context_length)) {
    throw UserError(fmt::format("{} tokens after {}: the model's context holds {}", tokens.size(),
                                before, config.context_length));
  }
}

}  // namespace

Sequence::Sequence(const Llama& model) : model_(model), cache_(model.config().num_layers) {}

Sequence::Sequence(const Llama& model, std::vector<int> tokens, KvCache cache)
    : model_(model), tokens_(std::move(tokens)), cache_(std::move(cache)) {}

bool Sequence::prefill(std::span<const int> tokens, const std::function<bool()>& interrupted) {
  check_tokens(tokens, model_.config(), tokens_.size());
  while (!tokens.empty()) {
    if (interrupted && interrupted()) return false;
    const auto chunk = tokens.first(std::min(tokens.size(), kChunkTokens));
    // The logits are left unevaluated: what only they need is never computed.
    static_cast<void>(model_.next_logits(row_of(chunk), cache_, model_.adapter()));
    mx::eval(cache_.arrays());
    tokens_.insert(tokens_.end(), chunk.begin(), chunk.end());
    tokens = tokens.subspan(chunk.size());
  }
  return true;
}

std::span<const float> Sequence::feed(int token) {
  check_tokens(std::span(&token, 1), model_.config(), tokens_.size());
  logits_ =
      mx::contiguous(model_.next_logits(row_of(std::span(&token, 1)), cache_, model_.adapter()));
  // Together with the cache, whose updates would otherwise pile up as a graph.
  std::vector<mx::array> outputs = cache_.arrays();
  outputs.push_back(*logits_);
  mx::eval(std::move(outputs));
  tokens_.push_back(token);
  return {logits_->data<float>(), logits_->size()};
}

void Sequence::rewind(int length) {
  cache_.rewind(length);
  tokens_.resize(static_cast<std::size_t>(cache_.length()));
}

void check_fits(const Llama& model, std::span<const int> prompt) {
  const int context = model.config().context_length;
  if (prompt.empty()) throw UserError("the prompt is empty");
  if (prompt.size() >= static_cast<std::size_t>(context)) {
    throw UserError(fmt::format("the prompt has {} tokens; the model's context holds {}",
                                prompt.size(), context));
  }
}

}  // namespace graft::llm
