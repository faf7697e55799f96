#pragma once

#include <string>
#include <utility>
#include <vector>

#include "graft/export.h"
#include "graft/tensor_view.h"

namespace graft {

/// Whether a call can run, and if not, why. Each operation's header declares
/// `Support supports(const <Params>&)` for its own parameters; a call that is not supported throws
/// Error (kUnsupported) with the same reason.
struct Support {
  bool yes = true;     ///< The call can run.
  std::string reason;  ///< Empty when `yes`.
  /// Which of a back-end's ways the call would run on, where it has several: on CUDA "small",
  /// "few_rows", "hopper", "ampere", "general" or two of them (docs/cuda.md); else empty.
  const char* path = "";

  /// `if (supports(params)) ...`.
  explicit operator bool() const { return yes; }

  /// "No", with the reason.
  static Support no(std::string reason) { return {false, std::move(reason), ""}; }
};

/// Whether this build and this machine have kernels for `type` at all.
GRAFT_EXPORT Support backend_available(DeviceType type);

/// The instruction set that CPU kernels run on here, the best first that both the build and the
/// CPU have: "avx512_bf16", "avx512", "avx2" or "portable". The environment variable GRAFT_CPU_ISA
/// may name a lesser one.
GRAFT_EXPORT const char* cpu_isa();

/// Every instruction set that this machine can run, best first.
GRAFT_EXPORT std::vector<std::string> cpu_isas();

/// Makes CPU kernels use `name`, one of `cpu_isas()`. Weights that are packed already keep their
/// layout and must be packed again. For tests and measurements: not while a call is running.
/// Throws Error if this machine cannot run it.
GRAFT_EXPORT void set_cpu_isa(const std::string& name);

}  // namespace graft
