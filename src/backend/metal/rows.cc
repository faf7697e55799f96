#include "backend/metal/rows.h"

#include <limits>

#include "backend/metal/shaders.h"
#include "graft/metal_rows.h"

namespace graft::metal {
namespace {

// A simdgroup keeps 16 values a thread of a row; a threadgroup of 256 or 512 threads likewise. More
// threads would need fewer registers each than some GPUs then have; more values, too many.
constexpr int kMostKept = 16;
constexpr int kMostOfSimdgroup = kLanes * kMostKept;
constexpr int kRowsAThreadgroup = 8;  // of rows that are a simdgroup's
constexpr int kColumnsAcross = kLanes, kBlocksAcross = 8;

int threads_of(std::int64_t features) {
  if (features <= kMostOfSimdgroup) return kLanes;
  return features <= std::int64_t{256} * kMostKept ? 256 : 512;
}

std::string last_of(const char* matrix) {
  const std::string name = matrix;
  return name + "_shape[" + name + "_ndim - 1]";
}

}  // namespace

Support rows_fit(std::int64_t rows, std::int64_t features) {
  constexpr std::int64_t kMost = std::numeric_limits<int>::max();
  if (features <= kMost && rows <= kMost / threads_of(features)) return {};
  return Support::no("Metal kernels take sizes below 2^31");
}

int kept_of(std::int64_t features) {
  const int threads = threads_of(features);
  int kept = 1;
  while (kept <= kMostKept && std::int64_t{kept} * threads < features) kept *= 2;
  return kept <= kMostKept ? kept : 0;
}

Step row_step(const char* kernel, std::vector<const char*> parts, std::int64_t rows,
              std::int64_t features, std::vector<Kernel::Argument> arguments) {
  const int threads = threads_of(features);
  const bool narrow = threads == kLanes;
  arguments.insert(arguments.end(), {kept_of(features), narrow});
  Step step;
  step.kernel = {kernel, std::move(parts), std::move(arguments)};
  step.grid = {static_cast<int>(rows) * threads, 1, 1};
  step.threadgroup = {narrow ? kRowsAThreadgroup * kLanes : threads, 1, 1};
  step.threadgroup_bytes = narrow ? 4 : 32 * 4;
  return step;
}

Call row_call(const std::string& kernel, const char* matrix, std::int64_t rows,
              std::int64_t features, DType dtype) {
  const int threads = threads_of(features), count = static_cast<int>(rows);
  const bool narrow = threads == kLanes;
  Call call;
  call.kernel = "graft_" + kernel + (narrow ? "_simdgroup" : "_threadgroup");
  call.header = shaders::kRows;
  call.body = "const uint features = uint(" + last_of(matrix) + ");\n";
  if (narrow) {
    call.body +=
        "const SimdgroupTeam team = {thread_position_in_grid.x / 32, thread_index_in_simdgroup};\n";
  } else {
    call.body +=
        "threadgroup float shared[32];\n"
        "const ThreadgroupTeam team = {threadgroup_position_in_grid.x,\n"
        "                              thread_index_in_threadgroup, thread_index_in_simdgroup,\n"
        "                              simdgroup_index_in_threadgroup,\n"
        "                              simdgroups_per_threadgroup, shared};\n";
    call.threadgroup_bytes = 32 * 4;
  }
  call.arguments = {{"T", dtype}, {"KEPT", kept_of(features)}};
  call.grid = {count * threads, 1, 1};
  call.threadgroup = {narrow ? kRowsAThreadgroup * kLanes : threads, 1, 1};
  return call;
}

Call block_call(const std::string& kernel, const char* matrix, std::int64_t rows,
                std::int64_t features) {
  Call call;
  call.kernel = "graft_" + kernel;
  call.header = shaders::kRows;
  const std::string name = matrix;
  call.body = "const uint rows = uint(" + name + "_shape[0]), features = uint(" + name +
              "_shape[1]);\n"
              "const uint col = thread_position_in_grid.x, block = thread_position_in_grid.y;\n"
              "const uint first = block * ROWS, end = min(first + ROWS, rows);\n";
  call.arguments = {{"ROWS", rows_of_block(rows)}};
  call.grid = {static_cast<int>(features), static_cast<int>(row_blocks(rows)), 1};
  call.threadgroup = {kColumnsAcross, kBlocksAcross, 1};
  return call;
}

// Few, so that small inputs make many blocks; more where there are many rows, so that the second
// launch has less to add.
int rows_of_block(std::int64_t rows) { return rows <= 2048 ? 16 : 128; }

std::int64_t row_blocks(std::int64_t rows) {
  const int each = rows_of_block(rows);
  return (rows + each - 1) / each;
}

Call add_blocks(const BlockSums& call) {
  Call result;
  result.kernel = "graft_add_blocks";
  result.inputs = {"blocks"};
  result.outputs = {"sums"};
  result.header = shaders::kRows;
  result.body =
      "add_blocks<T>(blocks, sums, uint(blocks_shape[0]), uint(blocks_shape[1]),\n"
      "              thread_position_in_grid.x);\n";
  result.arguments = {{"T", call.sums}};
  result.grid = {static_cast<int>(call.features), 1, 1};
  result.threadgroup = {kLanes, 1, 1};
  return result;
}

}  // namespace graft::metal
