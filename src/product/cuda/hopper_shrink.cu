#include <algorithm>

#include "backend/cuda/call.h"
#include "product/cuda/hopper_shrink.cuh"
#include "product/cuda/hopper_shrink.h"

namespace graft::cuda {
namespace {

using namespace hopper;

template <class T, int Width, int Blocks, bool SIsKN, bool Masked>
void launch(const Call& call, const HopperShrinkPlan& plan, const Maps& maps,
            const Arguments& args) {
  const int size = plan.cluster();
  // E is copied beside the h that is made whole. Else by others, where there is room.
  const bool copies = args.copies.of_pair > args.copies.of_s && plan.whole_clusters == 0;
  const std::int64_t at_once = call.facts().clusters_of[static_cast<std::size_t>(size)];
  const std::int64_t copiers = copies ? std::max<std::int64_t>(2, at_once - plan.clusters) : 0;
  Launch how;
  how.grid = static_cast<unsigned>((plan.clusters + copiers) * size);
  how.block = kThreads;
  how.cluster = size;
  how.shared_bytes = ShrinkSizes<Width, Blocks>::kEnd;
  how.overlaps = true;
  ShrinkShape shape{};
  shape.copy_blocks = static_cast<int>(copiers) * size;
  shape.whole_clusters = static_cast<int>(plan.whole_clusters);
  shape.pair = plan.pair, shape.splits = plan.splits;
  shape.s_box_rows = plan.s_box_rows(SIsKN);
  shape.after_masks = args.masks != nullptr && args.copies.of_s == 0;
  call.launch(how, shrink<T, Width, Blocks, SIsKN, Masked>, maps, args, shape);
}

template <class T, int Width, int Blocks, bool SIsKN>
void launch(const Call& call, const HopperShrinkPlan& plan, const Maps& maps,
            const Arguments& args) {
  if (plan.masked) return launch<T, Width, Blocks, SIsKN, true>(call, plan, maps, args);
  launch<T, Width, Blocks, SIsKN, false>(call, plan, maps, args);
}

template <class T, bool SIsKN>
void launch(const Call& call, const HopperShrinkPlan& plan, const Maps& maps,
            const Arguments& args) {
  if (plan.width == 256) return launch<T, 256, 1, SIsKN>(call, plan, maps, args);
  if (plan.width == 128) {
    if (plan.blocks == 2) return launch<T, 128, 2, SIsKN, false>(call, plan, maps, args);
    return launch<T, 128, 1, SIsKN>(call, plan, maps, args);
  }
  if (plan.blocks == 2) return launch<T, 64, 2, SIsKN, true>(call, plan, maps, args);
  launch<T, 64, 1, SIsKN>(call, plan, maps, args);
}

template <class T>
void launch(const Call& call, const HopperShrinkPlan& plan, bool s_is_kn, const Maps& maps,
            const Arguments& args) {
  if (args.copies.of_s > 0) {
    Launch how;
    how.grid = static_cast<unsigned>(call.facts().multiprocessors) * 8;
    how.block = kCopyThreads;
    how.overlaps = true;
    call.launch(how, copy_shrink<T>, args.copies);
  }
  if (s_is_kn) return launch<T, true>(call, plan, maps, args);
  launch<T, false>(call, plan, maps, args);
}

}  // namespace

void launch_hopper_shrink(const Call& call, const HopperShrinkPlan& plan, DType dtype, bool s_is_kn,
                          const Maps& maps, const Arguments& args) {
  if (dtype == DType::kFloat16) return launch<__half>(call, plan, s_is_kn, maps, args);
  launch<__nv_bfloat16>(call, plan, s_is_kn, maps, args);
}

}  // namespace graft::cuda
