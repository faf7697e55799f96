// RMS norm reads each row twice, the second time from the first-level cache: bound by memory
// (float32: 8 bytes an element forward, 16 with a residual, 12 to 16 backward).

#include <algorithm>
#include <cmath>

#include "backend/cpu/isa.h"
#include "backend/cpu/rows.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/spans.h"
#include "backend/cpu/targets.h"
#include "backend/cpu/threads.h"
#include "checks.h"
#include "graft/rms_norm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "rms_norm/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "backend/cpu/memory-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

// Calls `body(i, load, store)` for each vector of a row; only the last may be partial, and
// its missing lanes read as zero.
template <class Body>
HWY_INLINE void ForEachVector(std::int64_t count, const Body& body) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    body(
        i, [](const auto* from) HWY_ATTR { return Load(from); },
        [](V value, auto* to) HWY_ATTR { Store(value, to); });
  }
  if (i < count) {
    const std::int64_t rest = count - i;
    body(
        i, [rest](const auto* from) HWY_ATTR { return LoadPart(from, rest); },
        [rest](V value, auto* to) HWY_ATTR { StorePart(value, to, rest); });
  }
}

float InverseRms(float sum_of_squares, std::int64_t count, float eps) {
  const float mean = sum_of_squares / static_cast<float>(std::max<std::int64_t>(1, count));
  return 1.0f / std::sqrt(mean + eps);
}

template <class T>
float RowRstd(const T* s, std::int64_t count, float eps) {
  V squares = hn::Zero(D());
  ForEachVector(count, [&](std::int64_t i, const auto& load, const auto&) HWY_ATTR {
    const V value = load(s + i);
    squares = hn::MulAdd(value, value, squares);
  });
  return InverseRms(hn::GetLane(hn::SumOfLanes(D(), squares)), count, eps);
}

template <class T>
void Add(const T* x, const T* residual, std::int64_t count, T* sum) {
  ForEachVector(count, [&](std::int64_t i, const auto& load, const auto& store)
                           HWY_ATTR { store(hn::Add(load(x + i), load(residual + i)), sum + i); });
}

template <class T>
void RunForward(const Context& context, const RmsNormForward& p, const float* weight) {
  const std::int64_t rows = p.x.dim(0), count = p.x.dim(1);
  const std::int64_t each =
      std::max<std::int64_t>(1, kSpanElements / std::max<std::int64_t>(1, count));
  parallel_for(context, (rows + each - 1) / each, [&](std::int64_t task) HWY_ATTR {
    for (std::int64_t row = task * each; row < std::min(rows, (task + 1) * each); ++row) {
      const T* s = element<T>(p.x, row, 0);
      if (p.residual.present()) {
        T* const sum = element<T>(p.sum, row, 0);
        Add(s, element<T>(p.residual, row, 0), count, sum);
        s = sum;
      }
      const float rstd = RowRstd(s, count, p.eps);
      if (p.rstd.present()) p.rstd.mutable_data_as<float>()[row] = rstd;
      T* const y = element<T>(p.y, row, 0);
      const V scale = hn::Set(D(), rstd);
      ForEachVector(count, [&](std::int64_t i, const auto& load, const auto& store) HWY_ATTR {
        store(hn::Mul(hn::Mul(load(s + i), scale), load(weight + i)), y + i);
      });
    }
  });
}

// One row; `dweight` (float32, added to) and ds may be null.
template <class T>
void BackwardRow(const RmsNormBackward& p, std::int64_t row, const float* weight, float* dweight) {
  const D d;
  const std::int64_t count = p.dy.dim(1);
  const T* const dy = element<T>(p.dy, row, 0);
  const T* const s = element<T>(p.s, row, 0);
  const T* const dsum = element<T>(p.dsum, row, 0);
  T* const ds = element<T>(p.ds, row, 0);
  const float rstd = p.rstd.present() ? p.rstd.data_as<float>()[row] : RowRstd(s, count, p.eps);
  V dots = hn::Zero(d);
  ForEachVector(count, [&](std::int64_t i, const auto& load, const auto&) HWY_ATTR {
    dots = hn::MulAdd(hn::Mul(load(dy + i), load(weight + i)), load(s + i), dots);
  });
  const float mean = hn::GetLane(hn::SumOfLanes(d, dots)) / static_cast<float>(count);
  const V scale = hn::Set(d, rstd), pull = hn::Set(d, mean * rstd * rstd * rstd);
  ForEachVector(count, [&](std::int64_t i, const auto& load, const auto& store) HWY_ATTR {
    const V gradient = load(dy + i), at = load(s + i);
    if (dweight != nullptr) {
      store(hn::MulAdd(gradient, hn::Mul(at, scale), load(dweight + i)), dweight + i);
    }
    if (ds == nullptr) return;
    const V straight = hn::Mul(hn::Mul(gradient, load(weight + i)), scale);
    const V norm = hn::NegMulAdd(at, pull, straight);
    store(dsum == nullptr ? norm : hn::Add(norm, load(dsum + i)), ds + i);
  });
}

