// Layer norm is bound by memory (float32: 8 bytes an element forward, 12 backward): it reads a row
// from there once, and twice more from the caches.

#include <algorithm>
#include <cmath>

#include "backend/cpu/row_tasks.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/spans.h"
#include "backend/cpu/targets.h"
#include "checks.h"
#include "graft/layer_norm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layer_norm/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "backend/cpu/row_passes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

// mean + rest is the mean of a row, more exactly than one float32 could say it.
struct Moments {
  float mean, rest, rstd;
};

// A mean that is off by `rest` makes the mean square about it larger by rest²: so neither a large
// mean nor a long sum costs the variance its digits (Chan, Golub and LeVeque, 1983).
template <class T>
Moments MomentsOf(const T* x, std::int64_t count, float eps) {
  const float n = static_cast<float>(count);
  Sum sum;
  ForEachVector(count, [&](int chain, std::int64_t i, auto lanes) HWY_ATTR {
    sum.chains[chain] = hn::Add(sum.chains[chain], lanes.load(x + i));
  });
  const float mean = sum.total() / n;
  const V means = hn::Set(D(), mean);
  Sum rests, squares;
  ForEachVector(count, [&](int chain, std::int64_t i, auto lanes) HWY_ATTR {
    const V apart = lanes.keep(hn::Sub(lanes.load(x + i), means), hn::Zero(D()));
    rests.chains[chain] = hn::Add(rests.chains[chain], apart);
    squares.chains[chain] = hn::MulAdd(apart, apart, squares.chains[chain]);
  });
  const float rest = rests.total() / n;
  const float variance = std::max(squares.total() / n - rest * rest, 0.0f);  // NaN stays NaN
  return {mean, rest, 1.0f / std::sqrt(variance + eps)};
}

template <bool Stream, class T>
void RunForward(const LayerNormForward& p, const RowTasks& tasks, const float* weight,
                const float* bias) {
  const std::int64_t count = p.x.dim(1);
  tasks.run([&](std::int64_t first, std::int64_t end, int) HWY_ATTR {
    for (std::int64_t row = first; row < end; ++row) {
      const T* const x = element<T>(p.x, row, 0);
      const T* const next = element<T>(p.x, std::min(row + 1, end - 1), 0);
      const Moments moments = MomentsOf(x, count, p.eps);
      if (p.mean.present()) p.mean.mutable_data_as<float>()[row] = moments.mean + moments.rest;
      if (p.rstd.present()) p.rstd.mutable_data_as<float>()[row] = moments.rstd;
      const V mean = hn::Set(D(), moments.mean), rstd = hn::Set(D(), moments.rstd);
      const V rest = hn::Set(D(), moments.rest * moments.rstd);
      WriteRow<Stream>(element<T>(p.y, row, 0), count, [&](std::int64_t i, auto lanes) HWY_ATTR {
        PrefetchVector<Stream>(next, i);
        const V normal = hn::MulSub(hn::Sub(lanes.load(x + i), mean), rstd, rest);
        return hn::MulAdd(normal, Load(weight + i), Load(bias + i));
      });
    }
    if (Stream) hwy::FlushStream();
  });
}

// dx of one row = rstd · (g − mean_g) − (x − mean) · pull.
template <bool Stream, class T>
HWY_INLINE void WriteGradient(const T* dy, const T* x, std::int64_t count, const float* weight,
                              float mean, float rstd, float mean_g, float pull, const T* next_dy,
                              const T* next_x, T* dx) {
  const V means = hn::Set(D(), mean), rstds = hn::Set(D(), rstd);
  const V means_g = hn::Set(D(), mean_g), pulls = hn::Set(D(), pull);
  WriteRow<Stream>(dx, count, [&](std::int64_t i, auto lanes) HWY_ATTR {
    PrefetchVector<Stream>(next_dy, i);
    PrefetchVector<Stream>(next_x, i);
    const V g = hn::Mul(lanes.load(dy + i), Load(weight + i));
    const V apart = hn::Sub(lanes.load(x + i), means);
    return hn::NegMulAdd(apart, pulls, hn::Mul(hn::Sub(g, means_g), rstds));
  });
}

