#include <algorithm>

#include "backend/cuda/call.h"
#include "product/cuda/hopper_shrink.cuh"
#include "product/cuda/hopper_shrink.h"

namespace graft::cuda {
namespace {

using namespace hopper;

template <class T, int Width, bool SIsKN, bool Masked>
void launch(const Call& call, const HopperShrinkPlan& plan, const Maps& maps,
            const Arguments& args) {
  Launch how;
  // Beside the others, if there is room.
  const int at_once = call.facts().clusters_of[static_cast<std::size_t>(plan.cluster())];
  const int copiers =
      args.copies.of_pair == args.copies.of_s
          ? 0
          : std::max(2, at_once - static_cast<int>(std::min<std::int64_t>(plan.clusters, at_once)));
  how.grid = static_cast<unsigned>((plan.clusters + copiers) * plan.cluster());
  how.block = kThreads;
  how.cluster = plan.cluster();
  how.shared_bytes = Sizes<Width>::kEnd;
  how.overlaps = true;
  call.launch(how, shrink<T, Width, SIsKN, Masked>, maps, args,
              ShrinkShape{copiers * plan.cluster(), plan.pair, plan.splits,
                          args.masks != nullptr && args.copies.of_s == 0});
}

template <class T, int Width, bool SIsKN>
void launch(const Call& call, const HopperShrinkPlan& plan, const Maps& maps,
            const Arguments& args) {
  if (plan.masked) return launch<T, Width, SIsKN, true>(call, plan, maps, args);
  launch<T, Width, SIsKN, false>(call, plan, maps, args);
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
  if (plan.width == 256) {
    if (s_is_kn) return launch<T, 256, true>(call, plan, maps, args);
    return launch<T, 256, false>(call, plan, maps, args);
  }
  if (plan.width == 128) {
    if (s_is_kn) return launch<T, 128, true>(call, plan, maps, args);
    return launch<T, 128, false>(call, plan, maps, args);
  }
  if (s_is_kn) return launch<T, 64, true>(call, plan, maps, args);
  launch<T, 64, false>(call, plan, maps, args);
}

}  // namespace

void launch_hopper_shrink(const Call& call, const HopperShrinkPlan& plan, DType dtype, bool s_is_kn,
                          const Maps& maps, const Arguments& args) {
  if (dtype == DType::kFloat16) return launch<__half>(call, plan, s_is_kn, maps, args);
  launch<__nv_bfloat16>(call, plan, s_is_kn, maps, args);
}

}  // namespace graft::cuda
