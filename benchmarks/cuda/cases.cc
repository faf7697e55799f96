#include "benchmarks/cuda/cases.h"

#include <utility>

namespace graft::bench {

const char* name_of(Work work) {
  switch (work) {
    case Work::kDelta:
      return "delta";
    case Work::kDeltaBackward:
      return "delta_backward";
    case Work::kForward:
      return "forward";
    case Work::kBackward:
      return "backward";
    case Work::kForwardBackward:
      return "forward+backward";
    case Work::kSiblings:
      return "siblings";
    case Work::kSoftmax:
      return "softmax";
    case Work::kSoftmaxBoth:
      return "softmax+backward";
    case Work::kRmsNorm:
      return "rms_norm";
    case Work::kRmsNormBoth:
      return "rms_norm+backward";
    case Work::kLayerNorm:
      return "layer_norm";
    case Work::kLayerNormBoth:
      return "layer_norm+backward";
  }
  return "";
}

bool is_rows(Work work) { return work >= Work::kSoftmax; }
bool is_delta(Work work) { return work == Work::kDelta || work == Work::kDeltaBackward; }

std::string label_of(const CudaCase& item) {
  std::string label =
      std::string(name_of(item.work)) + " " + std::to_string(item.m) + "x" + std::to_string(item.k);
  if (!is_rows(item.work)) {
    label += ">" + std::to_string(item.n) + " r" + std::to_string(item.rank);
  }
  label += std::string(" ") + name_of(item.dtype);
  if (!is_rows(item.work)) label += std::string(" ") + name_of(item.adapter);
  if (item.dropout > 0) label += " dropout" + std::to_string(item.dropout).substr(0, 4);
  if (item.sm_80) label += " sm_80";
  return label;
}

std::vector<CudaCase> all_cuda_cases() {
  constexpr DType kF32 = DType::kFloat32, kBF16 = DType::kBFloat16;
  std::vector<CudaCase> cases;
  // The plan's grid,
  // batch 1, 4 and 16 by sequence 32, 128 and 512: some have as many rows as others.
  for (const DType dtype : {kF32, kBF16}) {
    for (const int rows : {32, 128, 512, 2048, 8192}) {
      for (const int rank : {4, 8, 16, 32}) {
        cases.push_back({Work::kDelta, rows, 512, 512, rank, dtype, dtype});
      }
    }
  }
  for (const DType dtype : {kF32, kBF16}) {
    for (const int rows : {128, 2048, 8192}) {
      cases.push_back({Work::kDeltaBackward, rows, 512, 512, 16, dtype, dtype});
    }
  }
  // Few rows.
  for (const int rows : {1, 16, 64}) cases.push_back({Work::kForward, rows, 4096, 4096});
  for (const int rows : {1, 16}) {
    cases.push_back({Work::kForward, rows, 4096, 4096, 16, kF32, kF32});
  }
  // Too many for one, too few for all multiprocessors.
  for (const int rows : {256, 320, 384}) cases.push_back({Work::kForward, rows, 4096, 4096});
  cases.push_back({Work::kForward, 1, 4096, 4096, 16, kBF16, kF32});
  cases.push_back({Work::kForward, 1, 4096, 4096, 64});
  cases.push_back({Work::kSiblings, 1, 4096, 4096});
  // Many rows; with the adapter in float32 too, as PEFT has it.
  for (const DType adapter : {kBF16, kF32}) {
    const auto forward = [&](std::int64_t m, std::int64_t k, std::int64_t n) {
      cases.push_back({Work::kForward, m, k, n, 16, kBF16, adapter});
    };
    forward(512, 4096, 4096), forward(512, 4096, 14336);
    forward(4096, 4096, 4096), forward(8192, 4096, 4096), forward(4096, 4096, 14336);
    for (const int rows : {4096, 8192}) {
      cases.push_back({Work::kBackward, rows, 4096, 4096, 16, kBF16, adapter});
    }
  }
  cases.push_back({Work::kForward, 8448, 4096, 4096});
  cases.push_back({Work::kForward, 8192, 2048, 2048});
  cases.push_back({Work::kForward, 4096, 4096, 4096, 16, DType::kFloat16, DType::kFloat16});
  cases.push_back({Work::kForward, 4096, 4096, 4096, 16, kF32, kF32});
  // Rows that are no multiple of anything, and their aligned neighbour.
  cases.push_back({Work::kForward, 4095, 4088, 4104, 13});
  cases.push_back({Work::kForward, 4096, 4096, 4096, 13});
  for (const int rank : {64, 128, 256}) {
    cases.push_back({Work::kForward, 4096, 4096, 4096, rank});
    cases.push_back({Work::kForward, 4096, 4096, 4096, rank, kBF16, kF32});
    cases.push_back({Work::kBackward, 4096, 4096, 4096, rank});
    cases.push_back({Work::kForward, 4096, 4096, 4096, rank, kBF16, kBF16, 0.1f});
    cases.push_back({Work::kBackward, 4096, 4096, 4096, rank, kBF16, kBF16, 0.1f});
  }
  for (const int rows : {4096, 8192}) {
    cases.push_back({Work::kForward, rows, 4096, 4096, 16, kBF16, kBF16, 0.1f});
  }
  cases.push_back({Work::kBackward, 4096, 14336, 4096});
  cases.push_back({Work::kBackward, 4096, 4096, 14336});
  cases.push_back({Work::kBackward, 512, 4096, 4096});
  cases.push_back({Work::kBackward, 8192, 2048, 2048});
  for (const int rows : {4096, 8192}) {
    cases.push_back({Work::kForwardBackward, rows, 4096, 4096, 16, kBF16, kBF16, 0.1f});
  }
  cases.push_back({Work::kSiblings, 4096, 4096, 4096});
  for (const Work work : {Work::kForward, Work::kBackward}) {
    cases.push_back({work, 4096, 4096, 4096, 16, kBF16, kBF16, 0.0f, true});
  }
  for (const Work work : {Work::kSoftmax, Work::kRmsNorm, Work::kLayerNorm, Work::kSoftmaxBoth,
                          Work::kRmsNormBoth, Work::kLayerNormBoth}) {
    cases.push_back({work, 4096, 4096, 0});
    for (const auto& [rows, features] :
         {std::pair{16384, 512}, {8192, 2048}, {2048, 8192}, {1024, 16384}, {2048, 32768}}) {
      cases.push_back({work, rows, features, 0});
    }
  }
  return cases;
}

}  // namespace graft::bench
