#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "backend/cuda/call.h"
#include "backend/cuda/element.cuh"
#include "backend/cuda/philox.cuh"
#include "backend/cuda/ptx.cuh"
#include "product/cuda/few_rows.h"
#include "product/cuda/product.h"
#include "product/cuda/small_row.cuh"

// s·h of a few rows, h = drop(x) · S, by a launch before the product that needs it, for several
// layers that share x too. It is as long as one read of memory takes, and the product starts to
// read W as soon as all blocks of it are there. A block has all of K, four rows, and one rank or
// the few that lie together in 16 bytes, so that its loads are of whole sectors and all under way
// at once:
//
//     S (K, rank)   ranks together: a block 16 bytes of each k, neighbouring threads the next k
//                   K together:     a block a rank, neighbouring threads the next 16 bytes
//                   else:           a block a rank, element by element

namespace graft::cuda::few {

constexpr int kShrinkThreads = 256, kShrinkWarps = kShrinkThreads / 32, kShrinkRows = 4;

constexpr std::size_t kMostLayers = kMostFewLayers;

/// Elements of T in 16 bytes.
template <class T>
constexpr int kMany = 16 / sizeof(T);

/// What lies together in S, at 16 bytes.
enum class Together : std::uint8_t { kNothing, kRanks, kDepth };

struct ShrinkLayer {
  const void* shrink = nullptr;  ///< S (K, rank)
  std::int64_t shrink_row = 0, shrink_col = 0;
  DType shrink_dtype = DType::kFloat32;
  Together together = Together::kNothing;
  int rank = 0;
  float scaling = 1.0f;
  DropoutArgs dropout;
  float* h = nullptr;       ///< (M, rank), unscaled; null: not wanted.
  float* scaled = nullptr;  ///< s·h (M, rank)
  unsigned first_block = 0;
};

struct ShrinkArgs {
  DType dtype;    ///< Of x.
  const void* x;  ///< (M, K); rows are dense and start at 16 bytes.
  std::int64_t x_stride, k;
  int m, count;  ///< Rows; layers.
  ShrinkLayer layers[kMostLayers];
};

/// The layer that a block belongs to. Layers follow each other by their first blocks.
template <class Args>
__device__ __forceinline__ int layer_of_block(const Args& args) {
  int index = 0;
  while (index + 1 < args.count && blockIdx.x >= args.layers[index + 1].first_block) ++index;
  return index;
}

/// 16 bytes as floats.
template <class T>
__device__ __forceinline__ void unpack(const uint4& bits, float (&to)[kMany<T>]) {
  const std::uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      to[i] = __uint_as_float(words[i]);
    } else if constexpr (std::is_same_v<T, __half>) {
      const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
      to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
    } else {
      to[2 * i] = __uint_as_float(words[i] << 16);
      to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
}

/// kMany<T> neighbours of S, which is of T or float32, as they lie: taken apart where they are
/// used, so that nothing waits for a load before the others are under way.
template <class T, class S>
struct Neighbours {
  static constexpr int kLoads = sizeof(S) / sizeof(T);
  uint4 bits[kLoads];

  __device__ __forceinline__ void load(const S* from) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      bits[i] = __ldg(reinterpret_cast<const uint4*>(from + i * kMany<S>));
    }
  }
  __device__ __forceinline__ void unpack(float (&to)[kMany<T>]) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      float some[kMany<S>];
      few::unpack<S>(bits[i], some);
#pragma unroll
      for (int e = 0; e < kMany<S>; ++e) {
        to[i * kMany<S> + e] = kLoads == 1 ? some[e] : rounded<T>(some[e]);
      }
    }
  }
};

// Whether there is dropout: float32 has other paths for it.
template <class T>
__device__ __forceinline__ bool drops(const ShrinkLayer& layer) {
  return sizeof(T) < 4 && layer.dropout.any();
}

// Row `row` of x, or the last: what more rows sum is not kept.
template <class T>
__device__ __forceinline__ const T* row_of(const ShrinkArgs& args, int row) {
  return static_cast<const T*>(args.x) + min(row, args.m - 1) * args.x_stride;
}

