#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace graft::bench {

/// One way to compute a case on a GPU.
struct Contender {
  std::string name;
  /// Puts one call on `stream`, on the set of tensors with this index. Called while a graph is
  /// captured: it may not wait.
  std::function<void(cudaStream_t stream, std::size_t set)> call;
};

/// What one contender took.
struct Turns {
  double us = 0;               ///< Microseconds a call: the median over rounds.
  double low = 0, high = 0;    ///< The 10th and the 90th percentile.
  std::vector<double> ratios;  ///< To each contender in the same round: the median over rounds.
};

/// Times contenders against each other. Each is captured in a graph of `calls` calls that go round
/// the sets; each round replays every graph once, forwards and backwards in turn, and a ratio is
/// taken within a round: large products drift with the power that the device has left.
std::vector<Turns> take_turns(const std::vector<Contender>& contenders, std::size_t sets,
                              std::size_t calls, int rounds);

}  // namespace graft::bench
