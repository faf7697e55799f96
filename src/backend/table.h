#pragma once

#include "backend/calls.h"
#include "checks.h"

// The one switch over back-ends. A room declares nothing of its own: it defines the functions below
// in <back-end>.cc, and answers `supports` and runs its calls through `supports_on` and `run_on`.

namespace graft {

#define GRAFT_DECLARE_SUPPORTS(Params, function) Support supports(const Params& params);
#define GRAFT_DECLARE_RUN(Params, function) void function(Context& context, const Params& params);

/// What a back-end has: whether its kernels take a call whose tensors are on its device, and the
/// call itself, whose params have been checked and are supported.
namespace cpu {
GRAFT_FOR_EACH_CALL(GRAFT_DECLARE_SUPPORTS)
GRAFT_FOR_EACH_CALL(GRAFT_DECLARE_RUN)
}  // namespace cpu
namespace cuda {
GRAFT_FOR_EACH_CALL(GRAFT_DECLARE_SUPPORTS)
GRAFT_FOR_EACH_CALL(GRAFT_DECLARE_RUN)
}  // namespace cuda
/// Launched by a host, which asks here whether there is a kernel.
namespace metal {
GRAFT_FOR_EACH_CALL(GRAFT_DECLARE_SUPPORTS)
}  // namespace metal

#undef GRAFT_DECLARE_SUPPORTS
#undef GRAFT_DECLARE_RUN

/// A back-end's part in one kind of call.
template <class Params>
struct Kernel {
  Support (*supports)(const Params& params);
  void (*run)(Context& context, const Params& params);  // null: a host launches it
};

/// @{
/// The entry of the table for these params and the back-end of `type`.
#define GRAFT_DECLARE_KERNEL(Params, function) \
  const Kernel<Params>& kernel_on(DeviceType type, const Params& params);
GRAFT_FOR_EACH_CALL(GRAFT_DECLARE_KERNEL)
#undef GRAFT_DECLARE_KERNEL
/// @}

/// Whether the kernels of the tensors' device take the call.
template <class Params>
Support supports_on(Device device, const Params& params) {
  return kernel_on(device.type, params).supports(params);
}

/// Throws Error unless the call can be run in this context on the tensors' device.
void require_runnable(const char* op, const Support& support, bool by_host, const Context& context,
                      Device device);

/// Runs a call whose params have been checked. Throws Error if it is not supported, or if the
/// context is for another device.
template <class Params>
void run_on(Device device, const char* op, Context& context, const Params& params) {
  const Kernel<Params>& kernel = kernel_on(device.type, params);
  require_runnable(op, kernel.supports(params), kernel.run == nullptr, context, device);
  kernel.run(context, params);
}

}  // namespace graft
