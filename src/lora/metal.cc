#include "backend/metal/limits.h"
#include "backend/metal/shaders.h"
#include "checks.h"
#include "graft/lora.h"
#include "graft/metal_lora.h"

namespace graft::metal {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kFewRows = 4;  // up to so many, a simdgroup a row

// Rows of a block: so many that B is read seldom, so few that small inputs make many blocks, and
// that h stays well within threadgroup memory at every rank.
int block_rows(const LoraDelta& call) { return call.rows >= 1024 ? 16 : 8; }

constexpr const char* kNoDrop = "NoDropout{}";
constexpr const char* kDrop = "PhiloxDropout{seed, offset, threshold, keep}";

void add_dropout_inputs(Call& call) {
  call.inputs.insert(call.inputs.end(), {"seed", "offset", "threshold", "keep"});
}

Support rank_fits(std::int64_t rank, std::int64_t least) {
  if (rank >= least && rank <= kMaxLoraRank) return {};
  return Support::no("Metal kernels take ranks of 1 to 256, not " + std::to_string(rank));
}

}  // namespace

Support supports(const LoraDelta& call) {
  return all_of({is_floating(call.x), is_floating(call.a), is_floating(call.b),
                 rank_fits(call.rank, 1),
                 sizes_fit({call.rows * kLanes, call.in_features, call.out_features})});
}

