#pragma once

#include <cstdint>

namespace graft::cuda {

/// How many `parts` it takes to hold `count`, 0 or more.
constexpr std::int64_t divide_up(std::int64_t count, std::int64_t parts) {
  return (count + parts - 1) / parts;
}

/// `count` up to the next multiple of `step`.
constexpr std::int64_t round_up(std::int64_t count, std::int64_t step) {
  return divide_up(count, step) * step;
}

}  // namespace graft::cuda
