#include "graft/context.h"

#include <cstdlib>
#include <string>

#include "graft/error.h"

namespace graft {

namespace {
constexpr std::size_t kAlignment = 4096;
}

void Context::Free::operator()(std::byte* block) const { std::free(block); }

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
