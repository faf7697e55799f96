#include "backend/metal/rows.h"

#include <limits>

#include "backend/metal/plan.h"
#include "backend/metal/shaders.h"
#include "checks.h"

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

// What a kernel with teams reads; each has names of its own for it.
struct RowScalars {
  std::uint32_t features;
  float number;
};

// As in rows.metal.
struct BlockScalars {
  std::uint32_t rows, features;
};

}  // namespace

Support vector_fits(const char* name, const ConstTensorView& vector) {
  if (!vector.present()) return {};
  return all_of({is_floating(vector.dtype()), is_dense(name, vector)});
}

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
              std::int64_t features, std::vector<Kernel::Argument> arguments, float number) {
  const int threads = threads_of(features);
  const bool narrow = threads == kLanes;
  arguments.insert(arguments.end(), {kept_of(features), narrow});
  Step step;
  step.kernel = {kernel, std::move(parts), std::move(arguments)};
  step.grid = {static_cast<int>(rows) * threads, 1, 1};
  step.threadgroup = {narrow ? kRowsAThreadgroup * kLanes : threads, 1, 1};
  step.threadgroup_bytes = narrow ? 4 : 32 * 4;
  step.scalars = bytes_of(RowScalars{static_cast<std::uint32_t>(features), number});
  return step;
}

// Few, so that small inputs make many blocks; more where there are many rows, so that the second
// launch has less to add.
int rows_of_block(std::int64_t rows) { return rows <= 2048 ? 16 : 128; }

std::int64_t row_blocks(std::int64_t rows) {
  const int each = rows_of_block(rows);
  return (rows + each - 1) / each;
}

void add_sums(Plan& plan, const char* kernel, std::vector<const char*> parts, std::int64_t rows,
              std::int64_t features, DType dtype, std::vector<Operand> reads,
              std::vector<Operand> outputs) {
  const std::int64_t blocks = row_blocks(rows);
  const auto scalars = [features](std::int64_t count) {
    return bytes_of(
        BlockScalars{static_cast<std::uint32_t>(count), static_cast<std::uint32_t>(features)});
  };
  Step sums;
  sums.kernel = {kernel, std::move(parts), {dtype, rows_of_block(rows)}};
  sums.reads = std::move(reads);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    sums.writes.push_back(temporary(plan, DType::kFloat32, {blocks, features}));
  }
  sums.scalars = scalars(rows);
  sums.grid = {static_cast<int>(features), static_cast<int>(blocks), 1};
  sums.threadgroup = {kColumnsAcross, kBlocksAcross, 1};
  if (blocks > 0) plan.steps.push_back(sums);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (is_absent(outputs[i])) continue;
    Step add;
    add.kernel = {"add_blocks", {shaders::kRows}, {DType::kFloat32}};
    add.reads = {sums.writes[i]};
    add.writes = {outputs[i]};
    add.scalars = scalars(blocks);
    add.grid = {static_cast<int>(features), 1, 1};
    add.threadgroup = {kLanes, 1, 1};
    plan.steps.push_back(std::move(add));
  }
}

}  // namespace graft::metal
