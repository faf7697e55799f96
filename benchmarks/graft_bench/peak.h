#pragma once

namespace graft::bench {

/// @{
/// 10⁹ operations a second that `threads` threads reach together in fused multiply-adds that touch
/// nothing but registers; in the instruction set that the core's kernels use.
double peak_gflops_f32(int threads);
double peak_gflops_bf16(int threads);  ///< bfloat16 dot products; 0 where the core has none.
/// @}

/// 10⁹ bytes a second that `threads` threads move together at most, going round in `bytes` bytes:
/// the best of reading, writing and copying them, where a copied byte counts twice.
double moved_gbs(int threads, double bytes);

}  // namespace graft::bench