// Groups of rows depend on the shape alone, and their parts of dweight are added in order.
template <class T>
void RunBackward(const Context& context, const RmsNormBackward& p, const float* weight,
                 float* partials, std::int64_t rows_a_group) {
  const std::int64_t rows = p.dy.dim(0), count = p.dy.dim(1);
  parallel_for(context, (rows + rows_a_group - 1) / rows_a_group, [&](std::int64_t group) HWY_ATTR {
    float* const dweight = partials == nullptr ? nullptr : partials + group * count;
    if (dweight != nullptr) std::fill_n(dweight, count, 0.0f);
    const std::int64_t last = std::min(rows, (group + 1) * rows_a_group);
    for (std::int64_t row = group * rows_a_group; row < last; ++row) {
      BackwardRow<T>(p, row, weight, dweight);
    }
  });
}

void RmsNormForwardHere(const Context& context, const RmsNormForward& p, const float* weight) {
  p.x.dtype() == DType::kFloat32 ? RunForward<float>(context, p, weight)
                                 : RunForward<hwy::bfloat16_t>(context, p, weight);
}

void RmsNormBackwardHere(const Context& context, const RmsNormBackward& p, const float* weight,
                         float* partials, std::int64_t rows_a_group) {
  p.dy.dtype() == DType::kFloat32
      ? RunBackward<float>(context, p, weight, partials, rows_a_group)
      : RunBackward<hwy::bfloat16_t>(context, p, weight, partials, rows_a_group);
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace graft::cpu {

HWY_EXPORT(RmsNormForwardHere);
HWY_EXPORT(RmsNormBackwardHere);

namespace {

// Groups of rows whose part of dweight is summed apart: enough rows to be worth a partial sum, few
// enough groups that adding them costs nothing.
struct Groups {
  std::int64_t rows_each, count;

  explicit Groups(std::int64_t rows) {
    constexpr std::int64_t kLeastRows = 16, kMostGroups = 64;
    rows_each = std::max(kLeastRows, (rows + kMostGroups - 1) / kMostGroups);
    count = (rows + rows_each - 1) / rows_each;
  }
};

struct Parts {
  float* weight;    // in float32
  float* partials;  // of dweight: [group][column]; null if it is not wanted
};

Parts layout(Scratch& scratch, const RmsNormForward& params) {
  return {scratch.take<float>(params.x.dim(1)), nullptr};
}

Parts layout(Scratch& scratch, const RmsNormBackward& params) {
  Parts parts{scratch.take<float>(params.dy.dim(1)), nullptr};
  if (params.dweight.present()) {
    parts.partials = scratch.take<float>(Groups(params.dy.dim(0)).count * params.dy.dim(1));
  }
  return parts;
}

template <class Params>
Parts lay_out_for(Context& context, const Params& params) {
  const Parts parts = lay_out(context, [&](Scratch& scratch) { return layout(scratch, params); });
  row_kernels().load(params.weight.data(), params.weight.dtype(), params.weight.dim(0),
                     parts.weight);
  return parts;
}

}  // namespace

Support supports(const RmsNormForward& p) {
  return all_of({float_on_cpu("x", p.x), float_on_cpu("weight", p.weight)});
}

Support supports(const RmsNormBackward& p) {
  return all_of({float_on_cpu("dy", p.dy), float_on_cpu("weight", p.weight)});
}

std::size_t scratch_bytes(const RmsNormForward& params, int) {
  return bytes_of([&](Scratch& scratch) { return layout(scratch, params); });
}

std::size_t scratch_bytes(const RmsNormBackward& params, int) {
  return bytes_of([&](Scratch& scratch) { return layout(scratch, params); });
}

void rms_norm_forward(Context& context, const RmsNormForward& params) {
  HWY_DYNAMIC_DISPATCH(RmsNormForwardHere)(context, params, lay_out_for(context, params).weight);
}

void rms_norm_backward(Context& context, const RmsNormBackward& params) {
  const Parts parts = lay_out_for(context, params);
  const Groups groups(params.dy.dim(0));
  HWY_DYNAMIC_DISPATCH(RmsNormBackwardHere)
  (context, params, parts.weight, parts.partials, groups.rows_each);
  if (parts.partials == nullptr) return;
  const std::int64_t columns = params.dy.dim(1);
  float* const dweight = params.dweight.mutable_data_as<float>();
  std::fill_n(dweight, columns, 0.0f);
  for (std::int64_t group = 0; group < groups.count; ++group) {
    row_kernels().add(parts.partials + group * columns, 1.0f, columns, dweight);
  }
}

}  // namespace graft::cpu
#endif
