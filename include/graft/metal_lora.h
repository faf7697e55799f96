#pragma once

#include <cstdint>

#include "graft/export.h"
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
GRAFT_EXPORT Support supports(const LoraDelta& call);

/// Inputs: x (rows, in_features), a (in_features, rank), b (rank, out_features), all row-major, and
/// scalars (0-d): scaling float32, and with dropout seed and offset uint64, threshold uint32 and
/// keep float32, which are the threshold() and scale() of graft::Dropout. Outputs: y (rows,
/// out_features) in x's type, and h = drop(x)·A (rows, rank) float32, for backward.
///
/// One launch: h is made once for a block of rows, in threadgroup memory, and used there, from some
/// rows on in simdgroup matrices; of a few rows each is a simdgroup's own. Throws Error if not
/// supported, or if there is nothing to do.
GRAFT_EXPORT Call lora_delta(const LoraDelta& call);

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
GRAFT_EXPORT Call lora_outer(const LoraOuter& call);

/// What h = drop(x)·A is made of, where a kernel of its own makes it.
struct LoraShrink {
  std::int64_t rows = 0;             ///< Of x and h.
  std::int64_t in_features = 0;      ///< Columns of x, rows of A.
  std::int64_t rank = 0;             ///< Columns of A and h.
  DType x = DType::kFloat32;         ///< Of x.
  DType multiply = DType::kFloat32;  ///< What x and A are rounded to.
  bool dropout = false;              ///< On x.
};

/// Inputs: x (rows, in_features), a (in_features, rank), row-major, and with dropout scalars as
/// lora_delta takes them. Output: h (rows, rank) float32. Throws Error if there is nothing to do.
GRAFT_EXPORT Call lora_shrink(const LoraShrink& call);

/// What y = x·Wᵀ + bias + scaling·h·B is made of; or backward dx = dy·W + drop(scaling·g·Aᵀ), where
/// dy is x, g is h, and Aᵀ is B. Of rank 0 it is the base product alone.
struct LoraLinear {
  std::int64_t rows = 0;             ///< Of x and y.
  std::int64_t depth = 0;            ///< Columns of x.
  std::int64_t columns = 0;          ///< Of y.
  std::int64_t rank = 0;             ///< Columns of h, rows of B; or 0.
  DType x = DType::kFloat32;         ///< Of x and y.
  DType multiply = DType::kFloat32;  ///< What all operands are rounded to: W's type.
  bool transposed = true;  ///< W is (columns, depth), as forward has it; else (depth, columns).
  bool bias = false;       ///< There is one.
  bool dropout = false;    ///< On what the pair adds.
  bool shrinks = false;    ///< h is made from x and A in the same launch; see shrinks_within.
};

/// Whether kernels take it: as of LoraDelta; x and W of one type, or W float32 or bfloat16.
GRAFT_EXPORT Support supports(const LoraLinear& call);

/// Whether h is better made in the launch than in one of its own before, by what each moves: a few
/// rows, forward. Nothing in a launch may wait for another threadgroup, so each makes h for itself.
GRAFT_EXPORT bool shrinks_within(const LoraLinear& call);

/// Inputs: x, w, [h (rows, rank) float32, b (rank, columns), scaling], [bias (columns)], row-major,
/// and with dropout scalars as lora_delta takes them; with `shrinks`, which shrinks_within must
/// have said, a (depth, rank) instead of h. Outputs: y, and with `shrinks` h. Throws Error if not
/// supported, or if there is nothing to do.
GRAFT_EXPORT Call lora_linear(const LoraLinear& call);

}  // namespace graft::metal
