#include "graft/mlx/detail/philox.h"

#include <array>
#include <cmath>
#include <cstdint>

namespace graft::mlx::detail {
namespace {

// Philox 4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC11): multipliers
// and key increments of its table 2.
constexpr std::uint64_t kMultiplier0 = 0xD2511F53;
constexpr std::uint64_t kMultiplier1 = 0xCD9E8D57;
constexpr std::uint64_t kWeyl0 = 0x9E3779B9;
constexpr std::uint64_t kWeyl1 = 0xBB67AE85;
constexpr int kRounds = 10;

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

// (count, 4) random 32-bit words for counters offset .. offset + count − 1.
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
  return mx::stack({c[0], c[1], c[2], c[3]}, 1, s);
}

}  // namespace

std::uint32_t dropout_threshold(float p) {
  return static_cast<std::uint32_t>(std::ceil(std::ldexp(double{p}, 32)));
}

mx::array composed_dropout(const mx::array& x, float p, const mx::array& seed,
                           const mx::array& offset, mx::Stream s) {
  const auto size = static_cast<int>(x.size());
  const auto random = philox(seed, offset, (size + 3) / 4, s);
  const auto first = mx::slice(mx::flatten(random, s), {0}, {size}, s);
  const auto keep =
      mx::reshape(mx::greater_equal(first, u64(dropout_threshold(p)), s), x.shape(), s);
  const auto scale = mx::array(1.0f / (1.0f - p), x.dtype());
  return mx::where(keep, mx::multiply(x, scale, s), mx::zeros_like(x, s), s);
}

}  // namespace graft::mlx::detail
