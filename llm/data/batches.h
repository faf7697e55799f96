#pragma once

#include <compare>
#include <cstdint>
#include <vector>

#include "graft/export.h"
#include "graft/llm/data/dataset.h"

namespace graft::llm {

/// The target of a position that the loss does not count.
inline constexpr std::int32_t kIgnoreIndex = -100;

/// The size of a batch: its samples, and the tokens that each is padded to.
struct BatchShape {
  std::int64_t batch_size = 0;
  std::int64_t length = 0;

  std::int64_t rows() const { return batch_size * length; }
  auto operator<=>(const BatchShape&) const = default;
};

/// Inputs and what they should predict, both (batch_size, length), row-major.
struct Batch {
  std::int64_t batch_size = 0;
  std::int64_t length = 0;
  std::vector<std::int32_t> tokens;   ///< Rows filled up at the end with the padding token.
  std::vector<std::int32_t> targets;  ///< The token after each, or kIgnoreIndex.
  std::int64_t num_targets = 0;       ///< Targets that count.
  std::int64_t num_inputs = 0;        ///< Positions that are not padding.
};

/// How batches are made.
struct BatchOptions {
  std::int64_t batch_size = 4;    ///< Samples, at most.
  std::uint64_t seed = 0;         ///< Of the order of batches.
  std::int32_t pad_token = 0;     ///< What rows are filled up with, as Tokenizer::pad.
  std::int64_t pad_multiple = 8;  ///< Rows are padded to the longest of the batch, rounded up.
};

/// An endless run of batches, as mlx_lm.lora makes them: samples of like length together, so that
/// little is padding, and the batches in a new random order each epoch. If the samples do not fill
/// the last batch, it is smaller (mlx_lm.lora leaves those samples out).
///
/// Which batch comes at which step depends on the samples and the options alone, and is the same on
/// every platform.
class GRAFT_EXPORT Batches {
 public:
  /// Keeps a reference to `samples`. Throws UserError if there are none, one has fewer than two
  /// tokens, or an option is not positive.
  Batches(const std::vector<Sample>& samples, const BatchOptions& options);

  /// Batches until every sample was in one.
  std::int64_t per_epoch() const { return static_cast<std::int64_t>(groups_.size()); }

  /// The batch of step 0, 1, 2, ...; steps may be asked for in any order.
  Batch at(std::int64_t step);
  /// The size of that batch, without making it.
  BatchShape shape_at(std::int64_t step) { return shape_of(group_at(step)); }

 private:
  using Group = std::vector<std::size_t>;  // Indices of samples.

  const Group& group_at(std::int64_t step);
  BatchShape shape_of(const Group& group) const;
  Batch make(const Group& group) const;

  const std::vector<Sample>& samples_;
  const BatchOptions options_;
  std::vector<Group> groups_;
  std::int64_t epoch_ = -1;         // That order_ is of.
  std::vector<std::size_t> order_;  // A permutation of groups_.
};

/// A permutation of 0 ... size − 1, the same for the same arguments on every platform.
GRAFT_EXPORT std::vector<std::size_t> permutation(std::size_t size, std::uint64_t seed,
                                                  std::uint64_t epoch);

}  // namespace graft::llm
