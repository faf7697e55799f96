#include "graft/llm/model/llama.h"

#include <fmt/format.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "graft/llm/user_error.h"
#include "graft/mlx/attention.h"
#include "graft/mlx/fusion.h"
#include "graft/mlx/linear_cross_entropy.h"
#include "graft/mlx/lora_siblings.h"
#include "graft/mlx/rms_norm.h"
#include "graft/mlx/swiglu.h"
#include "mlx/fast.h"
#include "mlx/memory.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace graft::llm {

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

std::int64_t Llama::packed_bytes(const LlamaConfig& config, const LlamaOptions& options) {
  const auto bytes = [&](int out_features, int in_features) {
    return static_cast<std::int64_t>(
        graft::mlx::packed_nbytes(out_features, in_features, options.dtype, options.training));
  };
  std::int64_t layer = 0;
  for (const Projection projection : kAllProjections) {
    layer += bytes(config.out_features(projection), config.in_features(projection));
  }
  return bytes(config.vocab_size, config.hidden_size) + config.num_layers * layer;
}

std::int64_t Llama::packed_bytes() const {
  std::size_t bytes = head_.nbytes();
  for (const Layer& layer : layers_) {
    for (const graft::Weight& weight : layer.weights) bytes += weight.nbytes();
  }
  return static_cast<std::int64_t>(bytes);
}

void Llama::set_adapter(AdapterLayout layout, std::vector<LoraPair> pairs) {
  const auto fail = [](const std::string& what) {
    throw UserError("the adapter is of another model: " + what);
  };
  for (const AdaptedModule& module : layout.modules()) {
    if (module.layer >= config_.num_layers) {
      fail(fmt::format("{}: this model has {} layers", module.path(), config_.num_layers));
    }
    const int in = config_.in_features(module.projection);
    const int out = config_.out_features(module.projection);
    if (module.in_features != in || module.out_features != out) {
      fail(fmt::format("{} has {} inputs and {} outputs here", module.path(), in, out));
    }
  }
  layout.check(pairs);
  auto held = std::make_unique<HeldAdapter>(HeldAdapter{std::move(layout), {}});
  held->adapter.layout = &held->layout;
  held->adapter.pairs = std::move(pairs);
  held_ = std::move(held);
}

graft::mlx::LoraSibling Llama::sibling(int layer, Projection projection,
                                       const ModelAdapter* adapter) const {
  graft::mlx::LoraSibling sibling{
      .weight = layers_[static_cast<std::size_t>(layer)].weights[index_of(projection)],
      .module = AdaptedModule{layer, projection, 0, 0}.path()};
  const int found = adapter ? adapter->layout->find(layer, projection) : -1;
  if (found < 0) return sibling;

  const auto slot = static_cast<std::size_t>(found);
  const AdapterOptions& options = adapter->layout->options();
  sibling.a = adapter->pairs[slot].a;
  sibling.b = adapter->pairs[slot].b;
  sibling.scaling = options.scaling();
  if (adapter->dropout_seed) {
    sibling.dropout = {options.dropout, *adapter->dropout_seed, adapter->dropout_offsets[slot]};
  }
  return sibling;
}

std::vector<mx::array> Llama::project(const mx::array& x, int layer,
                                      std::initializer_list<Projection> projections,
                                      const ModelAdapter* adapter) const {
  std::vector<graft::mlx::LoraSibling> siblings;
  for (const Projection projection : projections) {
    siblings.push_back(sibling(layer, projection, adapter));
  }
  return graft::mlx::lora_siblings(x, siblings);
}

