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

template <class T, int Inputs>
class RowFlow : public Columns<T, kFlowPacks> {
 public:
  using Columns<T, kFlowPacks>::kPack;
  using Columns<T, kFlowPacks>::kApart;
  using Columns<T, kFlowPacks>::column;
  using Columns<T, kFlowPacks>::has;
#if __CUDA_ARCH__ >= 900
  static constexpr int kStages = flow_stages(9, Inputs);
#else
  static constexpr int kStages = flow_stages(8, Inputs);
#endif

  __device__ RowFlow(const RowPlan& plan, const Team<true>& team, std::int64_t rows, int columns,
                     const Rows<const T> (&inputs)[Inputs])
      : Columns<T, kFlowPacks>(plan, team, columns), rows_(rows) {
    const int cluster = static_cast<int>(blockIdx.x) / plan.cluster;
    step_ = static_cast<std::int64_t>(plan.blocks / plan.cluster) * plan.groups;
    row_ = static_cast<std::int64_t>(cluster) * plan.groups + team.index();
    ahead_ = row_;
    whole_ = team.rank() * plan.part + plan.group * kPack * kFlowPacks == this->end_;
    extern __shared__ __align__(16) std::byte rows_in_shared_memory[];
    mine_ = shared_address(rows_in_shared_memory + threadIdx.x * kPackBytes);
#pragma unroll
    for (int i = 0; i < Inputs; ++i) inputs_[i] = inputs[i];
    for (int stage = 0; stage < kStages; ++stage) ask();
  }

  __device__ bool more() const { return row_ < rows_; }
  __device__ std::int64_t row() const { return row_; }
  __device__ std::int64_t next_row() const { return row_ + step_; }
  __device__ void go_on() {
    row_ += step_;
    // As if it changed: addresses that depend on it alone are cheaper to make again for each row
    // than to keep, of which the compiler would rather do the latter and run out of registers.
    asm volatile("" : "+r"(this->column_));
  }

  /// Where this thread's part of the row begins in `rows`; its packs are kApart elements apart.
  template <class Element>
  __device__ Element* mine(const Rows<Element>& rows) const {
    return rows.row(row_) + this->column_;
  }

  /// The packs of the current row, of all inputs that there are, zeros where it has ended; asks for
  /// a later row in their place. Once a row.
  __device__ void take(Pack<T, kPack> (&packs)[Inputs][kFlowPacks]) {
    wait_copies<kStages - 1>();
#pragma unroll
    for (int i = 0; i < Inputs; ++i) {
      if (inputs_[i].data == nullptr) continue;
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
    if (ahead_ < rows_) {
#pragma unroll
      for (int i = 0; i < Inputs; ++i) {
        if (inputs_[i].data == nullptr) continue;
        const T* const from = inputs_[i].row(ahead_) + this->column_;
        if (whole_) {
#pragma unroll
          for (int k = 0; k < kFlowPacks; ++k) copy_pack(place(i, k), from + k * kApart);
        } else {
#pragma unroll
          for (int k = 0; k < kFlowPacks; ++k) {
            copy_pack_if(has(k), place(i, k), has(k) ? from + k * kApart : inputs_[i].data);
          }
        }
      }
      ahead_ += step_;
    }
    commit_copies();  // even none: batches are counted
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
  }

  Rows<const T> inputs_[Inputs];
  std::int64_t rows_, row_, ahead_, step_;
  bool whole_;     // no pack of the team lies behind the end
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
  return plan;
}

}  // namespace graft::cuda
