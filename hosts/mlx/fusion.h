#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graft/export.h"
#include "graft/supports.h"

namespace graft::mlx {

/// Which derivative of an operation a record is about.
enum class Pass : std::uint8_t {
  kForward,   ///< The value.
  kBackward,  ///< Reverse mode: `mx::vjp`, `mx::grad`.
  kTangent,   ///< Forward mode: `mx::jvp`.
};

/// "forward", "backward" or "tangent".
GRAFT_EXPORT const char* name_of(Pass pass);

/// How often one operation of one module ran, one way and for one reason.
struct FusionRecord {
  std::string op;              ///< "lora_linear", "lora_delta", "linear", "swiglu", ...
  std::string module;          ///< The innermost ModuleScope when the op was called; may be empty.
  Pass pass = Pass::kForward;  ///< Which derivative ran.
  bool fused = true;           ///< If false, composed from MLX's own ops.
  std::string reason;          ///< Why not fused; empty if it was.
  std::uint64_t runs = 0;  ///< Evaluations, not calls: a compiled graph counts each time it runs.
};

/// What has been evaluated since the start or the last reset, by any thread; records with no runs
/// are left out. Sorted by op, module, pass.
GRAFT_EXPORT std::vector<FusionRecord> fusion_report();

/// Sets every count to zero.
GRAFT_EXPORT void reset_fusion_report();

/// Whether operations on a GPU's stream have Metal kernels to run; and if not, why.
GRAFT_EXPORT Support metal_available();

/// Whether operations use the fused kernels where they can. At first true, unless the environment
/// says GRAFT_FUSED=0.
GRAFT_EXPORT bool fused_enabled();

/// Turns fusion on or off for graphs built from now on, in all threads.
GRAFT_EXPORT void set_fused_enabled(bool enabled);

/// While it lives, operations called on this thread are recorded under `name`, for example
/// "model.layers.0.self_attn.q_proj"; their backward passes too. Scopes nest; the innermost counts.
class GRAFT_EXPORT ModuleScope {
 public:
  explicit ModuleScope(std::string name);  ///< Enters the scope.
  ~ModuleScope();                          ///< Leaves it.
  ModuleScope(const ModuleScope&) = delete;
  ModuleScope& operator=(const ModuleScope&) = delete;

  /// The innermost scope's name on this thread, or "".
  static std::string current();

 private:
  std::string name_;
  const ModuleScope* outer_;
};

}  // namespace graft::mlx
