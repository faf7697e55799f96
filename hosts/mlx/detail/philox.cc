#include "graft/mlx/detail/philox.h"

#include <array>
#include <cstdint>

#include "graft/lora.h"

namespace graft::mlx::detail {
namespace {

// Philox 4x32-7 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC11): multipliers
// and key increments of its table 2.
constexpr std::uint64_t kMultiplier0 = 0xD2511F53;
constexpr std::uint64_t kMultiplier1 = 0xCD9E8D57;
constexpr std::uint64_t kWeyl0 = 0x9E3779B9;
constexpr std::uint64_t kWeyl1 = 0xBB67AE85;
constexpr int kRounds = 7;

mx::array u64(std::uint64_t value) { return mx::array(value, mx::uint64); }

// 32-bit words are kept in uint64, so that a product of two shows its upper half.
struct Words {
  mx::Stream s;

  mx::array low(const mx::array& x) const { return mx::bitwise_and(x, u64(0xFFFFFFFF), s); }
  mx::array high(const mx::array& x) const { return mx::right_shift(x, u64(32), s); }
  mx::array exclusive_or(const mx::array& x, const mx::array& y) const {
    return mx::bitwise_xor(x, y, s);
  }
};

// (count, 8) random fields of 16 bits for counters offset .. offset + count − 1: of each word the
// low half, then the high half.
mx::array philox(const mx::array& seed, const mx::array& offset, int count, mx::Stream s) {
  const Words words{s};
  const auto counter = mx::add(mx::reshape(offset, {1}, s), mx::arange(count, mx::uint64, s), s);
  std::array<mx::array, 4> c{words.low(counter), words.high(counter), mx::zeros_like(counter, s),
                             mx::zeros_like(counter, s)};
  const auto key = mx::reshape(seed, {1}, s);
  auto k0 = words.low(key);
  auto k1 = words.high(key);
  for (int round = 0; round < kRounds; ++round) {
    const auto product0 = mx::multiply(u64(kMultiplier0), c[0], s);
    const auto product1 = mx::multiply(u64(kMultiplier1), c[2], s);
    c = {words.exclusive_or(words.exclusive_or(words.high(product1), c[1]), k0),
         words.low(product1),
         words.exclusive_or(words.exclusive_or(words.high(product0), c[3]), k1),
         words.low(product0)};
    k0 = words.low(mx::add(k0, u64(kWeyl0), s));
    k1 = words.low(mx::add(k1, u64(kWeyl1), s));
  }
  std::vector<mx::array> fields;
  for (const mx::array& word : c) {
    const mx::array high = mx::right_shift(word, u64(16), s);
    fields.push_back(mx::astype(mx::bitwise_and(word, u64(0xFFFF), s), mx::uint16, s));
    fields.push_back(mx::astype(high, mx::uint16, s));
  }
  return mx::stack(fields, 1, s);
}

}  // namespace

mx::array composed_dropout(const mx::array& x, float p, const mx::array& seed,
                           const mx::array& offset, mx::Stream s) {
  const graft::Dropout dropout{p};
  const auto size = static_cast<int>(x.size());
  const auto random = philox(seed, offset, (size + 7) / 8, s);
  const auto first = mx::slice(mx::flatten(random, s), {0}, {size}, s);
  const mx::array threshold(static_cast<std::uint16_t>(dropout.threshold()), mx::uint16);
  const auto keep = mx::reshape(mx::greater_equal(first, threshold, s), x.shape(), s);
  const auto scaled = mx::astype(mx::multiply(x, mx::array(dropout.scale()), s), x.dtype(), s);
  return mx::where(keep, scaled, mx::zeros_like(x, s), s);
}

}  // namespace graft::mlx::detail
