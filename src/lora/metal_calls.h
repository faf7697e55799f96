#pragma once

#include <cstdint>
#include <string>

#include "graft/metal.h"
#include "graft/supports.h"

// What the calls of lora's shaders have in common.
namespace graft::metal {

inline constexpr int kFewRows = 4;     // up to so many: a simdgroup a row, or a pass for all
inline constexpr int kTileRows = 256;  // from so many on: simdgroup matrices

// What a body calls drop(): nothing, or what reads the four inputs.
inline const char* drop_of(bool drops) {
  return drops ? "PhiloxDropout{seed, offset, threshold, keep}" : "NoDropout{}";
}
inline void add_dropout_inputs(Call& call) {
  call.inputs.insert(call.inputs.end(), {"seed", "offset", "threshold", "keep"});
}

// A and B as bodies name them, in any strides; and as operands of tiles, of (rows, cols).
inline std::string view_of(const std::string& input) {
  return "View<decltype(" + input + ")>{" + input + ", long(" + input + "_strides[0]), long(" +
         input + "_strides[1])}";
}
inline std::string viewed(const std::string& input, const char* rows, const char* cols) {
  return "Viewed<T, View<decltype(" + input + ")>>{" + view_of(input) + ", " + rows + ", " + cols +
         "}";
}

// Yes from `least`, 0 or 1, to kMaxLoraRank.
Support rank_fits(std::int64_t rank, std::int64_t least);

}  // namespace graft::metal
