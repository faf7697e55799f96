#include "backend/cuda/row_plan.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

namespace graft::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kMostCluster = 8;  // that every GPU with clusters takes
// Groups of several warps meet at barriers of their own, of which a block has 15 besides its own.
constexpr int kMostBarriers = 15;
constexpr std::size_t kOtherShared = 2048;  // what the kernels have besides the rows

std::int64_t ceil_div(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

}  // namespace

RowPlan plan_rows(const DeviceFacts& device, const RowWork& work) {
  RowPlan plan;
  if (!work.in_packs || work.rows == 0 || work.columns == 0) return plan;
  const auto pack = static_cast<std::int64_t>(kPackBytes / work.element_bytes);
  const std::int64_t packs = work.columns / pack;

  plan.deep = packs >= kWarp * row_packs(work.packs, true);
  if (const char* t = getenv("GRAFT_TRIAL_DEEP")) plan.deep = t[0] == '1';
  const int each = row_packs(work.packs, plan.deep), most = row_threads(plan.deep);

  std::int64_t threads = ceil_div(packs, each);
  while (threads > most && plan.cluster < kMostCluster) {
    plan.cluster *= 2;
    threads = ceil_div(ceil_div(packs, plan.cluster), each);
  }
  if (threads > most || (plan.cluster > 1 && device.major < 9)) return plan;
  plan.group = static_cast<int>(ceil_div(threads, kWarp)) * kWarp;
  plan.part = static_cast<int>(ceil_div(packs, plan.cluster) * pack);

  const std::size_t thread_bytes = static_cast<std::size_t>(row_stages(work.packs, work.inputs) *
                                                            work.inputs * each * kPackBytes);
  const std::size_t group_bytes = static_cast<std::size_t>(plan.group) * thread_bytes;
  if (group_bytes + kOtherShared > device.shared_bytes) return plan;
  if (plan.cluster == 1) {
    std::int64_t groups = std::min<std::int64_t>(
        most / plan.group,
        static_cast<std::int64_t>((device.shared_bytes - kOtherShared) / group_bytes));
    if (plan.group > kWarp) groups = std::min<std::int64_t>(groups, kMostBarriers);
    // Few rows: all multiprocessors before two rows in one.
    groups = std::min(groups, ceil_div(work.rows, device.multiprocessors));
    plan.groups = static_cast<int>(groups);
    plan.blocks = static_cast<int>(
        std::min<std::int64_t>(device.multiprocessors, ceil_div(work.rows, groups)));
  } else {
    plan.blocks = static_cast<int>(
        plan.cluster *
        std::min<std::int64_t>(std::max(device.multiprocessors / plan.cluster, 1), work.rows));
  }
  plan.shared_bytes = group_bytes * static_cast<std::size_t>(plan.groups);
  plan.fits = true;
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
