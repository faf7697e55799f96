#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cuda/rows.cuh"

// Rows flow through the registers of the threads that share them, each read from memory once:
//
//     memory ──cp.async──▶ stage s+1, s+2, ... (shared memory) ──▶ registers ──▶ memory
//
// Blocks stay for all of the kernel, one on a multiprocessor, and a thread asks for rows several
// ahead of the one it computes, so that memory never waits for a reduction. What a thread copies it
// alone reads: no barrier is needed but those of the reductions. This is for kernels that keep
// something from row to row, such as sums of columns.

namespace graft::cuda {

/// A thread's packs of its team's rows, one after another. Where a row has ended they are zeros.
template <class T, int Inputs>
class RowFlow : public Columns<T> {
 public:
  using Columns<T>::kPack;
  using Columns<T>::kApart;
  using Columns<T>::has;
#if __CUDA_ARCH__ >= 900
  static constexpr int kStages = flow_stages(9, Inputs);
#else
  static constexpr int kStages = flow_stages(8, Inputs);
#endif

  __device__ RowFlow(const RowPlan& plan, const Team<true>& team, const int& rows, int columns,
                     const Matrix (&inputs)[Inputs])
      : Columns<T>(plan, team, columns), plan_(plan), rows_(rows), inputs_(inputs) {
    const int cluster =
        plan.cluster == 1 ? blockIdx.x : static_cast<int>(blockIdx.x) / plan.cluster;
    next_ = cluster * plan.groups + team.index();
    extern __shared__ __align__(16) std::byte rows_in_shared_memory[];
    mine_ = shared_address(rows_in_shared_memory + threadIdx.x * kPackBytes);
    for (int stage = 0; stage < kStages; ++stage) {
#pragma unroll
      for (int i = 0; i < Inputs; ++i) {
#pragma unroll
        for (int k = 0; k < kFlowPacks; ++k) {
          if (!has(k)) clear_pack(place(i, k));
        }
      }
      ask();
    }
  }

  /// The packs of the next row; asks for a later row in their place.
  __device__ void take(Pack<T, kPack> (&packs)[Inputs][kFlowPacks]) {
    wait_copies<kStages - 1>();
#pragma unroll
    for (int i = 0; i < Inputs; ++i) {
#pragma unroll
      for (int k = 0; k < kFlowPacks; ++k) packs[i][k] = shared_pack<T>(place(i, k));
    }
    ask();
  }

 private:
  __device__ std::uint32_t place(int input, int k) const {
    return mine_ +
           (stage_ * Inputs * kFlowPacks + input * kFlowPacks + k) * (kFlowThreads * kPackBytes);
  }

  __device__ void ask() {
    if (next_ < rows_) {
#pragma unroll
      for (int i = 0; i < Inputs; ++i) {
        const T* const from = inputs_[i].template row<const T>(next_) + this->column(0);
#pragma unroll
        for (int k = 0; k < kFlowPacks; ++k) {
          if (has(k)) copy_pack(place(i, k), from + k * kApart);
        }
      }
    }
    next_ += plan_.step;
    commit_copies();  // even none: batches are counted
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
  }

  const RowPlan& plan_;
  const int& rows_;
  const Matrix (&inputs_)[Inputs];
  int next_;       // the row that is asked for next
  int stage_ = 0;  // that is taken and filled next
  std::uint32_t mine_;
};

/// A plan for kernels that stay, with no more clusters than run side by side: how many is up to the
/// device, some of whose multiprocessors have no neighbours left. All rows would wait for a cluster
/// that is late.
template <class... Params>
RowPlan side_by_side(RowPlan plan, void (*kernel)(Params...)) {
  const auto* const entry = reinterpret_cast<const void*>(kernel);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(plan.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(plan.blocks);
  config.blockDim = static_cast<unsigned>(plan.threads());
  config.dynamicSmemBytes = plan.shared_bytes;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int most = 0;
  cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(plan.shared_bytes));
  if (cudaOccupancyMaxActiveClusters(&most, entry, &config) != cudaSuccess) {
    cudaGetLastError();  // the launch will say what is wrong
  } else if (most > 0) {
    plan.blocks = std::min(plan.blocks, most * plan.cluster);
  }
  plan.step = plan.clusters() * plan.groups;
  return plan;
}

}  // namespace graft::cuda
