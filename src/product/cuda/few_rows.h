#pragma once

#include <cstddef>
#include <span>

#include "backend/cuda/call.h"
#include "graft/supports.h"
#include "product/cuda/product.h"

// A term of few rows in float16 or bfloat16: what decoding asks for. Reading W is all that it
// costs, so W goes from memory straight to registers, once, in loads of 16 bytes.

namespace graft::cuda {

/// Rows that such a term has at most.
inline constexpr std::int64_t kMostFewRows = 16;

/// Layers of one launch, where there is one row.
inline constexpr std::size_t kMostFewLayers = 4;

/// Whether a term runs here; "no" says why, and then another path has to take it.
Support few_rows_takes(const Term& term);

/// Bytes of workspace that `run_few_rows` takes.
std::size_t few_rows_workspace(std::span<const Term> terms);

/// Runs it: one launch, and one before it for the pair's h, under which W is read already.
/// `workspace` is aligned to 256 and has few_rows_workspace bytes of any contents.
void run_few_rows(const Call& call, std::span<const Term> terms, std::byte* workspace);

}  // namespace graft::cuda
