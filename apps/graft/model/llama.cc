#include "apps/graft/model/llama.h"

#include <fmt/format.h>

#include <cmath>
#include <string>
#include <tuple>
#include <utility>

#include "apps/graft/user_error.h"
#include "graft/mlx/attention.h"
#include "graft/mlx/fusion.h"
#include "graft/mlx/linear_cross_entropy.h"
#include "graft/mlx/lora.h"
#include "graft/mlx/rms_norm.h"
#include "graft/mlx/swiglu.h"
#include "mlx/fast.h"
#include "mlx/memory.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace graft::app {

using graft::mlx::ModuleScope;

namespace {

float attention_scale(const LlamaConfig& config) {
  return 1.0f / std::sqrt(static_cast<float>(config.head_dim));
}

}  // namespace

Llama::Llama(const LlamaWeights& weights, const LlamaOptions& options)
    : config_(weights.config()),
      embedding_(weights.embedding()),
      final_norm_(weights.final_norm()),
      head_(graft::mlx::pack(weights.head(), options.dtype, options.training)) {
  for (int index = 0; index < config_.num_layers; ++index) {
    Layer layer{weights.attention_norm(index), weights.mlp_norm(index), {}};
    for (const Projection projection : kAllProjections) {
      layer.weights[index_of(projection)] =
          graft::mlx::pack(weights.projection(index, projection), options.dtype, options.training);
    }
    layers_.push_back(std::move(layer));
  }
  // The unpacked copies went through MLX's buffer cache.
  mx::clear_cache();
}

void Llama::set_adapter(AdapterLayout layout, std::vector<LoraPair> pairs) {
  const auto fail = [](const std::string& what) {
    throw UserError("the adapter is of another model: " + what);
  };
  if (pairs.size() != layout.modules().size()) {
    fail(fmt::format("{} pairs for {} modules", pairs.size(), layout.modules().size()));
  }
  const int rank = layout.options().rank;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const AdaptedModule& module = layout.modules()[i];
    if (module.layer >= config_.num_layers) {
      fail(fmt::format("{}: this model has {} layers", module.path(), config_.num_layers));
    }
    const int in = config_.in_features(module.projection);
    const int out = config_.out_features(module.projection);
    if (pairs[i].a.shape() != mx::Shape{in, rank} || pairs[i].b.shape() != mx::Shape{rank, out}) {
      fail(fmt::format("{} has {} inputs and {} outputs here", module.path(), in, out));
    }
  }
  auto held = std::make_unique<HeldAdapter>(HeldAdapter{std::move(layout), {}});
  held->adapter.layout = &held->layout;
  held->adapter.pairs = std::move(pairs);
  held_ = std::move(held);
}

mx::array Llama::project(const mx::array& x, int layer, Projection projection,
                         const Adapter* adapter) const {
  const graft::mlx::Weight& weight =
      layers_[static_cast<std::size_t>(layer)].weights[index_of(projection)];
  const ModuleScope scope(AdaptedModule{layer, projection, 0, 0}.path());
  const int found = adapter ? adapter->layout->find(layer, projection) : -1;
  if (found < 0) return graft::mlx::linear(x, weight);

  const auto slot = static_cast<std::size_t>(found);
  const AdapterOptions& options = adapter->layout->options();
  const LoraPair& pair = adapter->pairs[slot];
  graft::mlx::Dropout dropout;
  if (adapter->dropout_seed) {
    dropout = {options.dropout, *adapter->dropout_seed, adapter->dropout_offsets[slot]};
  }
  return graft::mlx::lora_linear(x, weight, std::nullopt, pair.a, pair.b, options.scaling(),
                                 dropout);
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
  const mx::array y = [&] {
    const ModuleScope scope(fmt::format("model.layers.{}.self_attn", layer));
    if (cache) return attend_cached(q, k, v, layer, *cache, mask);
    AttentionOptions options{.scale = attention_scale(config_), .causal = true, .rotary = {}};
    options.rotary.enabled = true;
    options.rotary.theta = config_.rope_theta;
    return graft::mlx::attention(q, k, v, options);
  }();
  return project(mx::reshape(y, {batch, length, config_.num_heads * config_.head_dim}), layer,
                 Projection::kO, adapter);
}

