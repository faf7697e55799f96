#pragma once

#include <cstdint>
#include <random>
#include <span>

namespace graft::app {

/// Picks the next token from logits. The same seed gives the same tokens on every machine.
class Sampler {
 public:
  /// Temperature 0 takes the most likely token. `top_p` below 1 samples from the smallest set of
  /// tokens whose chances add up to it (Holtzman et al., arXiv:1904.09751). Throws UserError.
  Sampler(double temperature, double top_p, std::uint64_t seed);

  int operator()(std::span<const float> logits);

 private:
  double temperature_;
  double top_p_;
  std::mt19937_64 random_;
};

/// The index of the largest logit, the first of several.
int argmax(std::span<const float> logits);

}  // namespace graft::app
