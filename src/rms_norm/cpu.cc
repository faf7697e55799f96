// RMS norm reads each row twice, the second time from the caches: bound by memory (float32: 8 bytes
// an element forward, 16 with a residual, 12 to 16 backward).

#include <algorithm>
#include <cmath>

#include "backend/cpu/isa.h"
#include "backend/cpu/row_tasks.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/spans.h"
#include "backend/cpu/targets.h"
#include "checks.h"
#include "graft/rms_norm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "rms_norm/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "backend/cpu/row_passes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

template <class T>
float RowRstd(const T* s, std::int64_t count, float eps) {
  Sum squares;
  ForEachVector(count, [&](int chain, std::int64_t i, auto lanes) HWY_ATTR {
    const V value = lanes.load(s + i);
    squares.chains[chain] = hn::MulAdd(value, value, squares.chains[chain]);
  });
  const float n = static_cast<float>(std::max<std::int64_t>(1, count));
  return 1.0f / std::sqrt(squares.total() / n + eps);
}

template <bool Stream, class T>
void RunForward(const RmsNormForward& p, const RowTasks& tasks, const float* weight) {
  const std::int64_t count = p.x.dim(1);
  tasks.run([&](std::int64_t first, std::int64_t end, int) HWY_ATTR {
    for (std::int64_t row = first; row < end; ++row) {
      const std::int64_t next = std::min(row + 1, end - 1);
      const T* s = element<T>(p.x, row, 0);
      if (p.residual.present()) {
        const T *const x = s, *const residual = element<T>(p.residual, row, 0);
        T* const sum = element<T>(p.sum, row, 0);
        WriteRow<false>(sum, count, [&](std::int64_t i, auto lanes) HWY_ATTR {
          return hn::Add(lanes.load(x + i), lanes.load(residual + i));
        });
        s = sum;
      }
      const float rstd = RowRstd(s, count, p.eps);
      if (p.rstd.present()) p.rstd.mutable_data_as<float>()[row] = rstd;
      const V scale = hn::Set(D(), rstd);
      const T* const next_x = element<T>(p.x, next, 0);
      WriteRow<Stream>(element<T>(p.y, row, 0), count, [&](std::int64_t i, auto lanes) HWY_ATTR {
        PrefetchVector<Stream>(next_x, i);
        return hn::Mul(hn::Mul(lanes.load(s + i), scale), Load(weight + i));
      });
    }
    if (Stream) hwy::FlushStream();
  });
}

// ds of one row = rstd · dy ∘ weight − s · pull, and dsum if there is one.
template <bool Stream, class T>
HWY_INLINE void WriteGradient(const RmsNormBackward& p, std::int64_t row, std::int64_t next,
                              const float* weight, float rstd, float pull) {
  const T *const dy = element<T>(p.dy, row, 0), *const s = element<T>(p.s, row, 0);
  const T *const next_dy = element<T>(p.dy, next, 0), *const next_s = element<T>(p.s, next, 0);
  const T* const dsum = element<T>(p.dsum, row, 0);
  const V scale = hn::Set(D(), rstd), pulls = hn::Set(D(), pull);
  WriteRow<Stream>(element<T>(p.ds, row, 0), p.dy.dim(1), [&](std::int64_t i, auto lanes) HWY_ATTR {
    PrefetchVector<Stream>(next_dy, i);
    PrefetchVector<Stream>(next_s, i);
    const V straight = hn::Mul(hn::Mul(lanes.load(dy + i), Load(weight + i)), scale);
    const V norm = hn::NegMulAdd(lanes.load(s + i), pulls, straight);
    return dsum == nullptr ? norm : hn::Add(norm, lanes.load(dsum + i));
  });
}

