#include "graft/context.h"

#include <cstdlib>
#include <string>

#include "checks.h"
#include "graft/error.h"

namespace graft {

namespace {
constexpr std::size_t kAlignment = 4096;
}

void Context::Free::operator()(std::byte* block) const { std::free(block); }

Context::Context(const CudaPlace& place) : device_{DeviceType::kCuda, place.device}, cuda_(place) {
  require("context", backend_available(DeviceType::kCuda));
  Check("context").that(place.allocate != nullptr && place.free != nullptr,
                        "allocate, free: expected functions, got null");
}

std::byte* Context::scratch(std::size_t bytes) {
  if (bytes > capacity_) {
    const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    block_.reset();
    capacity_ = 0;
    block_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded)));
    if (block_ == nullptr) {
      throw Error(ErrorCode::kOutOfMemory,
                  "[context] scratch: could not allocate " + std::to_string(rounded) + " bytes");
    }
    capacity_ = rounded;
  }
  return block_.get();
}

}  // namespace graft
