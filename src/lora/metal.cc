#include "backend/metal/limits.h"
#include "backend/metal/shaders.h"
#include "backend/metal/tiles.h"
#include "checks.h"
#include "graft/lora.h"
#include "graft/metal_lora.h"
#include "lora/metal_calls.h"

namespace graft::metal {
namespace {

constexpr int kBlockThreads = 256;

std::string small_header() {
  return std::string(shaders::kPhilox) + shaders::kView + shaders::kLora;
}

// lora_delta without its grid and body.
Call delta_call(const LoraDelta& call, const char* way) {
  Call result;
  result.kernel = std::string("graft_lora_delta_") + way +
                  (call.drops == Drops::kInput    ? "_drop_x"
                   : call.drops == Drops::kOutput ? "_drop_y"
                                                  : "");
  result.inputs = {"x", "a", "b", "scaling"};
  result.strided = {"a", "b"};
  if (call.drops != Drops::kNothing) add_dropout_inputs(result);
  result.outputs = {"y", "h"};
  result.header = small_header();
  result.arguments = {{"T", call.x}, {"RANK", static_cast<int>(call.rank)}};
  return result;
}

// "drop of x, drop of y", as bodies pass them.
std::string both_drops(const LoraDelta& call) {
  return std::string(drop_of(call.drops == Drops::kInput)) + ", " +
         drop_of(call.drops == Drops::kOutput);
}

// A simdgroup a row.
Call delta_rows(const LoraDelta& call) {
  Call result = delta_call(call, "row");
  result.body =
      "lora_delta_row<T, RANK>(x, " + view_of("a") +
      ",\n"
      "                        " +
      view_of("b") +
      ",\n"
      "                        scaling, y, h, threadgroup_position_in_grid.x,\n"
      "                        uint(a_shape[0]), uint(b_shape[1]), thread_index_in_simdgroup,\n"
      "                        " +
      both_drops(call) + ");\n";
  result.grid = {static_cast<int>(call.rows) * kLanes, 1, 1};
  result.threadgroup = {kLanes, 1, 1};
  return result;
}

// A threadgroup a block of rows: few, so that small inputs make many blocks.
Call delta_blocks(const LoraDelta& call) {
  constexpr int kRows = 8;
  Call result = delta_call(call, "block");
  result.arguments.push_back({"ROWS", kRows});
  result.body =
      "threadgroup float h_block[ROWS * RANK];\n"
      "lora_delta_block<T, RANK, ROWS>(x, " +
      view_of("a") +
      ",\n"
      "                                " +
      view_of("b") +
      ",\n"
      "                                scaling, y, h, h_block,\n"
      "                                threadgroup_position_in_grid.x, uint(x_shape[0]),\n"
      "                                uint(a_shape[0]), uint(b_shape[1]),\n"
      "                                thread_index_in_threadgroup, threads_per_threadgroup.x,\n"
      "                                simdgroup_index_in_threadgroup,\n"
      "                                simdgroups_per_threadgroup, thread_index_in_simdgroup,\n"
      "                                " +
      both_drops(call) + ");\n";
  result.grid = {groups_of(call.rows, kRows) * kBlockThreads, 1, 1};
  result.threadgroup = {kBlockThreads, 1, 1};
  result.threadgroup_bytes = kRows * static_cast<int>(call.rank) * 4;
  return result;
}

// x as a tile's left operand.
std::string dropped_x(bool drops) {
  const std::string drop = drop_of(drops);
  return "Dropped<T, decltype(x), decltype(" + drop +
         ")>{x, uint(x_shape[0]), uint(x_shape[1]),\n"
         "    " +
         drop + "}";
}

// The same in simdgroup matrices. Blocks of 32 rows ask for A and B half as often as blocks of 16,
// which is what h leaves room for at high ranks, and what makes enough blocks of fewer rows.
Call delta_tiles(const LoraDelta& call) {
  constexpr int kCols = 64;
  const int rank = static_cast<int>(call.rank);
  const int rows = call.rows >= 1024 && rank <= 64 ? 32 : 16;
  Call result = delta_call(call, "tile");
  result.header = tile_header() + shaders::kLoraTiles;
  result.body = std::string(kTileDeclarations) +
                "threadgroup T h_block[ROWS * ((RANK + 15) / 16 * 16)];\n"
                "lora_delta_tile<T, RANK, ROWS, COLS>(\n"
                "    " +
                dropped_x(call.drops == Drops::kInput) +
                ",\n"
                "    " +
                viewed("a", "uint(a_shape[0])", "RANK") +
                ",\n"
                "    " +
                viewed("b", "RANK", "uint(b_shape[1])") +
                ", scaling, y, h,\n"
                "    " +
                drop_of(call.drops == Drops::kOutput) +
                ", place, h_block, left_tile, right_tile, strips);\n";
  set_tiles(result, rows, kCols, groups_of(call.rows, rows), 1, call.x);
  result.threadgroup_bytes += rows * ((rank + 15) / 16 * 16) * static_cast<int>(size_of(call.x));
  return result;
}

}  // namespace

Support rank_fits(std::int64_t rank, std::int64_t least) {
  if (rank >= least && rank <= kMaxLoraRank) return {};
  return Support::no("Metal kernels take ranks of 1 to 256, not " + std::to_string(rank));
}

Support supports(const LoraDelta& call) {
  return all_of({is_floating(call.x), is_floating(call.a), is_floating(call.b),
                 rank_fits(call.rank, 1),
                 sizes_fit({call.rows * kLanes, call.in_features, call.out_features})});
}

Call lora_delta(const LoraDelta& call) {
  require("lora_delta", supports(call));
  if (call.rows <= kFewRows) return delta_rows(call);
  return call.rows < kTileRows ? delta_blocks(call) : delta_tiles(call);
}

Call lora_outer(const LoraOuter& call) {
  constexpr int kSimdgroups = kBlockThreads / kLanes, kOuterColumns = 8;  // as in metal.metal
  Call result;
  result.kernel = std::string("graft_lora_outer") + (call.dropout ? "_dropout" : "");
  result.inputs = {"matrix", "coefficients", "scaling"};
  if (call.dropout) add_dropout_inputs(result);
  result.outputs = {"gradient"};
  result.header = small_header();
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
      std::string(drop_of(call.dropout)) + ");\n";
  result.grid = {groups_of(call.columns, kLanes) * kBlockThreads,
                 groups_of(call.rank, kOuterColumns), 1};
  result.threadgroup = {kBlockThreads, 1, 1};
  result.threadgroup_bytes = kSimdgroups * kOuterColumns * kLanes * 4;
  return result;
}

Call lora_shrink(const LoraShrink& call) {
  const bool tiles = call.rows >= kTileRows;
  const int rank = static_cast<int>(call.rank);
  Call result;
  result.kernel = std::string("graft_lora_shrink_") + (tiles ? "tile" : "row") +
                  (call.dropout ? "_dropout" : "");
  result.inputs = {"x", "a"};
  result.strided = {"a"};
  if (call.dropout) add_dropout_inputs(result);
  result.outputs = {"h"};
  result.arguments = {{"T", call.multiply}, {"RANK", rank}};
  if (!tiles) {
    result.header = small_header();
    result.body = "lora_shrink<T, RANK>(x, " + view_of("a") +
                  ", h, threadgroup_position_in_grid.x, uint(a_shape[0]),\n"
                  "                     thread_index_in_simdgroup, " +
                  std::string(drop_of(call.dropout)) + ");\n";
    result.grid = {static_cast<int>(call.rows) * kLanes, 1, 1};
    result.threadgroup = {kLanes, 1, 1};
    return result;
  }
  constexpr int kRows = 16;                                 // so few that there are many blocks
  const int cols = rank <= 16 ? 16 : rank <= 32 ? 32 : 64;  // as in metal_tiles.metal
  result.header = tile_header() + shaders::kLoraTiles;
  result.body = std::string(kTileDeclarations) +
                "shrink_block<T, RANK, ROWS>(\n"
                "    " +
                dropped_x(call.dropout) +
                ",\n"
                "    " +
                viewed("a", "uint(a_shape[0])", "RANK") +
                ",\n"
                "    StoreH{h, uint(x_shape[0]), RANK, place}, place, left_tile, right_tile, "
                "strips);\n";
  set_tiles(result, kRows, cols, groups_of(call.rows, kRows), 1, call.multiply);
  return result;
}

}  // namespace graft::metal