mx::array Llama::attend(const mx::array& x, int layer, KvCache* cache,
                        const std::optional<mx::array>& mask, const ModelAdapter* adapter) const {
  const int batch = x.shape(0);
  const int length = x.shape(1);
  const std::vector<mx::array> qkv =
      project(x, layer, {Projection::kQ, Projection::kK, Projection::kV}, adapter);
  const auto heads = [&](std::size_t i, int count) {
    return mx::reshape(qkv[i], {batch, length, count, config_.head_dim});
  };
  const mx::array q = heads(0, config_.num_heads);
  const mx::array k = heads(1, config_.num_kv_heads);
  const mx::array v = heads(2, config_.num_kv_heads);
  const mx::array y = [&] {
    const ModuleScope scope(fmt::format("model.layers.{}.self_attn", layer));
    if (cache) return attend_cached(q, k, v, layer, *cache, mask);
    AttentionOptions options{.scale = attention_scale(config_), .causal = true, .rotary = {}};
    options.rotary.enabled = true;
    options.rotary.theta = config_.rope_theta;
    options.rotary.scaling_factor = config_.rope_scaling_factor;
    return graft::mlx::attention(q, k, v, options);
  }();
  return project(mx::reshape(y, {batch, length, config_.num_heads * config_.head_dim}), layer,
                 {Projection::kO}, adapter)[0];
}