/// sums[row][e]: ranks `first` + e of rows from `row0` on, over this thread's k.
template <class T, class S, int kRows>
__device__ __forceinline__ void sum_ranks(const ShrinkArgs& args, const ShrinkLayer& layer,
                                          int first, int row0, const Masks& masks, float* sums) {
  constexpr int kUnroll = kRows == 1 ? 4 : 2;
  const S* const from = static_cast<const S*>(layer.shrink) + first;
#pragma unroll 1
  for (std::int64_t k0 = threadIdx.x; k0 < args.k; k0 += kUnroll * kShrinkThreads) {
    Neighbours<T, S> loaded[kUnroll];
    T x[kUnroll][kRows];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t k = min(k0 + u * kShrinkThreads, args.k - 1);
      loaded[u].load(from + k * layer.shrink_row);
#pragma unroll
      for (int row = 0; row < kRows; ++row) x[u][row] = __ldg(row_of<T>(args, row0 + row) + k);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t k = k0 + u * kShrinkThreads;
      float s[kMany<T>];
      loaded[u].unpack(s);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        bool counts = k < args.k;
        if (drops<T>(layer)) {
          counts = counts && masks.keeps(static_cast<std::uint64_t>((row0 + row) * args.k + k));
        }
        const float value = to_float(x[u][row]);
#pragma unroll
        for (int e = 0; e < kMany<T>; ++e) {
          float& sum = sums[row * kMany<T> + e];
          if (counts) sum = fmaf(value, s[e], sum);
        }
      }
    }
  }
}

/// sums[row] of one rank.
template <class T, class S, int kRows>
__device__ __forceinline__ void sum_depth(const ShrinkArgs& args, const ShrinkLayer& layer,
                                          int rank, int row0, const Masks& masks, float* sums) {
  const S* const from = static_cast<const S*>(layer.shrink) + rank * layer.shrink_col;
#pragma unroll 2
  for (std::int64_t k = kMany<T> * threadIdx.x; k < args.k; k += kMany<T> * kShrinkThreads) {
    Neighbours<T, S> loaded;
    loaded.load(from + k);
    uint4 x[kRows];
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      x[row] = __ldg(reinterpret_cast<const uint4*>(row_of<T>(args, row0 + row) + k));
    }
    float s[kMany<T>];
    loaded.unpack(s);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float values[kMany<T>];
      unpack<T>(x[row], values);
      if (drops<T>(layer)) {
        const auto element = static_cast<std::uint64_t>((row0 + row) * args.k + k);
        const PhiloxWords words = masks.words(element / 8);  // K is whole eights
#pragma unroll
        for (int e = 0; e < kMany<T>; ++e) {
          if (words.field(static_cast<int>(element % 8) + e) < masks.threshold) values[e] = 0.0f;
        }
      }
#pragma unroll
      for (int e = 0; e < kMany<T>; ++e) sums[row] = fmaf(values[e], s[e], sums[row]);
    }
  }
}

/// The same of any type and strides.
template <class T, int kRows>
__device__ __forceinline__ void sum_elements(const ShrinkArgs& args, const ShrinkLayer& layer,
                                             int rank, int row0, const Masks& masks, float* sums) {
#pragma unroll 4
  for (std::int64_t k = threadIdx.x; k < args.k; k += kShrinkThreads) {
    const float s = rounded<T>(load_as_float(layer.shrink, layer.shrink_dtype,
                                             k * layer.shrink_row + rank * layer.shrink_col));
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float value = to_float(__ldg(row_of<T>(args, row0 + row) + k));
      if (drops<T>(layer) && !masks.keeps(static_cast<std::uint64_t>((row0 + row) * args.k + k))) {
        value = 0.0f;
      }
      sums[row] = fmaf(value, s, sums[row]);
    }
  }
}

/// kRows: 1, or kShrinkRows.
template <class T, int kRows>
__device__ __forceinline__ void make_scaled(const ShrinkArgs& args) {
  constexpr int kSums = kRows * kMany<T>;
  __shared__ float of_warps[kShrinkWarps][kSums];
  wait_for_kernel_before();
  let_next_kernel_start();
  const ShrinkLayer& layer = args.layers[layer_of_block(args)];
  const bool floats = layer.shrink_dtype == DType::kFloat32;
  const bool ranks = layer.together == Together::kRanks;
  const int unit = static_cast<int>(blockIdx.x - layer.first_block);
  const int first = ranks ? unit * kMany<T> : unit, row0 = static_cast<int>(blockIdx.y) * kRows;
  const Masks masks = drops<T>(layer) ? layer.dropout.masks() : Masks{};
  const int thread = static_cast<int>(threadIdx.x);
  if (ranks) {
    float sums[kSums] = {};
    if (floats) {
      sum_ranks<T, float, kRows>(args, layer, first, row0, masks, sums);
    } else {
      sum_ranks<T, T, kRows>(args, layer, first, row0, masks, sums);
    }
    const int kept = small::sum_over_lanes(sums, 1);
    if (thread % (32 / kSums) == 0) of_warps[thread / 32][kept] = sums[0];
  } else {
    float sums[kRows] = {};
    if (layer.together == Together::kNothing) {
      sum_elements<T, kRows>(args, layer, first, row0, masks, sums);
    } else if (floats) {
      sum_depth<T, float, kRows>(args, layer, first, row0, masks, sums);
    } else {
      sum_depth<T, T, kRows>(args, layer, first, row0, masks, sums);
    }
    const int kept = small::sum_over_lanes(sums, 1);
    if (thread % (32 / kRows) == 0) of_warps[thread / 32][kept] = sums[0];
  }
  __syncthreads();
  const int width = ranks ? kMany<T> : 1, row = row0 + thread / width;
  if (thread >= kRows * width || row >= args.m) return;
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kShrinkWarps; ++w) sum += of_warps[w][thread];
  if (drops<T>(layer)) sum *= masks.scale;
  const std::int64_t at = std::int64_t{row} * layer.rank + first + thread % width;
  if (layer.h != nullptr) layer.h[at] = sum;
  layer.scaled[at] = layer.scaling * sum;
}

