#include "apps/graft/model/llama.h"

#include <fmt/format.h>

#include <cmath>

#include "graft/mlx/fusion.h"
#include "mlx/fast.h"
#include "mlx/memory.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace graft::app {

Llama::Llama(const LlamaWeights& weights, const LlamaOptions& options)
    : config_(weights.config()),
      embedding_(weights.embedding()),
      final_norm_(weights.final_norm()),
      head_(ops::pack(weights.head(), options.dtype, options.training)) {
  for (int index = 0; index < config_.num_layers; ++index) {
    Layer layer{weights.attention_norm(index), weights.mlp_norm(index), {}};
    for (const Projection projection : kAllProjections) {
      layer.weights[index_of(projection)] =
          ops::pack(weights.projection(index, projection), options.dtype, options.training);
    }
    layers_.push_back(std::move(layer));
  }
  // The unpacked copies went through MLX's buffer cache.
  mx::clear_cache();
}

mx::array Llama::project(const mx::array& x, int layer, Projection projection,
                         const Adapter* adapter) const {
  const ops::Weight& weight =
      layers_[static_cast<std::size_t>(layer)].weights[index_of(projection)];
  const graft::mlx::ModuleScope scope(AdaptedModule{layer, projection, 0, 0}.path());
  const int found = adapter ? adapter->layout->find(layer, projection) : -1;
  if (found < 0) return ops::linear(x, weight);

  const auto slot = static_cast<std::size_t>(found);
  const AdapterOptions& options = adapter->layout->options();
  const LoraPair& pair = adapter->pairs[slot];
  ops::Dropout dropout;
  if (adapter->dropout_seed) {
    dropout = {options.dropout, *adapter->dropout_seed, adapter->dropout_offsets[slot]};
  }
  return ops::lora_linear(x, weight, std::nullopt, pair.a, pair.b, options.scaling(), dropout);
}

mx::array Llama::attend(const mx::array& x, int layer, KvCache* cache,
                        const std::optional<mx::array>& mask, const Adapter* adapter) const {
  const int batch = x.shape(0);
  const int length = x.shape(1);
  const auto heads = [&](Projection projection, int count) {
    return mx::reshape(project(x, layer, projection, adapter),
                       {batch, length, count, config_.head_dim});
  };
  const mx::array q = heads(Projection::kQ, config_.num_heads);
  const mx::array k = heads(Projection::kK, config_.num_kv_heads);
  const mx::array v = heads(Projection::kV, config_.num_kv_heads);
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));

  const mx::array y = [&] {
    if (!cache) return ops::attention(q, k, v, scale, config_.rope_theta);
    const auto turn = [&](const mx::array& rows) {
      return mx::fast::rope(mx::swapaxes(rows, 1, 2), config_.head_dim, false, config_.rope_theta,
                            1.0f, cache->length());
    };
    const auto [keys, values] = cache->append(layer, turn(k), mx::swapaxes(v, 1, 2));
    return mx::swapaxes(
        mx::fast::scaled_dot_product_attention(turn(q), keys, values, scale, "", mask), 1, 2);
  }();
  return project(mx::reshape(y, {batch, length, config_.num_heads * config_.head_dim}), layer,
                 Projection::kO, adapter);
}

mx::array Llama::hidden(const mx::array& tokens, KvCache* cache, const Adapter* adapter) const {
  const std::optional<mx::array> mask = cache ? cache->mask(tokens.shape(1)) : std::nullopt;
  mx::array x = embedding_(tokens);
  for (int index = 0; index < config_.num_layers; ++index) {
    const Layer& layer = layers_[static_cast<std::size_t>(index)];
    const mx::array attended = attend(ops::rms_norm(x, layer.attention_norm, config_.rms_norm_eps),
                                      index, cache, mask, adapter);
    x = mx::add(x, attended);
    const mx::array normed = ops::rms_norm(x, layer.mlp_norm, config_.rms_norm_eps);
    const mx::array gate = project(normed, index, Projection::kGate, adapter);
    const mx::array up = project(normed, index, Projection::kUp, adapter);
    const mx::array gated = [&] {
      const graft::mlx::ModuleScope scope(fmt::format("model.layers.{}.mlp", index));
      return ops::swiglu(gate, up);
    }();
    x = mx::add(x, project(gated, index, Projection::kDown, adapter));
  }
  if (cache) cache->advance(tokens.shape(1));
  return ops::rms_norm(x, final_norm_, config_.rms_norm_eps);
}

mx::array Llama::loss_sum(const mx::array& tokens, const mx::array& targets,
                          const Adapter* adapter) const {
  const mx::array rows = mx::reshape(hidden(tokens, nullptr, adapter), {-1, config_.hidden_size});
  const graft::mlx::ModuleScope scope("lm_head");
  return mx::sum(ops::linear_cross_entropy(rows, head_, mx::reshape(targets, {-1})));
}

mx::array Llama::logits(const mx::array& tokens, const Adapter* adapter) const {
  const mx::array rows = hidden(tokens, nullptr, adapter);
  const graft::mlx::ModuleScope scope("lm_head");
  return ops::linear(rows, head_);
}

mx::array Llama::next_logits(const mx::array& tokens, KvCache& cache,
                             const Adapter* adapter) const {
  const mx::array all = hidden(tokens, &cache, adapter);
  const int batch = all.shape(0);
  const int length = all.shape(1);
  const mx::array last = mx::slice(all, {0, length - 1, 0}, {batch, length, config_.hidden_size});
  const graft::mlx::ModuleScope scope("lm_head");
  return ops::linear(mx::reshape(last, {batch, config_.hidden_size}), head_);
}

}  // namespace graft::app