// `Rows` rows at once, so that the sums over rows are read and written once for all. dweight and
// dbias (added to) are both null if not wanted. Rows up to `end` are read soon.
template <int Rows, bool Stream, class T>
void BackwardRows(const LayerNormBackward& p, std::int64_t row, std::int64_t end,
                  const float* weight, float* dweight, float* dbias) {
  const D d;
  const std::int64_t count = p.dy.dim(1);
  const float n = static_cast<float>(count);
  const T *dy[Rows], *x[Rows];
  Moments moments[Rows];
  V means[Rows], rstds[Rows], sums[Rows], dots[Rows];  // of g, and of g ∘ (x − mean)
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    dy[r] = element<T>(p.dy, row + r, 0);
    x[r] = element<T>(p.x, row + r, 0);
    moments[r] = p.mean.present() ? Moments{p.mean.data_as<float>()[row + r], 0.0f,
                                            p.rstd.data_as<float>()[row + r]}
                                  : MomentsOf(x[r], count, p.eps);
    means[r] = hn::Set(d, moments[r].mean + moments[r].rest);
    rstds[r] = hn::Set(d, moments[r].rstd);
    sums[r] = dots[r] = hn::Zero(d);
  }
  const auto add = [&](std::int64_t i, auto lanes) HWY_ATTR {
    V of_weight = hn::Zero(d), of_bias = hn::Zero(d);
    const V weights = Load(weight + i);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const V gradient = lanes.load(dy[r] + i), apart = hn::Sub(lanes.load(x[r] + i), means[r]);
      const V g = hn::Mul(gradient, weights);
      sums[r] = hn::Add(sums[r], g);
      dots[r] = hn::MulAdd(g, apart, dots[r]);
      of_weight = hn::MulAdd(gradient, hn::Mul(apart, rstds[r]), of_weight);
      of_bias = hn::Add(of_bias, gradient);
    }
    if (dweight == nullptr) return;
    Store(hn::Add(Load(dweight + i), of_weight), dweight + i);
    Store(hn::Add(Load(dbias + i), of_bias), dbias + i);
  };
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) add(i, AllLanes());
  if (i < count) add(i, FirstLanes{count - i});
  if (!p.dx.present()) return;
  for (int r = 0; r < Rows; ++r) {
    const float rstd = moments[r].rstd;
    const float sum = hn::GetLane(hn::SumOfLanes(d, sums[r]));
    const float dot = hn::GetLane(hn::SumOfLanes(d, dots[r]));
    const std::int64_t next = std::min(row + r + Rows, end - 1);
    WriteGradient<Stream>(dy[r], x[r], count, weight, moments[r].mean + moments[r].rest, rstd,
                          sum / n, dot / n * rstd * rstd * rstd, element<T>(p.dy, next, 0),
                          element<T>(p.x, next, 0), element<T>(p.dx, row + r, 0));
  }
}

// `partials`: two rows of sums for each group, or null.
template <bool Stream, class T>
void RunBackward(const LayerNormBackward& p, const RowGroups& groups, const Context& context,
                 const float* weight, float* partials) {
  const std::int64_t width = padded(p.dy.dim(1));
  groups.run(context, [&](std::int64_t group, std::int64_t row, std::int64_t end) HWY_ATTR {
    float* const dweight = partials == nullptr ? nullptr : partials + group * 2 * width;
    float* const dbias = partials == nullptr ? nullptr : dweight + width;
    if (partials != nullptr) std::fill_n(dweight, 2 * width, 0.0f);
    for (; row + kRowsAtOnce <= end; row += kRowsAtOnce) {
      BackwardRows<kRowsAtOnce, Stream, T>(p, row, end, weight, dweight, dbias);
    }
    for (; row < end; ++row) BackwardRows<1, Stream, T>(p, row, end, weight, dweight, dbias);
    if (Stream) hwy::FlushStream();
  });
}

