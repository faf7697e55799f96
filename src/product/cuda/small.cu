// A pair alone in one launch, for shapes where a launch takes longer than the arithmetic:
//
//     h = x·A        y = s·h·B
//
// A block has a few rows of x, and nothing of another block's: h stays in its shared memory.
//
//            K                 rank                                  N
//     x [ rows of a block ] ·  A   ->  sums of each warp   ->   h   ·  B  ->  y
//
// Each warp has a part of K. All loads of a block are under way before the first is used: what such
// a kernel takes is the latency of one read of memory, two barriers, and the launch. Branches on
// strides are taken around loads, never between them.
//
// Bytes: x and y once, A and B once a block, from L2. In float32 a block has one row while there
// are fewer than multiprocessors, and 4 or 16 at a time after that; in half types, which multiply
// in the matrix units, 16 rows at a time and some of the columns. The kernels wait for the kernels
// before them before they read anything (griddepcontrol.wait), so that they may be launched while
// those end.

#include <algorithm>

#include "backend/cuda/call.h"
#include "product/cuda/paths.h"
#include "product/cuda/small.cuh"
#include "product/cuda/small_half.cuh"
#include "product/cuda/small_row.cuh"
#include "product/cuda/small_rows.cuh"

namespace graft::cuda {
namespace small {
namespace {

constexpr std::int64_t kFewRows = 1056;  // 4 rows at a time, then 16
constexpr std::int64_t kMostRows = 16384, kMostFeatures = 4096;

bool is_vectors(const ConstTensorView& view) {
  const std::size_t size = size_of(view.dtype());
  const auto vector = static_cast<std::int64_t>(16 / size);
  return view.stride(1) == 1 && view.stride(0) % vector == 0 && view.dim(1) % vector == 0 &&
         reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0;
}

int columns_of_a_block(std::int64_t rows, int cols, const DeviceFacts& facts) {
  const std::int64_t row_blocks = (rows + kHalfRows - 1) / kHalfRows;
  const std::int64_t parts =
      std::clamp<std::int64_t>(facts.multiprocessors / row_blocks, 1, (cols + 63) / 64);
  return static_cast<int>(((cols + parts - 1) / parts + 63) / 64 * 64);
}

int log_quads_of(int rank) { return rank <= 4 ? 0 : rank <= 8 ? 1 : rank <= 16 ? 2 : 3; }

// Rows at a time of such a call.
int rows_at_once(DType type, std::int64_t rows, const DeviceFacts& facts) {
  if (type != DType::kFloat32) return kHalfRows;
  return rows <= facts.multiprocessors ? 1 : rows <= kFewRows ? 4 : 16;
}

int buffers_of(std::int64_t rows, int at_once, const DeviceFacts& facts) {
  return at_once == 16 && (rows + 15) / 16 > facts.multiprocessors ? 2 : 1;
}

std::size_t shared_bytes(DType type, std::int64_t rows, int depth, int cols, int rank,
                         const DeviceFacts& facts) {
  const int at_once = rows_at_once(type, rows, facts), quads = log_quads_of(rank);
  const int buffers = buffers_of(rows, at_once, facts);
  if (type != DType::kFloat32) {
    return HalfShared(depth, columns_of_a_block(rows, cols, facts), buffers).bytes();
  }
  if (at_once == 1) return 0;
  const int elements = at_once == 4 ? RowsShared<4>(depth, cols, quads, buffers).size
                                    : RowsShared<16>(depth, cols, quads, buffers).size;
  return static_cast<std::size_t>(elements) * sizeof(float);
}

// So many rows at a time; as many blocks as run at once, where A and B are kept.
Launch blocks_of(const Call& call, const SmallArgs& args, int rows, std::size_t bytes) {
  std::int64_t blocks = (args.rows + rows - 1) / rows;
  if (rows > 4) blocks = std::min<std::int64_t>(blocks, call.facts().multiprocessors);
  return {.grid = {static_cast<unsigned>(blocks),
                   static_cast<unsigned>((args.cols + args.block_cols - 1) / args.block_cols), 1},
          .block = static_cast<unsigned>(rows == 1 ? kRowThreads : kThreads),
          .shared_bytes = bytes,
          .overlaps = true};
}

void launch_row(const Call& call, const SmallArgs& args) {
  const Launch how = blocks_of(call, args, 1, 0);
  const bool whole = args.a_vectors && args.a_row == args.rank && args.b_vectors &&
                     args.depth % 512 == 0 && args.cols % 512 == 0;
  if (whole && args.rank == 4) return call.launch(how, small_row<4, true>, args);
  if (whole && args.rank == 8) return call.launch(how, small_row<8, true>, args);
  if (whole && args.rank == 16) return call.launch(how, small_row<16, true>, args);
  if (whole && args.rank == 32) return call.launch(how, small_row<32, true>, args);
  call.launch(how, small_row<kMostRank, false>, args);
}

template <bool kWhole>
void launch_rows(const Call& call, const SmallArgs& args, int at_once, std::size_t bytes) {
  const Launch how = blocks_of(call, args, at_once, bytes);
  if (at_once == 4) return call.launch(how, small_rows<4, kWhole>, args);
  call.launch(how, small_rows<16, kWhole>, args);
}

template <class T>
void launch_half(const Call& call, const SmallArgs& args, std::size_t bytes) {
  const Launch how = blocks_of(call, args, kHalfRows, bytes);
  if (args.a_vectors && args.b_vectors && !args.float_adapter) {
    call.launch(how, small_half<T, true>, args);
  } else {
    call.launch(how, small_half<T, false>, args);
  }
}

}  // namespace
}  // namespace small

bool fits_small(const Term& term, const DeviceFacts& facts) {
  using namespace small;
  const LowRank& pair = term.pair;
  if (term.w.present() || term.bias.present() || !pair.present() || !term.y.present()) return false;
  if (!term.outer_products.empty() || pair.input_dropout || pair.output_dropout) return false;
  const std::int64_t rows = term.x.dim(0), depth = term.x.dim(1), cols = term.y.dim(1);
  if (rows < 1 || rows > kMostRows || pair.rank() % 4 != 0 || pair.rank() > kMostRank) return false;
  if (depth < 8 || depth > kMostFeatures || depth % 8 != 0) return false;
  if (cols < 8 || cols > kMostFeatures || cols % 8 != 0) return false;
  const DType type = term.x.dtype(), adapter = pair.shrink.dtype();
  return term.multiply == type && term.y.dtype() == type && pair.expand.dtype() == adapter &&
         (adapter == type || adapter == DType::kFloat32) && is_vectors(term.x) &&
         is_vectors(term.y) &&
         shared_bytes(type, rows, static_cast<int>(depth), static_cast<int>(cols),
                      static_cast<int>(pair.rank()), facts) <= facts.shared_bytes;
}

void run_small(const Call& call, const Term& term) {
  using namespace small;
  const LowRank& pair = term.pair;
  const DType type = term.x.dtype();
  SmallArgs args{};
  args.x = term.x.data(), args.a = pair.shrink.data(), args.b = pair.expand.data();
  args.y = term.y.mutable_data();
  args.h = pair.h.present() ? pair.h.mutable_data_as<float>() : nullptr;
  args.rows = term.x.dim(0), args.x_stride = term.x.stride(0), args.y_stride = term.y.stride(0);
  args.a_row = pair.shrink.stride(0), args.a_col = pair.shrink.stride(1);
  args.b_row = pair.expand.stride(0), args.b_col = pair.expand.stride(1);
  args.depth = static_cast<int>(term.x.dim(1)), args.cols = static_cast<int>(term.y.dim(1));
  args.rank = static_cast<int>(pair.rank());
  args.block_cols = args.cols;
  args.scaling = pair.scaling;
  args.accumulate = term.accumulate;
  args.a_vectors = is_vectors(pair.shrink), args.b_vectors = is_vectors(pair.expand);
  args.float_adapter = pair.shrink.dtype() == DType::kFloat32;
  const std::size_t bytes =
      shared_bytes(type, args.rows, args.depth, args.cols, args.rank, call.facts());
  const int at_once = rows_at_once(type, args.rows, call.facts());
  args.buffers = buffers_of(args.rows, at_once, call.facts());
  args.log_quads = log_quads_of(args.rank);
  if (type == DType::kFloat32) {
    if (at_once == 1) return launch_row(call, args);
    if (args.a_vectors && args.b_vectors) return launch_rows<true>(call, args, at_once, bytes);
    return launch_rows<false>(call, args, at_once, bytes);
  }
  args.block_cols = columns_of_a_block(args.rows, args.cols, call.facts());
  if (type == DType::kFloat16) return launch_half<__half>(call, args, bytes);
  launch_half<__nv_bfloat16>(call, args, bytes);
}

}  // namespace graft::cuda
