#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <vector>

#include "graft/export.h"
#include "graft/llm/model/adapter_layout.h"
#include "graft/llm/model/kv_cache.h"
#include "graft/llm/model/llama_config.h"
#include "graft/llm/model/llama_weights.h"
#include "graft/mlx/linear.h"
#include "graft/mlx/lora_siblings.h"
#include "mlx/array.h"

namespace graft::llm {

/// An adapter as a forward pass takes it. All of it is input, so that gradients are those of a
/// plain function of the pairs.
struct ModelAdapter {
  const AdapterLayout* layout = nullptr;
  std::vector<LoraPair> pairs;  ///< In the layout's order.
  /// In training with dropout: the seed, and one counter offset a module. Empty otherwise.
  std::optional<mx::array> dropout_seed;
  std::vector<mx::array> dropout_offsets;
};

/// What a forward pass keeps for the backward pass.
enum class Activations {
  kKept,        ///< All that gradients need.
  kRecomputed,  ///< Of each layer only its input: the rest is computed again when it is needed.
};

/// How a model is kept in memory.
struct LlamaOptions {
  mx::Dtype dtype = mx::float32;  ///< How base weights are packed: float32 or bfloat16.
  bool training = false;          ///< Pack for gradients too.
};

/// A Llama decoder (Touvron et al., arXiv:2302.13971) with frozen, packed weights. Activations are
/// float32. Const calls may come from several threads.
///
/// A model may hold an adapter for whoever runs it, next to its weights and never in them, so that
/// another one takes its place at no cost. Forward passes still take theirs as an argument.
class GRAFT_EXPORT Llama {
 public:
  Llama(const LlamaWeights& weights, const LlamaOptions& options);

  const LlamaConfig& config() const { return config_; }

  /// Bytes that the packed weights of such a model would take.
  static std::int64_t packed_bytes(const LlamaConfig& config, const LlamaOptions& options);
  std::int64_t packed_bytes() const;  ///< Of this one.

  /// Holds an adapter, in place of the one held before. Throws UserError if it is of a model of
  /// other sizes; the one before stays then.
  void set_adapter(AdapterLayout layout, std::vector<LoraPair> pairs);
  void clear_adapter() { held_.reset(); }
  /// The adapter held, or nullptr. Valid until another takes its place.
  const ModelAdapter* adapter() const { return held_ ? &held_->adapter : nullptr; }

  /// Sum of the losses of all targets that are not -100; tokens and targets are (B, T) int32.
  /// Rows are padded on the right: a causal model never looks there. Gradients in the adapter's
  /// pairs are the same, bit for bit, whichever way activations are held.
  mx::array loss_sum(const mx::array& tokens, const mx::array& targets, const ModelAdapter* adapter,
                     Activations activations = Activations::kKept) const;

  /// Logits (B, T, vocab) of a whole sequence at once, as training computes them.
  mx::array logits(const mx::array& tokens, const ModelAdapter* adapter) const;

  /// Feeds tokens (B, T) after those in the cache and gives the logits (B, vocab) of the last one.
  mx::array next_logits(const mx::array& tokens, KvCache& cache, const ModelAdapter* adapter) const;

 private:
  struct Layer {
    mx::array attention_norm;
    mx::array mlp_norm;
    std::array<graft::Weight, kNumProjections> weights;
  };

  struct HeldAdapter {
    AdapterLayout layout;
    ModelAdapter adapter;  // Points to the layout, so that the two stay where they are.
  };

  // Between two layers: the residual stream, and what the norm before the next layer made of it.
  struct Stream {
    mx::array normed;
    mx::array residual;
  };

  mx::array hidden(const mx::array& tokens, KvCache* cache, const ModelAdapter* adapter,
                   Activations activations = Activations::kKept) const;
  Stream with_norm(const mx::array& residual, int layer) const;
  Stream through_layer(const Stream& in, int layer, KvCache* cache,
                       const std::optional<mx::array>& mask, const ModelAdapter* adapter) const;
  Stream through_recomputed_layer(const Stream& in, int layer, const ModelAdapter& adapter) const;
  graft::mlx::LoraSibling sibling(int layer, Projection projection,
                                  const ModelAdapter* adapter) const;
  // Of projections that all read x, in their order.
  std::vector<mx::array> project(const mx::array& x, int layer,
                                 std::initializer_list<Projection> projections,
                                 const ModelAdapter* adapter) const;
  mx::array attend(const mx::array& x, int layer, KvCache* cache,
                   const std::optional<mx::array>& mask, const ModelAdapter* adapter) const;
  mx::array attend_cached(const mx::array& q, const mx::array& k, const mx::array& v, int layer,
                          KvCache& cache, const std::optional<mx::array>& mask) const;
  mx::array feed_forward(const mx::array& x, int layer, const ModelAdapter* adapter) const;

  LlamaConfig config_;
  Embedding embedding_;
  std::vector<Layer> layers_;
  mx::array final_norm_;
  graft::Weight head_;
  std::unique_ptr<const HeldAdapter> held_;
};

}  // namespace graft::llm
