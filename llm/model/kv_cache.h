#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "graft/export.h"
#include "mlx/array.h"

namespace graft::llm {

namespace mx = ::mlx::core;

/// Keys (turned by the rotary embedding) and values of the tokens a batch has seen so far.
///
/// Prompts of different lengths are padded on the left; `padding` says by how much, and the padded
/// keys are never attended to. Positions then count from each row's padded start: the rotary
/// embedding only acts through differences of positions, so the padding does not change a result.
class GRAFT_EXPORT KvCache {
 public:
  explicit KvCache(int num_layers, std::vector<int> padding = {});

  int length() const { return length_; }
  void advance(int tokens) { length_ += tokens; }

  /// Forgets what came after the first `length` tokens; later ones take its place.
  void rewind(int length) { length_ = std::min(length_, length); }

  /// Keys and values of one layer so far, (B, length, kv_heads, d). There must be some.
  std::pair<mx::array, mx::array> layer(int layer) const;

  /// Appends keys and values (B, T, kv_heads, d) of one layer at `length()` and gives all of them
  /// back, up to and with the new ones.
  std::pair<mx::array, mx::array> append(int layer, const mx::array& keys, const mx::array& values);

  /// Which keys each of the next `tokens` queries may see, (B, 1, tokens, length + tokens) bool;
  /// nothing without padding, where all that counts is what came before.
  std::optional<mx::array> mask(int tokens) const;

  /// Keeps only the given rows of the batch, in that order.
  void select_rows(const std::vector<int>& rows);

  /// Every array held, for evaluation.
  std::vector<mx::array> arrays() const;

 private:
  struct Layer {
    std::optional<mx::array> keys;
    std::optional<mx::array> values;
  };

  std::vector<Layer> layers_;
  std::vector<int> padding_;
  int length_ = 0;
};

}  // namespace graft::llm
