#include "backend/table.h"

#include <cstddef>
#include <string>

namespace graft {

namespace {

// The column of a back-end: the order of DeviceType.
std::size_t column_of(DeviceType type) {
  constexpr std::size_t kColumns = 3;
  const auto column = static_cast<std::size_t>(type);
  if (column < kColumns) return column;
  throw Error(ErrorCode::kInvalidArgument, "[device] type: expected cpu, cuda or metal");
}

}  // namespace

Support backend_available(DeviceType type) {
  static constexpr Support (*kRow[])() = {cpu::available, cuda::available, metal::available};
  return kRow[column_of(type)]();
}

#define GRAFT_ROW(Params, function)                               \
  const Entry<Params>& entry_of(DeviceType type, const Params&) { \
    static constexpr Entry<Params> kRow[] = {                     \
        {cpu::supports, cpu::function, cpu::scratch_bytes},       \
        {cuda::supports, cuda::function, cuda::scratch_bytes},    \
        {metal::supports, nullptr, nullptr},                      \
    };                                                            \
    return kRow[column_of(type)];                                 \
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
