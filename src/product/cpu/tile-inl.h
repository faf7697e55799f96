// The register tile: [h | x] · [B ; W] in one accumulator.
#if defined(GRAFT_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_TILE_INL_H_
#undef GRAFT_CPU_TILE_INL_H_
#else
#define GRAFT_CPU_TILE_INL_H_
#endif

#include <cstdint>
#include <utility>

#include "backend/bfloat16.h"
#include "backend/cpu/memory-inl.h"
#include "backend/cpu/vectors-inl.h"
#include "product/cpu/dropout-inl.h"
#include "product/cpu/kernels.h"
#include "product/cpu/shape-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

// acc += x · w, and asks for a line of `ahead` a step.
template <class Multiply, int Rows>
HWY_INLINE void AddProducts(const typename Multiply::X* HWY_RESTRICT x,
                            const typename Multiply::W* HWY_RESTRICT w, std::int64_t w_stride,
                            std::int64_t steps, const char* ahead, std::int64_t ahead_stride,
                            V (&acc)[Rows][2]) {
  constexpr int kRead = 0, kSecondLevel = 2;
  for (std::int64_t s = 0; s < steps; ++s) {
    __builtin_prefetch(ahead, kRead, kSecondLevel);
    ahead += ahead_stride;
    Multiply::template Step<Rows>(x, w, acc);
    x += kStride * Multiply::kXPerStep;
    w += w_stride;
  }
}

template <int Rows>
HWY_INLINE void StoreTile(const TileArgs& args, V (&acc)[Rows][2]) {
  const D d;
  const bool whole = args.cols == kWidth;
  if (whole && !args.y_bfloat16) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      float* HWY_RESTRICT y = static_cast<float*>(args.y) + i * args.y_stride;
      if (args.accumulate) {
        acc[i][0] = hn::Add(acc[i][0], hn::LoadU(d, y));
        acc[i][1] = hn::Add(acc[i][1], hn::LoadU(d, y + kLanes));
      }
      hn::StoreU(acc[i][0], d, y);
      hn::StoreU(acc[i][1], d, y + kLanes);
    }
    return;
  }
  if (whole && !args.accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      hwy::bfloat16_t* y = static_cast<hwy::bfloat16_t*>(args.y) + i * args.y_stride;
      Store(acc[i][0], y);
      Store(acc[i][1], y + kLanes);
    }
    return;
  }
  // Ragged right edge, or adding to bfloat16.
  HWY_ALIGN float row[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    hn::Store(acc[i][0], d, row);
    hn::Store(acc[i][1], d, row + kLanes);
    if (args.y_bfloat16) {
      std::uint16_t* y = static_cast<std::uint16_t*>(args.y) + i * args.y_stride;
      for (int j = 0; j < args.cols; ++j) {
        y[j] = to_bfloat16(args.accumulate ? from_bfloat16(y[j]) + row[j] : row[j]);
      }
    } else {
      float* y = static_cast<float*>(args.y) + i * args.y_stride;
      for (int j = 0; j < args.cols; ++j) y[j] = args.accumulate ? y[j] + row[j] : row[j];
    }
  }
}