Call lora_delta(const LoraDelta& call) {
  require("lora_delta", supports(call));
  const bool few = call.rows <= kFewRows;
  const int rows = few ? 1 : block_rows(call), rank = static_cast<int>(call.rank);

  const std::string drops = std::string(call.drops == Drops::kInput ? kDrop : kNoDrop) + ", " +
                            (call.drops == Drops::kOutput ? kDrop : kNoDrop);
  Call result;
  result.kernel = std::string("graft_lora_delta_") + (few ? "row" : "block") +
                  (call.drops == Drops::kInput    ? "_drop_x"
                   : call.drops == Drops::kOutput ? "_drop_y"
                                                  : "");
  result.inputs = {"x", "a", "b", "scaling"};
  if (call.drops != Drops::kNothing) add_dropout_inputs(result);
  result.outputs = {"y", "h"};
  result.header = std::string(shaders::kPhilox) + shaders::kLora;
  result.arguments = {{"T", call.x}, {"RANK", rank}};
  if (few) {
    result.body =
        "lora_delta_row<T, RANK>(x, a, b, scaling, y, h, threadgroup_position_in_grid.x,\n"
        "                        uint(a_shape[0]), uint(b_shape[1]), thread_index_in_simdgroup,\n"
        "                        " +
        drops + ");\n";
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
      drops + ");\n";
  const int blocks = static_cast<int>((call.rows + rows - 1) / rows);
  result.grid = {blocks * kBlockThreads, 1, 1};
  result.threadgroup = {kBlockThreads, 1, 1};
  result.threadgroup_bytes = rows * rank * 4;
  return result;
}

Call lora_outer(const LoraOuter& call) {
  constexpr int kSimdgroups = kBlockThreads / kLanes, kOuterColumns = 8;  // as in metal.metal
  Call result;
  result.kernel = std::string("graft_lora_outer") + (call.dropout ? "_dropout" : "");
  result.inputs = {"matrix", "coefficients", "scaling"};
  if (call.dropout) add_dropout_inputs(result);
  result.outputs = {"gradient"};
  result.header = std::string(shaders::kPhilox) + shaders::kLora;
  result.arguments = {{"T", call.matrix},
                      {"RANK", static_cast<int>(call.rank)},
                      {"SIMDGROUPS", kSimdgroups},
                      {"BY_COLUMN", call.by_column}};
  result.body =
      "threadgroup float partial[SIMDGROUPS * 8 * 32];\n"
      "lora_outer<T, RANK, SIMDGROUPS, BY_COLUMN>(matrix, coefficients, scaling, gradient, "
      "partial,\n"
      "                                           uint(matrix_shape[0]), uint(matrix_shape[1]),\n"
      "                                           uint2(threadgroup_position_in_grid.x,\n"
      "                                                 threadgroup_position_in_grid.y),\n"
      "                                           simdgroup_index_in_threadgroup,\n"
      "                                           thread_index_in_simdgroup,\n"
      "                                           " +
      std::string(call.dropout ? kDrop : kNoDrop) + ");\n";
  const auto blocks = static_cast<int>((call.columns + kLanes - 1) / kLanes);
  result.grid = {blocks * kBlockThreads,
                 static_cast<int>((call.rank + kOuterColumns - 1) / kOuterColumns), 1};
  result.threadgroup = {kBlockThreads, 1, 1};
  result.threadgroup_bytes = kSimdgroups * kOuterColumns * kLanes * 4;
  return result;
}

Call lora_shrink(const LoraShrink& call) {
  Call result;
  result.kernel = std::string("graft_lora_shrink") + (call.dropout ? "_dropout" : "");
  result.inputs = {"x", "a"};
  if (call.dropout) add_dropout_inputs(result);
  result.outputs = {"h"};
  result.header = std::string(shaders::kPhilox) + shaders::kLora;
  result.arguments = {{"T", call.multiply}, {"RANK", static_cast<int>(call.rank)}};
  result.body =
      "lora_shrink<T, RANK>(x, a, h, threadgroup_position_in_grid.x, uint(a_shape[0]),\n"
      "                     thread_index_in_simdgroup, " +
      std::string(call.dropout ? kDrop : kNoDrop) + ");\n";
  result.grid = {static_cast<int>(call.rows) * kLanes, 1, 1};
  result.threadgroup = {kLanes, 1, 1};
  return result;
}

Support supports(const LoraLinear& call) {
  if (call.multiply == DType::kFloat16 && call.x != DType::kFloat16) {
    return Support::no(std::string("no Metal kernel multiplies ") + name_of(call.x) +
                       " by a float16 weight");
  }
  return all_of({is_floating(call.x), is_floating(call.multiply), rank_fits(call.rank, 0),
                 sizes_fit({call.rows * kLanes, call.depth, call.columns * 4})});
}

Call lora_linear(const LoraLinear& call) {
  require("lora_linear", supports(call));
  constexpr int kTile = 32, kTileThreads = 128, kTileDepth = 16;  // as in tile.metal
  const bool pair = call.rank > 0;
  Call result;
  result.kernel = std::string(pair ? "graft_lora_linear" : "graft_linear") +
                  (call.transposed ? "" : "_dx") + (call.bias ? "_bias" : "") +
                  (call.dropout ? "_dropout" : "");
  result.inputs = {"x", "w"};
  if (pair) result.inputs.insert(result.inputs.end(), {"h", "b", "scaling"});
  if (call.bias) result.inputs.push_back("bias");
  if (call.dropout) add_dropout_inputs(result);
  result.outputs = {"y"};
  result.header = "#include <metal_simdgroup_matrix>\n" + std::string(shaders::kPhilox) +
                  shaders::kTile + shaders::kLoraLinear;
  result.arguments = {{"T", call.multiply}, {"Y", call.x}};
  // Helpers take pointers in whatever address space MLX puts an input in.
  const std::string w = call.transposed ? "Transposed" : "RowMajor";
  result.body =
      std::string() +
      "threadgroup T left_tile[512];\n"
      "threadgroup T right_tile[512];\n"
      "threadgroup float y_tile[1024];\n"
      "const uint rows = uint(x_shape[0]), depth = uint(x_shape[1]);\n"
      "const uint cols = uint(w_shape[" +
      (call.transposed ? "0" : "1") + "]);\n" +
      (pair ? "const uint rank = uint(b_shape[0]);\n"
              "const Scaled<T, decltype(h)> left{h, rows, rank, scaling};\n"
              "const RowMajor<T, decltype(b)> right{b, rank, cols};\n"
            : "const uint rank = 0;\n"
              "const RowMajor<T, decltype(x)> left{x, 0, 0};\n"
              "const RowMajor<T, decltype(w)> right{w, 0, 0};\n") +
      "lora_linear_tile<T, Y>(left, right, rank, RowMajor<T, decltype(x)>{x, rows, depth},\n"
      "                       " +
      w +
      "<T, decltype(w)>{w, depth, cols}, depth,\n"
      "                       " +
      (call.bias ? "Bias<decltype(bias)>{bias}" : "NoBias{}") + ", " +
      (call.dropout ? kDrop : kNoDrop) + ", " + (call.dropout ? "true" : "false") +
      ", y, rows, cols,\n"
      "                       TilePlace{threadgroup_position_in_grid.y * 32,\n"
      "                                 threadgroup_position_in_grid.x * 32,\n"
      "                                 thread_index_in_threadgroup,\n"
      "                                 simdgroup_index_in_threadgroup},\n"
      "                       left_tile, right_tile, y_tile);\n";
  const auto tiles = [](std::int64_t size) { return static_cast<int>((size + kTile - 1) / kTile); };
  result.grid = {tiles(call.columns) * kTileThreads, tiles(call.rows), 1};
  result.threadgroup = {kTileThreads, 1, 1};
  const int element = static_cast<int>(size_of(call.multiply));
  result.threadgroup_bytes = 2 * kTile * kTileDepth * element + kTile * kTile * 4;
  return result;
}

}  // namespace graft::metal
