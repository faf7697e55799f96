#pragma once

#include <cstddef>

#include "backend/calls.h"
#include "checks.h"

// The one switch over back-ends. A room declares nothing of its own: it defines the functions below
// in <back-end>.cc, and answers `supports` and runs its calls through `supports_on` and `run_on`.

namespace graft {

#define GRAFT_DECLARE_SUPPORTS(Params, function) Support supports(const Params& params);
#define GRAFT_DECLARE_CALL(Params, function)             \
  GRAFT_DECLARE_SUPPORTS(Params, function)               \
  void function(Context& context, const Params& params); \
  std::size_t scratch_bytes(const Params& params, int threads);

/// What a back-end has: whether it is here at all; whether its kernels take a call whose tensors
/// are on its device; and of a call that they take and whose params have been checked, the call
/// itself and the scratch it needs.
namespace cpu {
Support available();
GRAFT_FOR_EACH_CALL(GRAFT_DECLARE_CALL)
}  // namespace cpu
namespace cuda {
Support available();
GRAFT_FOR_EACH_CALL(GRAFT_DECLARE_CALL)
}  // namespace cuda
/// Launched by a host, which asks here whether there is a kernel.
namespace metal {
Support available();
GRAFT_FOR_EACH_CALL(GRAFT_DECLARE_SUPPORTS)
}  // namespace metal

#undef GRAFT_DECLARE_SUPPORTS
#undef GRAFT_DECLARE_CALL

/// A back-end's part in one kind of call.
template <class Params>
struct Entry {
  Support (*supports)(const Params& params);
  // Null where a host launches the kernels.
  void (*run)(Context& context, const Params& params);
  std::size_t (*scratch_bytes)(const Params& params, int threads);
};

/// @{
/// The entry of the table for these params and the back-end of `type`.
#define GRAFT_DECLARE_ENTRY(Params, function) \
  const Entry<Params>& entry_of(DeviceType type, const Params& params);
GRAFT_FOR_EACH_CALL(GRAFT_DECLARE_ENTRY)
#undef GRAFT_DECLARE_ENTRY
/// @}

/// Whether the kernels of the tensors' device take the call.
template <class Params>
Support supports_on(Device device, const Params& params) {
  return entry_of(device.type, params).supports(params);
}

/// Throws Error unless `support` says yes and the core itself runs the kernels.
void require_runnable(const char* op, const Support& support, bool runs, Device device);

/// Runs a call whose params have been checked. Throws Error if it is not supported, or if the
/// context is for another device.
template <class Params>
void run_on(Device device, const char* op, Context& context, const Params& params) {
  const Entry<Params>& entry = entry_of(device.type, params);
  require_runnable(op, entry.supports(params), entry.run != nullptr, device);
  Check(op).place(context, device);
  entry.run(context, params);
}

/// Bytes of scratch that a call takes. Throws Error if it is not supported.
template <class Params>
std::size_t scratch_bytes_on(Device device, const char* op, const Params& params, int threads) {
  const Entry<Params>& entry = entry_of(device.type, params);
  require_runnable(op, entry.supports(params), entry.run != nullptr, device);
  return entry.scratch_bytes(params, threads);
}

}  // namespace graft
