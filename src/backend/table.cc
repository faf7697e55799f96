#include "backend/table.h"

#include <cstddef>

namespace graft {

// A row for each kind of call; columns in the order of DeviceType.
#define GRAFT_ROW(Params, function)                                 \
  const Kernel<Params>& kernel_on(DeviceType type, const Params&) { \
    static constexpr Kernel<Params> kRow[] = {                      \
        {cpu::supports, cpu::function},                             \
        {cuda::supports, cuda::function},                           \
        {metal::supports, nullptr},                                 \
    };                                                              \
    return kRow[static_cast<std::size_t>(type)];                    \
  }
GRAFT_FOR_EACH_CALL(GRAFT_ROW)
#undef GRAFT_ROW

void require_runnable(const char* op, const Support& support, bool by_host, const Context& context,
                      Device device) {
  const Check check(op);
  require(op, support);
  if (by_host) {
    check.fail(ErrorCode::kUnsupported, std::string("a host launches the kernels for ") +
                                            name_of(device.type) + ", the core does not");
  }
  check.place(context, device);
}

}  // namespace graft
