#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "graft/export.h"

namespace graft::llm {

/// How the next token is picked. The steps come in the order of the fields, each on what the one
/// before has left, as in Hugging Face's transformers; mlx_lm applies the temperature last.
struct SamplerOptions {
  /// Above 1: positive logits of recent tokens are divided by it, negative ones multiplied (Keskar
  /// et al., arXiv:1909.05858).
  double repetition_penalty = 1.0;
  int repetition_context_size = 20;  ///< How many tokens are recent; those of the prompt count too.
  double temperature = 0.0;          ///< 0 takes the most likely token, whatever follows here.
  int top_k = 0;                     ///< Keep so many of the likeliest tokens; 0 is all.
  /// Keep the smallest set of tokens whose chances add up to this (Holtzman et al.,
  /// arXiv:1904.09751).
  double top_p = 1.0;
  double min_p = 0.0;  ///< Keep tokens at least this likely, relative to the likeliest.
};

/// A token that may come next.
struct Candidate {
  int token;      ///< Its id.
  double chance;  ///< Not normalized: the likeliest token has 1.
};

/// Makes the tokens in `recent` less likely, each once however often it is there.
GRAFT_EXPORT void penalize_repetition(std::span<float> logits, std::span<const int> recent,
                                      double penalty);

/// The tokens that temperature (above 0), top-k, top-p and min-p leave. At least one.
GRAFT_EXPORT std::vector<Candidate> candidates(std::span<const float> logits,
                                               const SamplerOptions& options);

/// The index of the largest logit, the first of several.
GRAFT_EXPORT int argmax(std::span<const float> logits);

/// Picks the next token from logits. The same seed gives the same tokens on every machine.
class GRAFT_EXPORT Sampler {
 public:
  /// Takes the most likely token unless the options say otherwise. Throws UserError if one is out
  /// of its range.
  explicit Sampler(const SamplerOptions& options = {}, std::uint64_t seed = 0);

  /// `history` is all that came before, for the penalty.
  int operator()(std::span<const float> logits, std::span<const int> history);

 private:
  SamplerOptions options_;
  std::mt19937_64 random_;
  std::vector<float> penalized_;
};

}  // namespace graft::llm
