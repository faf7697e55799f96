#include "graft/mlx/lora_layer.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "graft/lora.h"
#include "graft/mlx/detail/lora_primitive.h"
#include "graft/mlx/detail/views.h"
#include "graft/mlx/fusion.h"

namespace graft::mlx {
namespace {

constexpr const char* kLayer = "LoRALayer";

void check(const LoRAOptions& options, const Weight& weight) {
  detail::expect_present(kLayer, "weight", weight);
  const auto largest = std::min({kMaxLoraRank, weight.in_features(), weight.out_features()});
  if (options.rank < 1 || options.rank > largest) {
    detail::reject(kLayer, "rank", "1 to " + std::to_string(largest), std::to_string(options.rank));
  }
  if (!(options.alpha > 0.0f && std::isfinite(options.alpha))) {
    detail::reject(kLayer, "alpha", "a finite number above 0", std::to_string(options.alpha));
  }
  detail::expect_dropout(kLayer, options.dropout);
}

// One of two keys split from the caller's, or a key of MLX's global sequence.
std::optional<mx::array> subkey(const std::optional<mx::array>& key, int index) {
  if (!key) return std::nullopt;
  const auto [first, second] = mx::random::split(*key);
  return index == 0 ? first : second;
}

// Uniform in ±1/√in: kaiming_uniform with a = √5 (He et al., arXiv:1502.01852, with the gain
// PyTorch gives its linear layers), which is how PEFT and mlx-lm draw A.
mx::array initial_a(int in_features, const LoRAOptions& options) {
  const float bound = 1.0f / std::sqrt(static_cast<float>(in_features));
  return mx::random::uniform(mx::array(-bound), mx::array(bound), {in_features, options.rank},
                             mx::float32, subkey(options.key, 0));
}

// 64 random bits.
mx::array initial_seed(const LoRAOptions& options) {
  const auto words = mx::astype(mx::random::bits({2}, 4, subkey(options.key, 1)), mx::uint64);
  const auto shifts = mx::array({std::uint64_t{1}, std::uint64_t{1} << 32}, mx::uint64);
  return mx::sum(mx::multiply(words, shifts));
}

}  // namespace

LoRALayer::LoRALayer(const mx::array& weight, std::optional<mx::array> bias,
                     const LoRAOptions& options)
    : LoRALayer(pack(weight, options.dtype), std::move(bias), options) {}

LoRALayer::LoRALayer(Weight weight, std::optional<mx::array> bias, const LoRAOptions& options)
    : base_((check(options, weight), std::move(weight))),
      bias_(std::move(bias)),
      a_(initial_a(in_features(), options)),
      b_(mx::zeros({options.rank, out_features()}, mx::float32)),
      scaling_(options.alpha / static_cast<float>(options.rank)),
      dropout_{options.dropout, initial_seed(options), mx::array(std::uint64_t{0}, mx::uint64)},
      name_(options.name) {
  if (bias_) detail::expect_shape(kLayer, "bias", *bias_, {out_features()});
  // Now, so that threads that share the layer find evaluated arrays.
  mx::eval(a_, b_, dropout_.seed, dropout_.offset);
}

mx::array LoRALayer::forward(const mx::array& x) {
  const mx::array y = std::as_const(*this).forward(x, a_, b_, dropout_);
  if (training_ && dropout_.p > 0.0f && !merged()) {
    dropout_.offset = mx::add(dropout_.offset, mx::array(dropout_counters(x), mx::uint64));
  }
  return y;
}

mx::array LoRALayer::forward(const mx::array& x, const mx::array& a, const mx::array& b,
                             const DropoutState& dropout) const {
  const ModuleScope scope(name_.empty() ? ModuleScope::current() : name_);
  if (merged()) return linear(x, merged_, bias_);
  return lora_linear(x, base_, bias_, a, b, scaling_, training_ ? dropout : DropoutState{});
}

std::int64_t LoRALayer::num_parameters() const {
  return std::int64_t{rank()} * (in_features() + out_features());
}

void LoRALayer::merge() {
  if (merged()) return;
  const auto delta = mx::multiply(mx::matmul(a_, b_), mx::array(scaling_));
  const auto w = mx::add(mx::astype(unpack(base_), mx::float32), mx::transpose(delta));
  merged_ = pack(w, detail::dtype_of(base_.dtype()), base_.serves(Direction::kBackward));
}

void LoRALayer::set_a(mx::array a) {
  if (merged()) throw std::logic_error("[LoRALayer] unmerge before changing the adapter");
  detail::expect_shape(kLayer, "a", a, a_.shape());
  a_ = std::move(a);
}

void LoRALayer::set_b(mx::array b) {
  if (merged()) throw std::logic_error("[LoRALayer] unmerge before changing the adapter");
  detail::expect_shape(kLayer, "b", b, b_.shape());
  b_ = std::move(b);
}

void LoRALayer::set_dropout_state(mx::array seed, mx::array offset) {
  dropout_.seed = detail::counter_of(kLayer, "seed", seed, mx::to_stream({}));
  dropout_.offset = detail::counter_of(kLayer, "offset", offset, mx::to_stream({}));
}

}  // namespace graft::mlx