mx::array Llama::attend_cached(const mx::array& q, const mx::array& k, const mx::array& v,
                               int layer, KvCache& cache,
                               const std::optional<mx::array>& mask) const {
  // Keys are turned once, on their way into the cache. MLX's rope wants (B, heads, T, d).
  const auto turn = [&](const mx::array& rows) {
    return mx::swapaxes(mx::fast::rope(mx::swapaxes(rows, 1, 2), config_.head_dim, false,
                                       config_.rope_theta, 1.0f, cache.length()),
                        1, 2);
  };
  const mx::array turned = turn(q);
  const auto [keys, values] = cache.append(layer, turn(k), v);
  const float scale = attention_scale(config_);
  if (!mask) {
    return graft::mlx::attention(turned, keys, values,
                                 {.scale = scale, .causal = true, .rotary = {}});
  }
  return mx::swapaxes(
      mx::fast::scaled_dot_product_attention(mx::swapaxes(turned, 1, 2), mx::swapaxes(keys, 1, 2),
                                             mx::swapaxes(values, 1, 2), scale, "", mask),
      1, 2);
}

mx::array Llama::feed_forward(const mx::array& x, int layer, const Adapter* adapter) const {
  const mx::array gate = project(x, layer, Projection::kGate, adapter);
  const mx::array up = project(x, layer, Projection::kUp, adapter);
  const mx::array gated = [&] {
    const ModuleScope scope(fmt::format("model.layers.{}.mlp", layer));
    return graft::mlx::swiglu(gate, up);
  }();
  return project(gated, layer, Projection::kDown, adapter);
}

mx::array Llama::hidden(const mx::array& tokens, KvCache* cache, const Adapter* adapter) const {
  const std::optional<mx::array> mask = cache ? cache->mask(tokens.shape(1)) : std::nullopt;
  const float eps = config_.rms_norm_eps;
  // Each block's output is added to the residual stream in the norm before the next block.
  mx::array residual = embedding_(tokens);
  mx::array normed = [&] {
    const ModuleScope scope("model.layers.0.input_layernorm");
    return graft::mlx::rms_norm(residual, layers_.front().attention_norm, eps);
  }();
  for (int index = 0; index < config_.num_layers; ++index) {
    const mx::array attended = attend(normed, index, cache, mask, adapter);
    {
      const ModuleScope scope(fmt::format("model.layers.{}.post_attention_layernorm", index));
      std::tie(normed, residual) = graft::mlx::add_rms_norm(
          attended, residual, layers_[static_cast<std::size_t>(index)].mlp_norm, eps);
    }
    const mx::array fed = feed_forward(normed, index, adapter);
    const bool last = index + 1 == config_.num_layers;
    const ModuleScope scope(last ? std::string("model.norm")
                                 : fmt::format("model.layers.{}.input_layernorm", index + 1));
    const mx::array& weight =
        last ? final_norm_ : layers_[static_cast<std::size_t>(index) + 1].attention_norm;
    std::tie(normed, residual) = graft::mlx::add_rms_norm(fed, residual, weight, eps);
  }
  if (cache) cache->advance(tokens.shape(1));
  return normed;
}

mx::array Llama::loss_sum(const mx::array& tokens, const mx::array& targets,
                          const Adapter* adapter) const {
  const mx::array rows = mx::reshape(hidden(tokens, nullptr, adapter), {-1, config_.hidden_size});
  const ModuleScope scope("lm_head");
  return mx::sum(graft::mlx::linear_cross_entropy(rows, head_, mx::reshape(targets, {-1})));
}

mx::array Llama::logits(const mx::array& tokens, const Adapter* adapter) const {
  const mx::array rows = hidden(tokens, nullptr, adapter);
  const ModuleScope scope("lm_head");
  return graft::mlx::linear(rows, head_);
}

mx::array Llama::next_logits(const mx::array& tokens, KvCache& cache,
                             const Adapter* adapter) const {
  const mx::array all = hidden(tokens, &cache, adapter);
  const int batch = all.shape(0);
  const int length = all.shape(1);
  const mx::array last = mx::slice(all, {0, length - 1, 0}, {batch, length, config_.hidden_size});
  const ModuleScope scope("lm_head");
  return graft::mlx::linear(mx::reshape(last, {batch, config_.hidden_size}), head_);
}

}  // namespace graft::app
