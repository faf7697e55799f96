#include "backend/cuda/row_plan.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "backend/cuda/integers.h"

namespace graft::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kMostCluster = 8;  // that every GPU with clusters takes
// Groups of several warps meet at barriers of their own, of which a block has 15 besides its own.
constexpr int kMostBarriers = 15;
constexpr std::size_t kOtherShared = 2048;  // what the kernels have besides the rows

// Threads for a block's part of a row in a cluster of so many, each with up to `most_packs`.
RowPlan team_of(const RowWork& work, int cluster, int most_packs, int most_threads) {
  RowPlan plan;
  const auto pack = static_cast<std::int64_t>(kPackBytes / work.element_bytes);
  const std::int64_t packs = divide_up(work.columns / pack, cluster);  // of a block
  const std::int64_t group = divide_up(divide_up(packs, most_packs), kWarp) * kWarp;
  // The last block of a cluster has something to do, too.
  plan.fits = group <= most_threads && packs * pack * (cluster - 1) < work.columns;
  if (!plan.fits) return plan;
  plan.cluster = cluster;
  plan.group = static_cast<int>(group);
  plan.slots = slots_of(plan.group);
  plan.packs = static_cast<int>(divide_up(packs, group));
  plan.part = static_cast<int>(packs * pack);
  return plan;
}

bool has_rows(const RowWork& work) { return work.in_packs && work.rows > 0 && work.columns > 0; }

int most_cluster(const DeviceFacts& device) { return device.major >= 9 ? kMostCluster : 1; }

}  // namespace

RowPlan plan_rows(const DeviceFacts& device, const RowWork& work, int most_packs) {
  if (!has_rows(work)) return {};
  if (work.columns * static_cast<std::int64_t>(work.element_bytes) <= kLongBytes) {
    most_packs = kHandPacks;
  }
  for (int cluster = 1; cluster <= most_cluster(device); cluster *= 2) {
    RowPlan plan = team_of(work, cluster, most_packs, kHandThreads);
    if (!plan.fits) continue;
    // Warps that have a row each are put together, so that a multiprocessor's blocks are enough.
    if (plan.group == kWarp && cluster == 1) plan.groups = 4;
    const std::int64_t clusters = divide_up(work.rows, plan.groups);
    plan.fits = clusters <= std::numeric_limits<int>::max() / plan.cluster;
    plan.blocks = plan.fits ? static_cast<int>(clusters) * plan.cluster : 0;
    return plan;
  }
  return {};
}

RowPlan plan_flow(const DeviceFacts& device, const RowWork& work, int inputs) {
  RowPlan plan;
  if (!has_rows(work) || work.rows > std::numeric_limits<int>::max() / 2) return plan;
  for (int cluster = 1; !plan.fits && cluster <= most_cluster(device); cluster *= 2) {
    plan = team_of(work, cluster, kFlowPacks, kFlowThreads);
  }
  if (!plan.fits) return plan;
  plan.packs = kFlowPacks;
  plan.shared_bytes = static_cast<std::size_t>(flow_stages(device.major, inputs) * inputs *
                                                   kFlowPacks * kFlowThreads * kPackBytes +
                                               kWeightBytes);
  if (plan.shared_bytes + kOtherShared > device.shared_bytes) {
    plan.fits = false;
    return plan;
  }
  if (plan.cluster == 1) {
    std::int64_t groups = kFlowThreads / plan.group;
    if (plan.group > kWarp) groups = std::min<std::int64_t>(groups, kMostBarriers);
    // Few rows: all multiprocessors before two rows in one.
    groups = std::min(groups, divide_up(work.rows, device.multiprocessors));
    plan.groups = static_cast<int>(groups);
    plan.blocks = static_cast<int>(
        std::min<std::int64_t>(device.multiprocessors, divide_up(work.rows, groups)));
  } else {
    plan.blocks = static_cast<int>(
        plan.cluster *
        std::min<std::int64_t>(std::max(device.multiprocessors / plan.cluster, 1), work.rows));
  }
  return plan;
}

bool in_packs(std::initializer_list<ConstTensorView> views) {
  for (const ConstTensorView& view : views) {
    if (!view.present()) continue;
    const auto bytes = static_cast<std::int64_t>(size_of(view.dtype()));
    const int last = view.rank() - 1;
    if (reinterpret_cast<std::uintptr_t>(view.data()) % kPackBytes != 0) return false;
    if (view.dim(last) * bytes % kPackBytes != 0) return false;
    // Columns are counted in 32 bits.
    if (view.dim(last) > std::numeric_limits<int>::max() / 2) return false;
    for (int axis = 0; axis < last; ++axis) {
      if (view.dim(axis) > 1 && view.stride(axis) * bytes % kPackBytes != 0) return false;
    }
  }
  return true;
}

Support floats_on_cuda(const char* tensor, const ConstTensorView& view) {
  if (!view.present()) return {};
  if (Support device = supports_device(view.device().index); !device) return device;
  if (view.dtype() == DType::kFloat32 || view.dtype() == DType::kFloat16 ||
      view.dtype() == DType::kBFloat16) {
    return {};
  }
  return Support::no(std::string(tensor) + ": " + name_of(view.dtype()) +
                     " has no CUDA kernel, float32, float16 and bfloat16 do");
}

}  // namespace graft::cuda