// acc = kept ∘ (h · B) + bias + start + x · W: the low-rank steps come first, so that dropout can
// mask them alone. Cost: Rows · 2 multiply-adds of a vector a step; y is written once.
template <class Multiply, int Rows>
void TileRows(const TileArgs& args) {
  using X = typename Multiply::X;
  using W = typename Multiply::W;
  const D d;
  V acc[Rows][2];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) acc[i][0] = acc[i][1] = hn::Zero(d);

  const char* const w = static_cast<const char*>(args.w);
  AddProducts<Multiply, Rows>(static_cast<const X*>(args.h), static_cast<const W*>(args.b),
                              args.b_stride, args.low_steps, w, 0, acc);
  if (args.kept.some()) {
    const VU first = LaneBits(0), second = LaneBits(kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const VU word = hn::Set(DU(), args.kept.word(i, 0));
      acc[i][0] = KeepLanes(word, first, acc[i][0]);
      acc[i][1] = KeepLanes(word, second, acc[i][1]);
    }
  }
  if (args.bias != nullptr) {
    const V bias0 = hn::LoadU(d, args.bias), bias1 = hn::LoadU(d, args.bias + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      acc[i][0] = hn::Add(acc[i][0], bias0);
      acc[i][1] = hn::Add(acc[i][1], bias1);
    }
  }
  if (args.start != nullptr) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      acc[i][0] = hn::Add(acc[i][0], hn::LoadU(d, args.start + i * kWidth));
      acc[i][1] = hn::Add(acc[i][1], hn::LoadU(d, args.start + i * kWidth + kLanes));
    }
  }
  AddProducts<Multiply, Rows>(static_cast<const X*>(args.x), static_cast<const W*>(args.w), kWidth,
                              args.steps, w + args.ahead, args.ahead_stride, acc);
  StoreTile<Rows>(args, acc);
}

// The tile without a base product, for a small rank: all of B's panel stays in registers and rows
// stream by, each multiply-add taking its broadcast of h from memory and stores spread between them
// (the general tile pays a register broadcast for every two, and stores in one burst).
constexpr int kExpandRank = 8;

template <int Rows>
HWY_INLINE void ExpandRows(const TileArgs& args, const V (&b)[kExpandRank][2], int first) {
  const D d;
  const float* HWY_RESTRICT h = static_cast<const float*>(args.h) + first;
  float* HWY_RESTRICT y = static_cast<float*>(args.y) + first * args.y_stride;
  V acc[Rows][2];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    acc[i][0] = args.accumulate ? hn::LoadU(d, y + i * args.y_stride) : hn::Zero(d);
    acc[i][1] = args.accumulate ? hn::LoadU(d, y + i * args.y_stride + kLanes) : hn::Zero(d);
  }
#pragma GCC unroll 16
  for (int j = 0; j < kExpandRank; ++j) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const V hij = hn::Set(d, h[j * kStride + i]);
      acc[i][0] = hn::MulAdd(hij, b[j][0], acc[i][0]);
      acc[i][1] = hn::MulAdd(hij, b[j][1], acc[i][1]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    hn::StoreU(acc[i][0], d, y + i * args.y_stride);
    hn::StoreU(acc[i][1], d, y + i * args.y_stride + kLanes);
  }
}

inline void ExpandTile(const TileArgs& args) {
  const D d;
  const float* HWY_RESTRICT from = static_cast<const float*>(args.b);
  V b[kExpandRank][2];
#pragma GCC unroll 16
  for (int j = 0; j < kExpandRank; ++j) {
    b[j][0] = hn::LoadU(d, from + j * args.b_stride);
    b[j][1] = hn::LoadU(d, from + j * args.b_stride + kLanes);
  }
  int i = 0;
  for (; i + 4 <= args.rows; i += 4) ExpandRows<4>(args, b, i);
  for (; i < args.rows; ++i) ExpandRows<1>(args, b, i);
}

inline bool IsExpandTile(const TileArgs& args) {
  return args.steps == 0 && args.low_steps == kExpandRank && !args.kept.some() &&
         args.bias == nullptr && args.start == nullptr && args.cols == kWidth && !args.y_bfloat16;
}

template <class Multiply, int... RowsMinus1>
void TileByRows(const TileArgs& args, std::integer_sequence<int, RowsMinus1...>) {
  using Tile = void (*)(const TileArgs&);
  static constexpr Tile kTiles[] = {&TileRows<Multiply, RowsMinus1 + 1>...};
  kTiles[args.rows - 1](args);
}

template <class Multiply>
void RunTile(const TileArgs& args) {
  constexpr bool kFitsRegisters = kRows >= 14;
  if constexpr (kFitsRegisters && Multiply::kPerStep == 1) {
    if (IsExpandTile(args)) return ExpandTile(args);
  }
  TileByRows<Multiply>(args, std::make_integer_sequence<int, kRows>());
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
