#pragma once

#include <string>
#include <vector>

#include "apps/graft/user_error.h"
#include "graft/llm/model/adapter_layout.h"
#include "graft/mlx/fusion.h"

namespace graft::app {

/// How the operations of a run were done, from the host's counts.
struct FusionSummary {
  /// One row for each kind of module and operation, with the reasons of what was not fused.
  std::string table;
  /// Adapted modules that did not run fused every time, forward or backward. Empty if all did.
  std::vector<std::string> unfused_modules;
};

/// `trained` says whether backward passes are expected.
FusionSummary summarize_fusion(const std::vector<graft::mlx::FusionRecord>& records,
                               const AdapterLayout& layout, bool trained);

}  // namespace graft::app
