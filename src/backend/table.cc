#include "backend/table.h"

#include <cstddef>
#include <string>

namespace graft {

// A row for each kind of call; columns in the order of DeviceType.
#define GRAFT_ROW(Params, function)                                 \
  const Kernel<Params>& kernel_on(DeviceType type, const Params&) { \
    static constexpr Kernel<Params> kRow[] = {                      \
        {cpu::supports, cpu::function, cpu::scratch_bytes},         \
        {cuda::supports, cuda::function, cuda::scratch_bytes},      \
        {metal::supports, nullptr, nullptr},                        \
    };                                                              \
    return kRow[static_cast<std::size_t>(type)];                    \
  }
GRAFT_FOR_EACH_CALL(GRAFT_ROW)
#undef GRAFT_ROW

void require_runnable(const char* op, const Support& support, bool runs, Device device) {
  require(op, support);
  if (runs) return;
  Check(op).fail(ErrorCode::kUnsupported, std::string("a host launches the kernels for ") +
                                              name_of(device.type) + ", the core does not");
}

}  // namespace graft
