#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "graft/export.h"
#include "graft/tensor_view.h"

namespace graft {

struct LayerNormForward;
struct LayerNormBackward;
struct LinearForward;
struct LinearBackward;
struct LoraDeltaForward;
struct LoraDeltaBackward;
struct LoraLinearForward;
struct LoraLinearBackward;
struct RmsNormForward;
struct RmsNormBackward;
struct SoftmaxForward;
struct SoftmaxBackward;

/// Kernels for Apple GPUs, as text, and what to launch of them. The core has no Metal to run them
/// with: a host that has compiles and launches what `plan` says.
namespace metal {

/// A function of a shader's text, made for template arguments of its own.
struct Kernel {
  using Argument = std::variant<int, bool, DType>;  ///< A type becomes the type of that name.

  std::string function;             ///< A template in the text.
  std::vector<const char*> parts;   ///< The text in pieces, each complete; static memory.
  std::vector<Argument> arguments;  ///< Of the template, in order.

  /// What the instance is called in its text; no two instances have a name in common.
  GRAFT_EXPORT std::string name() const;
  /// The whole source, to be compiled as it is, with that one kernel in it. Metal 3.1.
  GRAFT_EXPORT std::string text() const;
};

/// A buffer of a plan: one of the call's inputs or outputs, or memory for the plan alone.
struct Operand {
  /// Which list it is in.
  enum class Of : std::uint8_t {
    kInputs,       ///< The call's inputs.
    kOutputs,      ///< The call's outputs.
    kTemporaries,  ///< The plan's temporaries.
  };
  Of of = Of::kInputs;  ///< The list.
  int index = 0;        ///< Its place there.
};

/// One launch. The kernel's buffers are, in order of their numbers: what it reads, what it writes,
/// and, if there are any, its scalars, a struct in constant memory.
struct Step {
  Kernel kernel;                            ///< What is launched.
  std::vector<Operand> reads;               ///< From the first element of the view on.
  std::vector<Operand> writes;              ///< Each is overwritten whole.
  std::vector<std::byte> scalars;           ///< Bytes of the struct, as the kernel's text has it.
  std::array<int, 3> grid{1, 1, 1};         ///< Threads in all; the last groups may be smaller.
  std::array<int, 3> threadgroup{1, 1, 1};  ///< Threads of a group.
  int threadgroup_bytes = 0;  ///< Of threadgroup memory that the kernel declares; at most 32 KiB.
};

/// Memory that is a plan's from its first step to its last.
struct Temporary {
  DType dtype = DType::kFloat32;    ///< Of its elements.
  std::vector<std::int64_t> shape;  ///< Row-major.
};

/// All launches of one call. A step reads what the steps before it have written.
///
/// Inputs and outputs are counted in the order in which the call's params declare their views,
/// those of structs within them included; absent views are not counted. Of a call with dropout,
/// whose threshold() is above 0, seed and offset are two inputs more, in their place: one uint64
/// each in the device's memory, so that a launch need not know them; those in the params are not
/// looked at. Where nothing is to be computed there are no steps.
struct Plan {
  std::vector<Temporary> temporaries;  ///< To be allocated before the first step.
  std::vector<Step> steps;             ///< In order.
};

/// @{
/// What to launch for a call. Views say shapes, strides and element types; their device is Metal,
/// and their pointers are not looked at. Throws Error as the call itself would: if shapes do not
/// fit, or `supports` says no.
GRAFT_EXPORT Plan plan(const LayerNormForward& params);
GRAFT_EXPORT Plan plan(const LayerNormBackward& params);
GRAFT_EXPORT Plan plan(const LinearForward& params);
GRAFT_EXPORT Plan plan(const LinearBackward& params);
GRAFT_EXPORT Plan plan(const LoraDeltaForward& params);
GRAFT_EXPORT Plan plan(const LoraDeltaBackward& params);
GRAFT_EXPORT Plan plan(const LoraLinearForward& params);
GRAFT_EXPORT Plan plan(const LoraLinearBackward& params);
GRAFT_EXPORT Plan plan(const RmsNormForward& params);
GRAFT_EXPORT Plan plan(const RmsNormBackward& params);
GRAFT_EXPORT Plan plan(const SoftmaxForward& params);
GRAFT_EXPORT Plan plan(const SoftmaxBackward& params);
/// @}

}  // namespace metal
}  // namespace graft
