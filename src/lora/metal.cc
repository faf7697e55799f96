#include <algorithm>
#include <limits>

#include "backend/metal/shaders.h"
#include "checks.h"
#include "graft/lora.h"
#include "graft/metal_lora.h"

namespace graft::metal {
namespace {

constexpr int kLanes = 32, kBlockThreads = 256;
constexpr int kFewRows = 4;  // up to so many, a simdgroup a row

// Rows of a block: so many that B is read seldom, so few that small inputs make many blocks, and
// that h stays well within threadgroup memory at every rank.
int block_rows(const LoraDelta& call) { return call.rows >= 1024 ? 16 : 8; }

std::string drop_of(const LoraDelta& call) {
  return call.dropout ? "PhiloxDropout{seed, offset, threshold, keep}" : "NoDropout{}";
}

const char* name_part(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "f32";
    case DType::kFloat16:
      return "f16";
    case DType::kBFloat16:
      return "bf16";
    default:
      return "other";
  }
}

bool is_floating(DType dtype) { return dtype != DType::kInt32; }

}  // namespace

Support supports(const LoraDelta& call) {
  for (const DType dtype : {call.x, call.a, call.b}) {
    if (!is_floating(dtype)) {
      return Support::no(std::string("no Metal kernel takes dtype ") + name_of(dtype));
    }
  }
  if (call.rank < 1 || call.rank > kMaxLoraRank) {
    return Support::no("Metal kernels take ranks of 1 to 256, not " + std::to_string(call.rank));
  }
  constexpr std::int64_t kMost = std::numeric_limits<int>::max();
  for (const std::int64_t size : {call.rows * kLanes, call.in_features, call.out_features}) {
    if (size > kMost) return Support::no("Metal kernels take sizes below 2^31");
  }
  return {};
}

Call lora_delta(const LoraDelta& call) {
  require("lora_delta", supports(call));
  const bool few = call.rows <= kFewRows;
  const int rows = few ? 1 : block_rows(call), rank = static_cast<int>(call.rank);

  Call result;
  result.kernel = std::string("graft_lora_delta_") + (few ? "row" : "block") +
                  (call.dropout ? "_dropout_" : "_") + name_part(call.x);
  result.inputs = {"x", "a", "b", "scaling"};
  if (call.dropout) {
    result.inputs.insert(result.inputs.end(), {"seed", "offset", "threshold", "keep"});
  }
  result.outputs = {"y", "h"};
  result.header = std::string(shaders::kPhilox) + shaders::kLora;
  result.arguments = {{"T", call.x}, {"RANK", rank}};
  if (few) {
    result.body =
        "lora_delta_row<T, RANK>(x, a, b, scaling, y, h, threadgroup_position_in_grid.x,\n"
        "                        uint(a_shape[0]), uint(b_shape[1]), thread_index_in_simdgroup,\n"
        "                        " +
        drop_of(call) + ");\n";
    result.grid = {static_cast<int>(call.rows) * kLanes, 1, 1};
    result.threadgroup = {kLanes, 1, 1};
    return result;
  }
  result.arguments.push_back({"ROWS", rows});
  result.body =
      "threadgroup float h_block[ROWS * RANK];\n"
      "lora_delta_block<T, RANK, ROWS>(x, a, b, scaling, y, h, h_block,\n"
      "                                threadgroup_position_in_grid.x, uint(x_shape[0]),\n"
      "                                uint(a_shape[0]), uint(b_shape[1]),\n"
      "                                thread_index_in_threadgroup, threads_per_threadgroup.x,\n"
      "                                simdgroup_index_in_threadgroup,\n"
      "                                simdgroups_per_threadgroup, thread_index_in_simdgroup,\n"
      "                                " +
      drop_of(call) + ");\n";
  const int blocks = static_cast<int>((call.rows + rows - 1) / rows);
  result.grid = {blocks * kBlockThreads, 1, 1};
  result.threadgroup = {kBlockThreads, 1, 1};
  result.threadgroup_bytes = rows * rank * 4;
  return result;
}

}  // namespace graft::metal
