#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>

#include "backend/cuda/tensor_map.h"
#include "product/cuda/hopper_outer.cuh"
#include "product/cuda/hopper_outer.h"

namespace graft::cuda {
namespace {

using namespace hopper_outer;

template <class T, int Width>
void launch(const Call& call, const HopperOuterLaunch& plan, const Maps& maps,
            const Arguments& args) {
  Launch how;
  how.grid = static_cast<unsigned>(plan.clusters * plan.splits);
  how.block = kThreads;
  how.cluster = plan.splits;
  how.shared_bytes = Sizes<Width>::kEnd;
  how.overlaps = true;
  call.launch(how, sum_outer<T, Width>, maps, args);
}

template <class T>
void launch(const Call& call, const HopperOuterLaunch& plan, const Maps& maps,
            const Arguments& args) {
  if (plan.width == 64) return launch<T, 64>(call, plan, maps, args);
  if (plan.width == 128) return launch<T, 128>(call, plan, maps, args);
  launch<T, 256>(call, plan, maps, args);
}

}  // namespace

void run_hopper_outer(const char* op, const Call& call, std::span<const HopperOuterJob> jobs,
                      bool early) {
  const ConstTensorView& matrix = jobs[0].matrix;
  const std::int64_t m = matrix.dim(0), rank = jobs[0].out.dim(0);
  std::array<std::int64_t, kMostOuterJobs> cols{};
  for (std::size_t i = 0; i < jobs.size(); ++i) cols[i] = jobs[i].matrix.dim(1);
  const HopperOuterLaunch plan =
      plan_hopper_outer_launch(m, {cols.data(), jobs.size()}, rank, call.facts());

  Maps maps{};
  Arguments args{};
  args.count = static_cast<int>(jobs.size());
  args.rank = static_cast<int>(rank);
  args.steps = static_cast<int>((m + kRows - 1) / kRows);
  args.splits = plan.splits;
  args.early = early;
  std::int64_t first_tile = 0;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const HopperOuterJob& from = jobs[i];
    Job& job = args.jobs[i];
    job.out = from.out.mutable_data_as<float>();
    job.rank_stride = from.out.stride(0);
    job.col_stride = from.out.stride(1);
    job.factor = from.factor;
    job.cols = static_cast<int>(cols[i]);
    job.first_tile = static_cast<int>(first_tile);
    job.masks = from.turned_masks;
    job.mask_steps = static_cast<int>(from.mask_steps);
    first_tile += HopperOuterLaunch::tiles_of(cols[i]);
    maps.matrix[i] = tensor_map(op, from.matrix.data(), from.matrix.dtype(), m, cols[i],
                                from.matrix.stride(0), kRows);
    maps.coefficients[i] =
        tensor_map(op, from.coefficients, from.matrix.dtype(), m, rank, from.stride, kRows);
  }
  if (matrix.dtype() == DType::kFloat16) return launch<__half>(call, plan, maps, args);
  launch<__nv_bfloat16>(call, plan, maps, args);
}

}  // namespace graft::cuda
