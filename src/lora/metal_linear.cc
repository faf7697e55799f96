#include "backend/metal/limits.h"
#include "backend/metal/shaders.h"
#include "backend/metal/tiles.h"
#include "checks.h"
#include "graft/metal_lora.h"
#include "lora/metal_calls.h"

namespace graft::metal {
namespace {

// What a kernel for few rows has: simdgroups of a threadgroup, and columns of y that it makes.
constexpr int kFewSimdgroups = 8, kFewGroupColumns = kFewSimdgroups * 4;  // as in metal_few.metal

bool takes_few(const LoraLinear& call) { return call.transposed && call.rows <= kFewRows; }

// lora_linear without its grid and body.
Call linear_call(const LoraLinear& call, const char* way) {
  Call result;
  result.kernel = std::string(call.rank > 0 ? "graft_lora_linear" : "graft_linear") + way +
                  (call.shrinks ? "_shrinks" : "") + (call.bias ? "_bias" : "") +
                  (call.dropout ? "_dropout" : "");
  result.inputs = {"x", "w"};
  if (call.rank > 0) {
    result.inputs.insert(result.inputs.end(), {call.shrinks ? "a" : "h", "b", "scaling"});
    result.strided = {"b"};
    if (call.shrinks) result.strided.push_back("a");
  }
  if (call.bias) result.inputs.push_back("bias");
  if (call.dropout) add_dropout_inputs(result);
  result.outputs = {"y"};
  if (call.shrinks) result.outputs.push_back("h");
  result.arguments = {{"T", call.multiply}, {"Y", call.x}};
  return result;
}

// Helpers take pointers in whatever address space MLX puts an input in.
std::string bias_of(const LoraLinear& call) {
  return call.bias ? "Bias<decltype(bias)>{bias}" : "NoBias{}";
}

Call linear_few(const LoraLinear& call) {
  Call result = linear_call(call, "_few");
  result.header = tile_header() + shaders::kLora + shaders::kLoraFew;
  result.arguments.push_back({"ROWS", static_cast<int>(call.rows)});
  result.body =
      "const uint first_col = threadgroup_position_in_grid.x * 32 + "
      "simdgroup_index_in_threadgroup * 4;\n";
  if (call.shrinks) {
    result.arguments.push_back({"RANK", static_cast<int>(call.rank)});
    result.body +=
        "threadgroup float parts[8 * ROWS * RANK];\n"
        "threadgroup float h_block[ROWS * RANK];\n"
        "few_shrink<T, RANK, ROWS, 8>(x, " +
        view_of("a") +
        ",\n"
        "                             uint(x_shape[1]), thread_index_in_threadgroup,\n"
        "                             simdgroup_index_in_threadgroup, thread_index_in_simdgroup,\n"
        "                             parts, h_block);\n"
        "for (uint i = thread_index_in_threadgroup;\n"
        "     i < uint(ROWS * RANK) && threadgroup_position_in_grid.x == 0; i += 256) {\n"
        "  h[i] = h_block[i];\n"
        "}\n";
    result.threadgroup_bytes = (kFewSimdgroups + 1) * static_cast<int>(call.rows * call.rank) * 4;
  }
  const std::string b = view_of("b");
  const std::string pair = call.shrinks    ? "h_block, " + b + ", RANK, scaling"
                           : call.rank > 0 ? "h, " + b + ", uint(b_shape[0]), scaling"
                                           : "x, View<decltype(x)>{x, 0, 0}, 0, 0.0f";
  result.body += "lora_linear_few<T, Y, ROWS>(x, w, uint(x_shape[1]), " + pair +
                 ",\n"
                 "                            " +
                 bias_of(call) + ", y, uint(w_shape[0]), first_col, thread_index_in_simdgroup);\n";
  result.grid = {groups_of(call.columns, kFewGroupColumns) * kFewSimdgroups * kLanes, 1, 1};
  result.threadgroup = {kFewSimdgroups * kLanes, 1, 1};
  return result;
}

// Tiles of 64 x 64 ask for half of what those of 32 x 32 do, if there are enough to keep a GPU's
// cores busy; M-series chips have 8 to 40.
int tile_size(const LoraLinear& call) {
  constexpr int kManyTiles = 64;
  return std::int64_t{groups_of(call.rows, 64)} * groups_of(call.columns, 64) >= kManyTiles ? 64
                                                                                            : 32;
}

// h and B as a tile's operands, or stand-ins of no depth.
std::string pair_operands(const LoraLinear& call) {
  if (call.rank == 0) {
    return "const uint rank = 0;\n"
           "const RowMajor<T, decltype(x)> left{x, 0, 0};\n"
           "const RowMajor<T, decltype(w)> right{w, 0, 0};\n";
  }
  return "const uint rank = uint(b_shape[0]);\n"
         "const Scaled<T, decltype(h)> left{h, rows, rank, scaling};\n"
         "const auto right = " +
         viewed("b", "rank", "cols") + ";\n";
}

Call linear_tiles(const LoraLinear& call) {
  Call result = linear_call(call, call.transposed ? "_tile" : "_dx_tile");
  result.header = tile_header() + shaders::kLoraTiles;
  const char* const w = call.transposed ? "Transposed" : "RowMajor";
  result.body = std::string(kTileDeclarations) +
                "const uint rows = uint(x_shape[0]), depth = uint(x_shape[1]);\n"
                "const uint cols = uint(w_shape[" +
                (call.transposed ? "0" : "1") + "]);\n" + pair_operands(call) +
                "lora_linear_tile<T, Y, ROWS, COLS, " + (call.dropout ? "true" : "false") +
                ">(\n"
                "    left, right, rank, RowMajor<T, decltype(x)>{x, rows, depth},\n"
                "    " +
                w + "<T, decltype(w)>{w, depth, cols}, depth, " + bias_of(call) +
                ",\n"
                "    " +
                drop_of(call.dropout) + ", y, rows, cols, place, left_tile, right_tile, strips);\n";
  const int size = tile_size(call);
  set_tiles(result, size, size, groups_of(call.rows, size), groups_of(call.columns, size),
            call.multiply);
  return result;
}

}  // namespace

Support supports(const LoraLinear& call) {
  if (call.multiply == DType::kFloat16 && call.x != DType::kFloat16) {
    return Support::no(std::string("no Metal kernel multiplies ") + name_of(call.x) +
                       " by a float16 weight");
  }
  return all_of({is_floating(call.x), is_floating(call.multiply), rank_fits(call.rank, 0),
                 sizes_fit({call.rows * kLanes, call.depth, call.columns * 8})});
}

// Shrinking within the launch, each of its threadgroups reads x and A; a launch of its own reads
// them once, and h goes to memory and back. A launch that waits for the one before it costs some
// microseconds, in which a GPU reads about kLaunch bytes from its caches; that is an estimate.
bool shrinks_within(const LoraLinear& call) {
  constexpr std::int64_t kLaunch = 1 << 20, kElement = 4, kMostH = 512;
  const std::int64_t h = call.rows * call.rank;
  if (!takes_few(call) || call.rank == 0 || h > kMostH) return false;
  const std::int64_t groups = groups_of(call.columns, kFewGroupColumns);
  const std::int64_t read = call.depth * (call.rank + call.rows);
  return groups * read * kElement <= (read + h + groups * h) * kElement + kLaunch;
}

Call lora_linear(const LoraLinear& call) {
  require("lora_linear", supports(call));
  return takes_few(call) ? linear_few(call) : linear_tiles(call);
}

}  // namespace graft::metal