template <int kRows>
__global__ void __launch_bounds__(kShrinkThreads, 4)
    float_shrink(const __grid_constant__ ShrinkArgs args) {
  make_scaled<float, kRows>(args);
}

template <int kRows>
__global__ void __launch_bounds__(kShrinkThreads, kRows == 1 ? 3 : 2)
    half_shrink(const __grid_constant__ ShrinkArgs args) {
  with_half(args.dtype, [&]<class T>(std::type_identity<T>) { make_scaled<T, kRows>(args); });
}

/// Whether vectors of `many` along an axis of `view` start at 16 bytes.
inline bool is_vectors(const ConstTensorView& view, int across, int along, std::int64_t many) {
  const auto bytes = static_cast<std::int64_t>(size_of(view.dtype()));
  return view.stride(along) == 1 && view.dim(along) % many == 0 &&
         view.stride(across) * bytes % 16 == 0 &&
         reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0;
}

/// Makes s·h of all terms that have a pair, each (M, rank), one after another from `scaled` on.
/// False if none has. T: float, or a half type for both of them.
template <class T>
bool launch_shrink(const Call& call, std::span<const Term> terms, float* scaled) {
  ShrinkArgs args{};
  const ConstTensorView& x = terms[0].x;
  args.dtype = x.dtype();
  args.x = x.data(), args.x_stride = x.stride(0), args.k = x.dim(1);
  args.m = static_cast<int>(x.dim(0));
  unsigned blocks = 0;
  for (const Term& term : terms) {
    const LowRank& pair = term.pair;
    if (!pair.present()) continue;
    ShrinkLayer& layer = args.layers[args.count++];
    layer.shrink = pair.shrink.data(), layer.shrink_dtype = pair.shrink.dtype();
    layer.shrink_row = pair.shrink.stride(0), layer.shrink_col = pair.shrink.stride(1);
    if (pair.shrink.dtype() == term.multiply || pair.shrink.dtype() == DType::kFloat32) {
      layer.together = is_vectors(pair.shrink, 0, 1, kMany<T>)   ? Together::kRanks
                       : is_vectors(pair.shrink, 1, 0, kMany<T>) ? Together::kDepth
                                                                 : Together::kNothing;
    }
    layer.rank = static_cast<int>(pair.rank());
    layer.scaling = pair.scaling;
    layer.dropout = DropoutArgs(pair.input_dropout);
    if (pair.h.present()) layer.h = pair.h.mutable_data_as<float>();
    layer.scaled = scaled;
    layer.first_block = blocks;
    scaled += args.m * pair.rank();
    blocks += static_cast<unsigned>(layer.together == Together::kRanks ? pair.rank() / kMany<T>
                                                                       : pair.rank());
  }
  if (blocks == 0) return false;
  const auto launch = [&](void (*kernel)(ShrinkArgs), int rows) {
    const auto groups = static_cast<unsigned>((args.m + rows - 1) / rows);
    call.launch(
        {.grid = {blocks, groups, 1}, .block = kShrinkThreads, .overlaps = call.facts().major >= 9},
        kernel, args);
  };
  if constexpr (std::is_same_v<T, float>) {
    args.m == 1 ? launch(float_shrink<1>, 1) : launch(float_shrink<kShrinkRows>, kShrinkRows);
  } else {
    args.m == 1 ? launch(half_shrink<1>, 1) : launch(half_shrink<kShrinkRows>, kShrinkRows);
  }
  return true;
}

/// Floats of s·h of all terms.
inline std::size_t scaled_floats(std::span<const Term> terms) {
  std::int64_t floats = 0;
  for (const Term& term : terms) floats += term.pair.rank() * term.x.dim(0);
  return static_cast<std::size_t>(floats);
}

}  // namespace graft::cuda::few
