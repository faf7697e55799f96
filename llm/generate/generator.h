#pragma once

#include <functional>
#include <span>
#include <vector>

#include "graft/export.h"
#include "graft/llm/generate/sampler.h"
#include "graft/llm/generate/sequence.h"
#include "graft/llm/model/llama.h"

namespace graft::llm {

/// Whether a token ends the text.
using StopTest = std::function<bool(int)>;

/// Why a text ended.
enum class Finish {
  kEndToken,     ///< The model said so. The token is not part of the text.
  kMaxTokens,    ///< As many tokens as asked for.
  kContext,      ///< The model's context is full.
  kStopped,      ///< `on_token` said so.
  kInterrupted,  ///< Before the first token.
};

/// A text that was generated.
struct Generated {
  std::vector<int> tokens;             ///< Without the one that ended it.
  Finish finish = Finish::kMaxTokens;  ///< Why it ended.
};

/// When a text ends.
struct GenerateOptions {
  int max_tokens = 100;                    ///< At most so many.
  StopTest stops;                          ///< As Tokenizer::ends_generation; must be there.
  std::function<bool()> interrupted = {};  ///< Asked while the prompt is read; may be missing.
};

/// Reads `prompt`, of at least one token, after what the sequence has read, and samples on from
/// there, passing each token on; `on_token` returning false ends it. All of the prompt but its last
/// token is read as one, so that a text goes on in the same bits wherever its prompt came from:
/// read now, read before, or from a file. Throws UserError if the prompt does not fit.
GRAFT_EXPORT Generated generate(Sequence& sequence, std::span<const int> prompt,
                                const GenerateOptions& options, Sampler& sampler,
                                const std::function<bool(int)>& on_token);

/// The most likely continuation of each prompt, up to a stop token or `max_tokens`, decoded
/// together: prompts are padded on the left, and finished rows leave the batch.
GRAFT_EXPORT std::vector<std::vector<int>> generate_greedy(
    const Llama& model, const ModelAdapter* adapter, const std::vector<std::vector<int>>& prompts,
    int max_tokens, const StopTest& stops);

}  // namespace graft::llm