mx::array Llama::attend_cached(const mx::array& q, const mx::array& k, const mx::array& v,
                               int layer, KvCache& cache,
                               const std::optional<mx::array>& mask) const {
  // Keys are turned once, on their way into the cache. MLX's rope wants (B, heads, T, d).
  const auto turn = [&](const mx::array& rows) {
    return mx::swapaxes(
        mx::fast::rope(mx::swapaxes(rows, 1, 2), config_.head_dim, false, config_.rope_theta,
                       1.0f / config_.rope_scaling_factor, cache.length()),
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

mx::array Llama::feed_forward(const mx::array& x, int layer, const ModelAdapter* adapter) const {
  const std::vector<mx::array> gate_up =
      project(x, layer, {Projection::kGate, Projection::kUp}, adapter);
  const mx::array gated = [&] {
    const ModuleScope scope(fmt::format("model.layers.{}.mlp", layer));
    return graft::mlx::swiglu(gate_up[0], gate_up[1]);
  }();
  return project(gated, layer, {Projection::kDown}, adapter)[0];
}

Llama::Stream Llama::with_norm(const mx::array& residual, int layer) const {
  const ModuleScope scope(fmt::format("model.layers.{}.input_layernorm", layer));
  const mx::array& weight = layers_[static_cast<std::size_t>(layer)].attention_norm;
  return {graft::mlx::rms_norm(residual, weight, config_.rms_norm_eps), residual};
}

// Each block's output is added to the residual stream in the norm before the next block.
Llama::Stream Llama::through_layer(const Stream& in, int layer, KvCache* cache,
                                   const std::optional<mx::array>& mask,
                                   const ModelAdapter* adapter) const {
  const auto add_norm = [&](const mx::array& x, const mx::array& residual, const mx::array& weight,
                            const std::string& module) -> Stream {
    const ModuleScope scope(module);
    auto [normed, sum] = graft::mlx::add_rms_norm(x, residual, weight, config_.rms_norm_eps);
    return {normed, sum};
  };
  const Layer& here = layers_[static_cast<std::size_t>(layer)];
  const Stream middle =
      add_norm(attend(in.normed, layer, cache, mask, adapter), in.residual, here.mlp_norm,
               fmt::format("model.layers.{}.post_attention_layernorm", layer));
  const mx::array fed = feed_forward(middle.normed, layer, adapter);
  if (layer + 1 == config_.num_layers) {
    return add_norm(fed, middle.residual, final_norm_, "model.norm");
  }
  return add_norm(fed, middle.residual, layers_[static_cast<std::size_t>(layer) + 1].attention_norm,
                  fmt::format("model.layers.{}.input_layernorm", layer + 1));
}

// As through_layer, but backward finds nothing of the layer but in.residual. in.normed is made
// again as well: the norm alone gives the same bits as the one that added the same sum up.
Llama::Stream Llama::through_recomputed_layer(const Stream& in, int layer,
                                              const ModelAdapter& adapter) const {
  std::vector<mx::array> variables = {in.normed, in.residual};  // then the layer's pairs
  std::vector<std::size_t> slots;
  for (const Projection projection : kAllProjections) {
    const int found = adapter.layout->find(layer, projection);
    if (found < 0) continue;
    slots.push_back(static_cast<std::size_t>(found));
    variables.push_back(adapter.pairs[slots.back()].a);
    variables.push_back(adapter.pairs[slots.back()].b);
  }
  const bool first = layer == adapter.layout->modules().front().layer;
  const auto forward = [this, layer, slots, adapter, first](const std::vector<mx::array>& x) {
    ModelAdapter here = adapter;
    for (std::size_t i = 0; i < slots.size(); ++i) {
      here.pairs[slots[i]] = {x[2 + 2 * i], x[3 + 2 * i]};
    }
    Stream stream{x[0], x[1]};
    // Below the first pairs nobody asks for gradients, and the kernels leave them out.
    if (first) stream = {mx::stop_gradient(x[0]), mx::stop_gradient(x[1])};
    const Stream out = through_layer(stream, layer, nullptr, std::nullopt, &here);
    return std::vector<mx::array>{out.normed, out.residual};
  };
  const auto backward = [this, layer, forward](const std::vector<mx::array>& x,
                                               const std::vector<mx::array>& gradients,
                                               const std::vector<mx::array>&) {
    // Not before the gradients have come down to this layer: otherwise MLX may compute several
    // layers again before it needs the first.
    const std::vector<mx::array> kept = mx::depends({x.begin() + 1, x.end()}, gradients);
    const Stream stream = with_norm(kept[0], layer);
    std::vector<mx::array> again = {stream.normed, stream.residual};
    again.insert(again.end(), kept.begin() + 1, kept.end());
    return mx::vjp(forward, again, gradients).second;
  };
  const std::vector<mx::array> out = mx::custom_vjp(forward, backward)(variables);
  return {out[0], out[1]};
}

mx::array Llama::hidden(const mx::array& tokens, KvCache* cache, const ModelAdapter* adapter,
                        Activations activations) const {
  const std::optional<mx::array> mask = cache ? cache->mask(tokens.shape(1)) : std::nullopt;
  Stream stream = with_norm(embedding_(tokens), 0);
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    // Layers below the first pairs keep nothing in any case: they have no gradients.
    const bool recompute = activations == Activations::kRecomputed && adapter != nullptr &&
                           layer >= adapter->layout->modules().front().layer;
    stream = recompute ? through_recomputed_layer(stream, layer, *adapter)
                       : through_layer(stream, layer, cache, mask, adapter);
  }
  if (cache) cache->advance(tokens.shape(1));
  return stream.normed;
}

mx::array Llama::loss_sum(const mx::array& tokens, const mx::array& targets,
                          const ModelAdapter* adapter, Activations activations) const {
  const mx::array rows =
      mx::reshape(hidden(tokens, nullptr, adapter, activations), {-1, config_.hidden_size});
  const ModuleScope scope("lm_head");
  return mx::sum(graft::mlx::linear_cross_entropy(rows, head_, mx::reshape(targets, {-1})));
}

mx::array Llama::logits(const mx::array& tokens, const ModelAdapter* adapter) const {
  const mx::array rows = hidden(tokens, nullptr, adapter);
  const ModuleScope scope("lm_head");
  return graft::mlx::linear(rows, head_);
}

mx::array Llama::next_logits(const mx::array& tokens, KvCache& cache,
                             const ModelAdapter* adapter) const {
  const mx::array all = hidden(tokens, &cache, adapter);
  const int batch = all.shape(0);
  const int length = all.shape(1);
  const mx::array last = mx::slice(all, {0, length - 1, 0}, {batch, length, config_.hidden_size});
  const ModuleScope scope("lm_head");
  return graft::mlx::linear(mx::reshape(last, {batch, config_.hidden_size}), head_);
}

}  // namespace graft::llm
