#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "graft/packed_weight.h"
#include "product/cpu/kernels.h"

namespace graft {

struct PackedWeight::Impl {
  struct Free {
    void operator()(std::uint32_t* panels) const { std::free(panels); }
  };
  using Panels = std::unique_ptr<std::uint32_t, Free>;

  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  DType dtype = DType::kFloat32;
  const cpu::Kernels* kernels = nullptr;  // whose panel format this is
  std::size_t nbytes = 0;
  Panels forward;   // columns are out_features
  Panels backward;  // columns are in_features; null if not asked for
};

}  // namespace graft
