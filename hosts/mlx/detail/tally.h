#pragma once

#include <mlx/mlx.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "graft/mlx/fusion.h"

namespace graft::mlx::detail {

namespace mx = ::mlx::core;

// Who is counted: an op, called within a module.
struct Caller {
  const char* op;
  std::string module = ModuleScope::current();
};

// One line of the report. Lives as long as the process: graph nodes keep pointers to it.
class Tally {
 public:
  void add() { runs_.fetch_add(1, std::memory_order_relaxed); }

 private:
  friend class Tallies;
  std::atomic<std::uint64_t> runs_{0};
};

// All of them, for the process: a node's runs are counted whoever made its graph, even after they
// are gone.
class Tallies {
 public:
  static Tallies& instance();

  // The line for these; an empty reason means fused.
  Tally& line(const Caller& caller, Pass pass, const std::string& reason = "");
  std::vector<FusionRecord> report();
  void reset();

 private:
  using Key = std::tuple<std::string, std::string, Pass, std::string>;
  std::mutex mutex_;
  std::map<Key, Tally> lines_;
};

// `x` itself, through a graph node that counts each evaluation as a composed run of `caller`, and,
// if asked, each evaluation of its gradient as a composed backward run.
mx::array counted(const mx::array& x, const Caller& caller, Pass pass, const std::string& reason,
                  mx::Stream stream);

}  // namespace graft::mlx::detail
