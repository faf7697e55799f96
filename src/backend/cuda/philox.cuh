#pragma once

#include <cstdint>

#include "backend/philox.h"
#include "graft/lora.h"

// Dropout on the device: the masks of backend/philox.h, bit for bit. A call of Philox makes the
// masks of eight elements that follow each other in the rows: kernels ask for them by group
// (element / 8) where they can.

namespace graft::cuda {

/// The eight 16-bit fields of one counter, the low half of a word before its high half.
struct PhiloxWords {
  std::uint32_t words[4];

  /// By comparisons: a word picked by an index that only the run knows would lie in memory.
  __device__ std::uint32_t field(int index) const {
    const std::uint32_t low = index < 2 ? words[0] : words[1];
    const std::uint32_t high = index < 6 ? words[2] : words[3];
    return ((index < 4 ? low : high) >> (index % 2 * 16)) & 0xffffu;
  }
};

/// Philox 4x32-7 of a 64-bit counter, given in halves (its upper 64 bits are zero), under a 64-bit
/// seed. Calls that share the upper half share a product of the second round.
__device__ inline PhiloxWords philox_words(std::uint32_t low, std::uint32_t high,
                                           std::uint64_t seed) {
  std::uint32_t c0 = low, c1 = high, c2 = 0, c3 = 0;
  std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = seed >> 32;
#pragma unroll
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const std::uint32_t high0 = __umulhi(kPhiloxM0, c0), low0 = kPhiloxM0 * c0;
    const std::uint32_t high1 = __umulhi(kPhiloxM1, c2), low1 = kPhiloxM1 * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return {{c0, c1, c2, c3}};
}
__device__ inline PhiloxWords philox_words(std::uint64_t counter, std::uint64_t seed) {
  return philox_words(static_cast<std::uint32_t>(counter),
                      static_cast<std::uint32_t>(counter >> 32), seed);
}

/// What a thread makes masks from.
struct Masks {
  std::uint64_t seed, offset;
  std::uint32_t threshold;
  float scale;  ///< Of an element that is kept. Sums may be multiplied by it instead.

  /// The fields of elements 8·group to 8·group + 7, row-major; one is dropped if its field is below
  /// the threshold.
  __device__ PhiloxWords words(std::uint64_t group) const {
    return philox_words(offset + group, seed);
  }
  /// Whether one element is kept, at the cost of eight.
  __device__ bool keeps(std::uint64_t element) const {
    return words(element / 8).field(static_cast<int>(element % 8)) >= threshold;
  }
};

/// Dropout as a kernel is given it: seed and offset by value or, so that a replayed graph draws new
/// masks, from memory that is read when the kernel runs.
struct DropoutArgs {
  const std::uint64_t* state = nullptr;         ///< The seed; null: the two values.
  const std::uint64_t* offset_state = nullptr;  ///< The offset, if there is a state.
  std::uint64_t seed = 0, offset = 0;
  std::uint32_t threshold = 0;  ///< 0: no dropout.
  float scale = 1.0f;

  DropoutArgs() = default;
  /// Null: no dropout.
  explicit DropoutArgs(const Dropout* dropout) {
    if (dropout == nullptr || dropout->threshold() == 0) return;
    state = dropout->state, seed = dropout->seed, offset = dropout->offset;
    if (state != nullptr) {
      offset_state = dropout->offset_state != nullptr ? dropout->offset_state : state + 1;
    }
    threshold = dropout->threshold(), scale = dropout->scale();
  }

  __host__ __device__ bool any() const { return threshold > 0; }
  /// Reads the state: after griddepcontrol.wait where a kernel before this one may write it.
  __device__ Masks masks() const {
    if (state == nullptr) return {seed, offset, threshold, scale};
    return {*state, *offset_state, threshold, scale};
  }
};

}  // namespace graft::cuda