void LayerNormForwardHere(const LayerNormForward& p, const RowTasks& tasks, const float* weight,
                          const float* bias) {
  const auto run = [&](auto stream, auto element_type) {
    RunForward<decltype(stream)::value, decltype(element_type)>(p, tasks, weight, bias);
  };
  WithRowTypes(p.x.dtype(), streams(p.y, {p.x}), run);
}

void LayerNormBackwardHere(const LayerNormBackward& p, const RowGroups& groups,
                           const Context& context, const float* weight, float* partials) {
  const auto run = [&](auto stream, auto element_type) {
    RunBackward<decltype(stream)::value, decltype(element_type)>(p, groups, context, weight,
                                                                 partials);
  };
  WithRowTypes(p.dy.dtype(), p.dx.present() && streams(p.dx, {p.dy, p.x}), run);
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace graft::cpu {

HWY_EXPORT(LayerNormForwardHere);
HWY_EXPORT(LayerNormBackwardHere);

namespace {

struct Parts {
  float *weight, *bias;  // in float32
  float* partials;       // of dweight and dbias: [group][2][column]; null if neither is wanted
};

Parts layout(Scratch& scratch, const LayerNormForward& params) {
  const std::int64_t width = padded(params.x.dim(1));
  float* const weight = scratch.take<float>(width);
  return {weight, scratch.take<float>(width), nullptr};
}

Parts layout(Scratch& scratch, const LayerNormBackward& params) {
  const std::int64_t width = padded(params.dy.dim(1));
  Parts parts{scratch.take<float>(width), nullptr, nullptr};
  if (params.dweight.present() || params.dbias.present()) {
    parts.partials = scratch.take<float>(RowGroups(params.dy.dim(0)).count * 2 * width);
  }
  return parts;
}

}  // namespace

Support supports(const LayerNormForward& p) {
  return all_of(
      {float_on_cpu("x", p.x), float_on_cpu("weight", p.weight), float_on_cpu("bias", p.bias)});
}

Support supports(const LayerNormBackward& p) {
  return all_of({float_on_cpu("dy", p.dy), float_on_cpu("weight", p.weight)});
}

std::size_t scratch_bytes(const LayerNormForward& params, int) {
  return bytes_of([&](Scratch& scratch) { return layout(scratch, params); });
}

std::size_t scratch_bytes(const LayerNormBackward& params, int) {
  return bytes_of([&](Scratch& scratch) { return layout(scratch, params); });
}

void layer_norm_forward(Context& context, const LayerNormForward& params) {
  const std::int64_t count = params.x.dim(1);
  const Parts parts = lay_out(context, [&](Scratch& scratch) { return layout(scratch, params); });
  load_padded(params.weight, 1.0f, count, parts.weight);
  load_padded(params.bias, 0.0f, count, parts.bias);
  HWY_DYNAMIC_DISPATCH(LayerNormForwardHere)
  (params, RowTasks(context, params.x.dim(0), count), parts.weight, parts.bias);
}

void layer_norm_backward(Context& context, const LayerNormBackward& params) {
  const std::int64_t count = params.dy.dim(1), width = padded(count);
  const RowGroups groups(params.dy.dim(0));
  const Parts parts = lay_out(context, [&](Scratch& scratch) { return layout(scratch, params); });
  load_padded(params.weight, 1.0f, count, parts.weight);
  HWY_DYNAMIC_DISPATCH(LayerNormBackwardHere)
  (params, groups, context, parts.weight, parts.partials);
  if (params.dweight.present()) groups.add(context, parts.partials, 2 * width, params.dweight);
  if (params.dbias.present()) groups.add(context, parts.partials + width, 2 * width, params.dbias);
}

}  // namespace graft::cpu
#endif
