#pragma once

#include "backend/cuda/device.h"

// GPUs that plans are tested for, as they describe themselves.

namespace graft::test {

inline constexpr cuda::DeviceFacts kA100{8, 0, 108, 163 * 1024, 40 << 20};
inline constexpr cuda::DeviceFacts kH100Pcie{9, 0, 114, 227 * 1024, 50 << 20, {0, 114, 57}};
inline constexpr cuda::DeviceFacts kH200{
    9, 0, 132, 227 * 1024, 50 << 20, {0, 132, 66, 39, 30, 22, 17, 15, 15}};

}  // namespace graft::test
