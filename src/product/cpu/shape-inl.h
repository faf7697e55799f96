// The shape of the register tile and of the shrink, by instruction set.
#if defined(GRAFT_CPU_SHAPE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_SHAPE_INL_H_
#undef GRAFT_CPU_SHAPE_INL_H_
#else
#define GRAFT_CPU_SHAPE_INL_H_
#endif

#include <cstdint>

#include "backend/cpu/vectors-inl.h"
#include "weight/cpu/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

// The register tile is kRows × 2 vectors. With 32 registers 14 × 2 leaves room for two vectors of W
// and one broadcast; 6 × 2 does with 16. Other shapes of 28 accumulators (9 × 3, 6 × 4) are as fast
// but make h dearer, and 28 × 1 is 15–30 % slower.
constexpr int kRows = (HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON) ? 14
                      : HWY_TARGET == HWY_AVX2                           ? 6
                                                                         : 4;
constexpr int kStride = (kRows + kLanes - 1) / kLanes * kLanes;

// Columns of A that one pass of the shrink takes: enough accumulators to hide the latency of an
// FMA, with kStride / kLanes vectors of rows each. Where a vector has more lanes than that, it
// takes a vector's worth at once if so many are left, lanes along columns: no lanes go to rows that
// a panel lacks.
constexpr int kShrink = kStride / kLanes <= 1 ? 8 : 4;
constexpr int kWideShrink = kLanes > kShrink ? kLanes : kShrink;

// Row panels that share a pass over kShrink columns, where registers hold the sums of two: a
// broadcast of A then serves both.
constexpr int kShrinkPanels = kStride == kLanes && HWY_TARGET == HWY_AVX3 ? 2 : 1;

// How many columns the pass takes that has `left` before it.
HWY_INLINE int ShrinkGroup(std::int64_t left) { return left > kShrink ? kWideShrink : kShrink; }

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
