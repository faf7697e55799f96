#include "graft/llm/model/kv_cache.h"

#include "mlx/ops.h"

namespace graft::llm {
namespace {

// The cache grows by whole blocks, so that most steps write into memory that is there already.
constexpr int kBlockTokens = 128;

void store(std::optional<mx::array>& held, const mx::array& fresh, int length) {
  const int needed = length + fresh.shape(1);
  if (!held || held->shape(1) < needed) {
    const int capacity = (needed + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
    mx::Shape shape = fresh.shape();
    shape[1] = capacity - length;
    const mx::array room = mx::zeros(shape, fresh.dtype());
    held =
        held
            ? mx::concatenate(
                  {mx::slice(*held, {0, 0, 0, 0}, {shape[0], length, shape[2], shape[3]}), room}, 1)
            : room;
  }
  mx::Shape start = {0, length, 0, 0};
  mx::Shape stop = fresh.shape();
  stop[1] = needed;
  // Moved from, so that the update may happen in place.
  held = mx::slice_update(std::exchange(held, std::nullopt).value(), fresh, start, stop);
}

mx::array upto(const mx::array& held, int length) {
  mx::Shape stop = held.shape();
  stop[1] = length;
  return mx::slice(held, {0, 0, 0, 0}, stop);
}

}  // namespace

KvCache::KvCache(int num_layers, std::vector<int> padding)
    : layers_(static_cast<std::size_t>(num_layers)), padding_(std::move(padding)) {
  if (std::ranges::all_of(padding_, [](int pad) { return pad == 0; })) padding_.clear();
}

std::pair<mx::array, mx::array> KvCache::append(int layer, const mx::array& keys,
                                                const mx::array& values) {
  Layer& held = layers_[static_cast<std::size_t>(layer)];
  store(held.keys, keys, length_);
  store(held.values, values, length_);
  const int total = length_ + keys.shape(1);
  return {upto(*held.keys, total), upto(*held.values, total)};
}

std::pair<mx::array, mx::array> KvCache::layer(int layer) const {
  const Layer& held = layers_[static_cast<std::size_t>(layer)];
  return {upto(*held.keys, length_), upto(*held.values, length_)};
}

std::optional<mx::array> KvCache::mask(int tokens) const {
  if (padding_.empty()) return std::nullopt;
  const int total = length_ + tokens;
  const mx::array key = mx::reshape(mx::arange(total), {1, 1, 1, total});
  const mx::array query = mx::reshape(mx::arange(length_, total), {1, 1, tokens, 1});
  const mx::array causal = mx::less_equal(key, query);
  const int rows = static_cast<int>(padding_.size());
  const mx::array first = mx::array(padding_.data(), {rows, 1, 1, 1}, mx::int32);
  return mx::logical_and(causal, mx::greater_equal(key, first));
}

void KvCache::select_rows(const std::vector<int>& rows) {
  const mx::array index = mx::array(rows.data(), {static_cast<int>(rows.size())}, mx::int32);
  for (Layer& layer : layers_) {
    if (!layer.keys) continue;
    layer.keys = mx::take(*layer.keys, index, 0);
    layer.values = mx::take(*layer.values, index, 0);
  }
  if (padding_.empty()) return;
  std::vector<int> kept;
  kept.reserve(rows.size());
  for (const int row : rows) kept.push_back(padding_[static_cast<std::size_t>(row)]);
  padding_ = std::move(kept);
}

std::vector<mx::array> KvCache::arrays() const {
  std::vector<mx::array> held;
  for (const Layer& layer : layers_) {
    if (!layer.keys) continue;
    held.push_back(*layer.keys);
    held.push_back(*layer.values);
  }
  return held;
}

}  // namespace graft::llm
