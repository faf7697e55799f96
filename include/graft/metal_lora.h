#pragma once

#include <cstdint>

#include "graft/metal.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

namespace graft::metal {

/// What dropout, as graft/lora.h says, is on.
enum class Drops : std::uint8_t {
  kNothing,
  kInput,   ///< Forward: on x.
  kOutput,  ///< Backward: on what the pair adds to dx.
};

/// What y = scaling·(drop(x)·A)·B is made of. Backward, dx is the same of dy, Bᵀ and Aᵀ.
struct LoraDelta {
  std::int64_t rows = 0;          ///< Of x and y.
  std::int64_t in_features = 0;   ///< Columns of x, rows of A.
  std::int64_t out_features = 0;  ///< Columns of B and y.
  std::int64_t rank = 0;          ///< Columns of A, rows of B.
  DType x = DType::kFloat32;      ///< Of x and y, and what is multiplied; sums are float32.
  DType a = DType::kFloat32;      ///< Rounded to x's type.
  DType b = DType::kFloat32;      ///< Rounded to x's type.
  Drops drops = Drops::kNothing;  ///< Of x or y.
};

/// Whether a kernel takes it: ranks 1 to 256; float32, float16 or bfloat16; sizes that fit an int.
Support supports(const LoraDelta& call);

/// Inputs: x (rows, in_features), a (in_features, rank), b (rank, out_features), all row-major, and
/// scalars (0-d): scaling float32, and with dropout seed and offset uint64, threshold uint32 (an
/// element is dropped if its random word is below) and keep float32 (what others are multiplied
/// by). Outputs: y (rows, out_features) in x's type, and h = drop(x)·A (rows, rank) float32, for
/// backward.
///
/// One launch: h is made once for a block of rows, in threadgroup memory, and used there; of a few
/// rows each is a simdgroup's own. Throws Error if not supported, or if there is nothing to do.
Call lora_delta(const LoraDelta& call);

/// What a gradient of A or B is made of: scaling·drop(matrix)ᵀ·coefficients, or its transpose.
struct LoraOuter {
  std::int64_t rows = 0;           ///< Of matrix and coefficients.
  std::int64_t columns = 0;        ///< Of matrix: x or dy.
  std::int64_t rank = 0;           ///< Columns of coefficients: g = dy·Bᵀ or h.
  DType matrix = DType::kFloat32;  ///< Coefficients are float32.
  bool dropout = false;            ///< On matrix.
  bool by_column = false;          ///< The result is (columns, rank), else (rank, columns).
};

/// Inputs: matrix (rows, columns) and coefficients (rows, rank), row-major, and scalars as
/// lora_delta takes them. Output: gradient, float32. One launch, always the same bits. Throws Error
/// if there is nothing to do.
Call lora_outer(const LoraOuter& call);

}  // namespace graft::metal