// `Rows` rows at once, so that dweight (added to; null if not wanted) is read and written once for
// all. Rows up to `end` are read soon.
template <int Rows, bool Stream, class T>
void BackwardRows(const RmsNormBackward& p, std::int64_t row, std::int64_t end, const float* weight,
                  float* dweight) {
  const D d;
  const std::int64_t count = p.dy.dim(1);
  const T *dy[Rows], *s[Rows];
  float rstd[Rows];
  V scales[Rows], dots[Rows];  // of dy ∘ weight and s
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    dy[r] = element<T>(p.dy, row + r, 0);
    s[r] = element<T>(p.s, row + r, 0);
    rstd[r] = p.rstd.present() ? p.rstd.data_as<float>()[row + r] : RowRstd(s[r], count, p.eps);
    scales[r] = hn::Set(d, rstd[r]);
    dots[r] = hn::Zero(d);
  }
  const auto add = [&](std::int64_t i, auto lanes) HWY_ATTR {
    const V weights = Load(weight + i);
    V of_weight = hn::Zero(d);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const V gradient = lanes.load(dy[r] + i), at = lanes.load(s[r] + i);
      dots[r] = hn::MulAdd(hn::Mul(gradient, weights), at, dots[r]);
      of_weight = hn::MulAdd(gradient, hn::Mul(at, scales[r]), of_weight);
    }
    if (dweight != nullptr) Store(hn::Add(Load(dweight + i), of_weight), dweight + i);
  };
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) add(i, AllLanes());
  if (i < count) add(i, FirstLanes{count - i});
  if (!p.ds.present()) return;
  for (int r = 0; r < Rows; ++r) {
    const float mean = hn::GetLane(hn::SumOfLanes(d, dots[r])) / static_cast<float>(count);
    WriteGradient<Stream, T>(p, row + r, std::min(row + r + Rows, end - 1), weight, rstd[r],
                             mean * rstd[r] * rstd[r] * rstd[r]);
  }
}

// `partials`: a row of sums for each group, or null.
template <bool Stream, class T>
void RunBackward(const RmsNormBackward& p, const RowGroups& groups, const Context& context,
                 const float* weight, float* partials) {
  const std::int64_t width = padded(p.dy.dim(1));
  groups.run(context, [&](std::int64_t group, std::int64_t row, std::int64_t end) HWY_ATTR {
    float* const dweight = partials == nullptr ? nullptr : partials + group * width;
    if (dweight != nullptr) std::fill_n(dweight, width, 0.0f);
    for (; row + kRowsAtOnce <= end; row += kRowsAtOnce) {
      BackwardRows<kRowsAtOnce, Stream, T>(p, row, end, weight, dweight);
    }
    for (; row < end; ++row) BackwardRows<1, Stream, T>(p, row, end, weight, dweight);
    if (Stream) hwy::FlushStream();
  });
}

void RmsNormForwardHere(const RmsNormForward& p, const RowTasks& tasks, const float* weight) {
  const auto run = [&](auto stream, auto element_type) {
    RunForward<decltype(stream)::value, decltype(element_type)>(p, tasks, weight);
  };
  WithRowTypes(p.x.dtype(), streams(p.y, {p.x, p.residual}), run);
}

void RmsNormBackwardHere(const RmsNormBackward& p, const RowGroups& groups, const Context& context,
                         const float* weight, float* partials) {
  const auto run = [&](auto stream, auto element_type) {
    RunBackward<decltype(stream)::value, decltype(element_type)>(p, groups, context, weight,
                                                                 partials);
  };
  WithRowTypes(p.dy.dtype(), p.ds.present() && streams(p.ds, {p.dy, p.s, p.dsum}), run);
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace graft::cpu {

HWY_EXPORT(RmsNormForwardHere);
HWY_EXPORT(RmsNormBackwardHere);

namespace {

struct Parts {
  float* weight;    // in float32
  float* partials;  // of dweight: [group][column]; null if it is not wanted
};

Parts layout(Scratch& scratch, const RmsNormForward& params) {
  return {scratch.take<float>(padded(params.x.dim(1))), nullptr};
}

Parts layout(Scratch& scratch, const RmsNormBackward& params) {
  const std::int64_t width = padded(params.dy.dim(1));
  Parts parts{scratch.take<float>(width), nullptr};
  if (params.dweight.present()) {
    parts.partials = scratch.take<float>(RowGroups(params.dy.dim(0)).count * width);
  }
  return parts;
}

template <class Params>
Parts lay_out_for(Context& context, const Params& params) {
  const Parts parts = lay_out(context, [&](Scratch& scratch) { return layout(scratch, params); });
  load_padded(params.weight, 1.0f, params.weight.dim(0), parts.weight);
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
  const Parts parts = lay_out_for(context, params);
  HWY_DYNAMIC_DISPATCH(RmsNormForwardHere)
  (params, RowTasks(context, params.x.dim(0), params.x.dim(1)), parts.weight);
}

void rms_norm_backward(Context& context, const RmsNormBackward& params) {
  const Parts parts = lay_out_for(context, params);
  const RowGroups groups(params.dy.dim(0));
  HWY_DYNAMIC_DISPATCH(RmsNormBackwardHere)
  (params, groups, context, parts.weight, parts.partials);
  if (params.dweight.present()) {
    groups.add(context, parts.partials, padded(params.dy.dim(1)), params.dweight);
  }
}

}  // namespace graft::cpu
#endif
