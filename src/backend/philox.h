#pragma once

#include <array>
#include <cstdint>

#include "graft/lora.h"

namespace graft {

// Philox 4x32-7: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11.
// The multipliers and the key's Weyl increments are the paper's. Seven rounds pass its batteries of
// tests (its table 2); ten are the same with a margin.
inline constexpr std::uint32_t kPhiloxM0 = 0xD2511F53u;
inline constexpr std::uint32_t kPhiloxM1 = 0xCD9E8D57u;
inline constexpr std::uint32_t kPhiloxW0 = 0x9E3779B9u;
inline constexpr std::uint32_t kPhiloxW1 = 0xBB67AE85u;
inline constexpr int kPhiloxRounds = 7;

/// Four random words for one 128-bit counter and one 64-bit key, low words first.
inline std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                           std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const std::uint64_t p0 = static_cast<std::uint64_t>(kPhiloxM0) * counter[0];
    const std::uint64_t p1 = static_cast<std::uint64_t>(kPhiloxM1) * counter[2];
    counter = {
        static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(p1),
        static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(p0)};
    key[0] += kPhiloxW0;
    key[1] += kPhiloxW1;
  }
  return counter;
}

/// Philox of a 64-bit counter (its upper half zero) under a 64-bit seed.
inline std::array<std::uint32_t, 4> philox(std::uint64_t counter, std::uint64_t seed) {
  return philox(
      {static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0, 0},
      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
}

/// Field `index` of eight, 16 bits each: the low half of a word before its high half.
inline std::uint32_t philox_field(const std::array<std::uint32_t, 4>& words, std::uint64_t index) {
  return (words[index / 2] >> (index % 2 * 16)) & 0xffffu;
}

/// Whether dropout keeps the element with row-major index `element`.
inline bool dropout_keeps(std::uint64_t element, const Dropout& dropout) {
  return philox_field(philox(dropout.offset + element / 8, dropout.seed), element % 8) >=
         dropout.threshold();
}

}  // namespace graft
