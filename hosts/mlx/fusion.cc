#include "graft/mlx/fusion.h"

#include <mlx/backend/metal/metal.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "graft/mlx/detail/tally.h"

namespace graft::mlx {
namespace {

// Of the process, as MLX's default device is: any code that calls the operations is to obey it.
std::atomic<bool>& fused_flag() {
  static std::atomic<bool> enabled = [] {
    const char* value = std::getenv("GRAFT_FUSED");
    return value == nullptr || std::string_view(value) != "0";
  }();
  return enabled;
}

// Of this thread, as scopes are.
thread_local const ModuleScope* innermost = nullptr;

}  // namespace

const char* name_of(Pass pass) {
  switch (pass) {
    case Pass::kForward:
      return "forward";
    case Pass::kBackward:
      return "backward";
    case Pass::kTangent:
      return "tangent";
  }
  return "";
}

std::vector<FusionRecord> fusion_report() { return detail::Tallies::instance().report(); }

Support metal_available() {
  return ::mlx::core::metal::is_available() ? Support{} : Support::no("MLX has no Metal here");
}

void reset_fusion_report() { detail::Tallies::instance().reset(); }

bool fused_enabled() { return fused_flag().load(std::memory_order_relaxed); }

void set_fused_enabled(bool enabled) { fused_flag().store(enabled, std::memory_order_relaxed); }

ModuleScope::ModuleScope(std::string name) : name_(std::move(name)), outer_(innermost) {
  innermost = this;
}

ModuleScope::~ModuleScope() { innermost = outer_; }

std::string ModuleScope::current() { return innermost == nullptr ? "" : innermost->name_; }

}  // namespace graft::mlx
