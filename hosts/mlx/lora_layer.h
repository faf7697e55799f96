#pragma once

#include <mlx/mlx.h>

#include <cstdint>
#include <optional>
#include <string>

#include "graft/export.h"
#include "graft/mlx/linear.h"
#include "graft/mlx/lora.h"

namespace graft::mlx {

/// How a LoRALayer is made. The defaults are those of the first LoRA libraries' examples.
struct LoRAOptions {
  int rank = 8;                   ///< 1 to 256, and at most min(in, out) features.
  float alpha = 16.0f;            ///< scaling = alpha / rank; above 0.
  float dropout = 0.0f;           ///< On the adapter's input while training, in [0, 1).
  mx::Dtype dtype = mx::float32;  ///< How base products multiply: see `pack`.
  std::optional<mx::array> key;   ///< For A and the dropout seed; MLX's global one if absent.
  std::string name;               ///< Module name in `fusion_report`.
};

/// A linear layer with a frozen base and a low-rank adapter:
/// y = x·Wᵀ + bias + scaling·(drop(x)·A)·B, A (in, rank) float32, B (rank, out) float32.
///
/// One fused kernel where it can be, composed MLX ops where it cannot, the same for the caller. The
/// weight is held packed; the array it came from is not kept. B starts at zero, so that a new layer
/// computes exactly its base.
///
/// A layer is an ordinary value to its owner: calls that change it (train, merge, set_*, and
/// forward with dropout, which moves the dropout counter on) need the caller's own locking;
/// everything const may be called from any thread.
class GRAFT_EXPORT LoRALayer {
 public:
  /// Packs `weight` (out_features, in_features). Throws std::invalid_argument.
  explicit LoRALayer(const mx::array& weight, std::optional<mx::array> bias = std::nullopt,
                     const LoRAOptions& options = {});
  /// Shares a weight that is packed already; `options.dtype` is not looked at.
  explicit LoRALayer(Weight weight, std::optional<mx::array> bias = std::nullopt,
                     const LoRAOptions& options = {});

  /// x (..., in_features) → (..., out_features). While training with dropout, each call uses the
  /// next stretch of random numbers.
  mx::array forward(const mx::array& x);

  /// The same as a pure function of its arrays, for steps that are compiled or differentiated:
  /// nothing of the layer changes. Only the base, scaling and mode are the layer's; while
  /// evaluating or merged, `dropout` is not used.
  mx::array forward(const mx::array& x, const mx::array& a, const mx::array& b,
                    const DropoutState& dropout = {}) const;

  /// Training applies dropout, evaluating does not. A new layer trains.
  void train(bool training = true) { training_ = training; }
  void eval() { train(false); }                ///< train(false).
  bool training() const { return training_; }  ///< Dropout is on.

  /// Trainable parameters: rank·(in + out).
  std::int64_t num_parameters() const;

  /// Folds the adapter into the weight, W + scaling·(A·B)ᵀ, and packs that; forward is then the
  /// base product alone. Both packed weights are held until unmerge(). Nothing if merged already.
  void merge();
  /// Goes back to the very weight the layer was made with, bit for bit. Nothing if not merged.
  void unmerge() { merged_ = {}; }
  /// The adapter is folded into the weight.
  bool merged() const { return merged_.present(); }

  const mx::array& a() const { return a_; }  ///< (in_features, rank).
  const mx::array& b() const { return b_; }  ///< (rank, out_features).
  /// @{
  /// Replaces an adapter matrix; same shape, a floating dtype. Not while merged: throws
  /// std::logic_error.
  void set_a(mx::array a);
  void set_b(mx::array b);
  /// @}

  /// Dropout as the next training forward will use it. Seed and offset are arrays: to compile a
  /// function around forward(x), pass the offset in, set it, and return it afterwards.
  const DropoutState& dropout() const { return dropout_; }
  /// Sets seed and offset, one integer each, for example from a checkpoint.
  void set_dropout_state(mx::array seed, mx::array offset);

  const Weight& weight() const { return base_; }  ///< The base, merged or not.
  /// (out_features), if the layer has one.
  const std::optional<mx::array>& bias() const { return bias_; }
  /// Features that come in: the last axis of x.
  int in_features() const { return static_cast<int>(base_.in_features()); }
  /// Features that go out: the last axis of y.
  int out_features() const { return static_cast<int>(base_.out_features()); }
  int rank() const { return a_.shape(1); }           ///< Columns of A.
  float scaling() const { return scaling_; }         ///< alpha / rank.
  const std::string& name() const { return name_; }  ///< Module name in `fusion_report`.

 private:
  Weight base_;
  Weight merged_;
  std::optional<mx::array> bias_;
  mx::array a_;
  mx::array b_;
  float scaling_;
  DropoutState dropout_;
  bool training_ = true;
  std::string name_;
};

}  // namespace graft::mlx
