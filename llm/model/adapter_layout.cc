#include "graft/llm/model/adapter_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "graft/llm/user_error.h"
#include "graft/lora.h"
#include "mlx/ops.h"
#include "mlx/random.h"
#include "mlx/transforms.h"

namespace graft::llm {

std::string AdaptedModule::path() const {
  return fmt::format("model.layers.{}.{}.{}", layer, block_of(projection), name_of(projection));
}

std::vector<int> last_layers(const LlamaConfig& config, int count) {
  if (count == -1 || count == config.num_layers) return {};
  if (count < 1 || count > config.num_layers) {
    throw UserError(fmt::format("layers to adapt: expected -1 (all) or 1 to {}, got {}",
                                config.num_layers, count));
  }
  std::vector<int> layers(static_cast<std::size_t>(count));
  std::iota(layers.begin(), layers.end(), config.num_layers - count);
  return layers;
}

AdapterLayout::AdapterLayout(const LlamaConfig& config, AdapterOptions options)
    : options_(std::move(options)) {
  if (options_.rank < 1 || options_.rank > kMaxLoraRank) {
    throw UserError(
        fmt::format("adapter rank: expected 1 to {}, got {}", kMaxLoraRank, options_.rank));
  }
  if (!std::isfinite(options_.alpha) || options_.alpha <= 0) {
    throw UserError(fmt::format("adapter alpha: expected above 0, got {}", options_.alpha));
  }
  if (!Dropout{options_.dropout}.valid()) {
    throw UserError(
        fmt::format("adapter dropout: expected 0 to below 1, got {}", options_.dropout));
  }
  if (options_.targets.empty()) throw UserError("an adapter needs at least one target module");

  slots_.assign(static_cast<std::size_t>(config.num_layers) * kNumProjections, -1);
  for (const int layer : options_.layers) {
    if (layer < 0 || layer >= config.num_layers) {
      throw UserError(fmt::format("adapter layer {}: the model has layers 0 to {}", layer,
                                  config.num_layers - 1));
    }
  }
  const auto holds = [](const auto& list, auto value) {
    return std::ranges::find(list, value) != list.end();
  };
  for (int layer = 0; layer < config.num_layers; ++layer) {
    if (!all_layers() && !holds(options_.layers, layer)) continue;
    for (const Projection projection : kAllProjections) {
      if (!holds(options_.targets, projection)) continue;
      slots_[static_cast<std::size_t>(layer) * kNumProjections + index_of(projection)] =
          static_cast<int>(modules_.size());
      const int in = config.in_features(projection), out = config.out_features(projection);
      if (options_.rank > std::min(in, out)) {
        throw UserError(
            fmt::format("adapter rank: expected at most {}, the smaller side of {}, got {}",
                        std::min(in, out), name_of(projection), options_.rank));
      }
      modules_.push_back({layer, projection, in, out});
    }
  }
}

int AdapterLayout::find(int layer, Projection projection) const {
  return slots_[static_cast<std::size_t>(layer) * kNumProjections + index_of(projection)];
}

std::int64_t AdapterLayout::num_parameters() const {
  std::int64_t count = 0;
  for (const AdaptedModule& module : modules_) {
    count += std::int64_t{options_.rank} * (module.in_features + module.out_features);
  }
  return count;
}

void AdapterLayout::check(const std::vector<LoraPair>& pairs) const {
  if (pairs.size() != modules_.size()) {
    throw UserError(fmt::format("adapter pairs: expected {}, one for each adapted module, got {}",
                                modules_.size(), pairs.size()));
  }
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const AdaptedModule& module = modules_[i];
    const auto check_matrix = [&](const char* name, const mx::array& matrix, mx::Shape expected) {
      if (matrix.shape() == expected) return;
      throw UserError(fmt::format("{}, {}: expected ({}), got ({})", module.path(), name,
                                  fmt::join(expected, ", "), fmt::join(matrix.shape(), ", ")));
    };
    check_matrix("A", pairs[i].a, {module.in_features, options_.rank});
    check_matrix("B", pairs[i].b, {options_.rank, module.out_features});
  }
}

std::vector<LoraPair> AdapterLayout::initial_pairs(std::uint64_t seed) const {
  std::vector<LoraPair> pairs;
  pairs.reserve(modules_.size());
  mx::random::KeySequence keys(seed);
  for (const AdaptedModule& module : modules_) {
    const float bound = 1.0f / std::sqrt(static_cast<float>(module.in_features));
    pairs.push_back({mx::random::uniform(-bound, bound, {module.in_features, options_.rank},
                                         mx::float32, keys.next()),
                     mx::zeros({options_.rank, module.out_features})});
    mx::eval(pairs.back().a, pairs.back().b);
  }
  return pairs;
}

}  // namespace graft::llm
