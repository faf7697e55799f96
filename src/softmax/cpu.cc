// Softmax reads a row from memory once: its maximum, the exponentials and the division by their sum
// are passes over the first-level cache (float32: 8 bytes an element forward, 12 backward, and some
// 20 instructions a vector).

#include <algorithm>
#include <limits>

#include "backend/cpu/isa.h"
#include "backend/cpu/row_tasks.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/spans.h"
#include "backend/cpu/targets.h"
#include "checks.h"
#include "graft/softmax.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "softmax/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "backend/cpu/exp-inl.h"
#include "backend/cpu/row_passes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

template <class T>
float Largest(const T* x, std::int64_t count) {
  const V lowest = hn::Set(D(), -std::numeric_limits<float>::infinity());
  V largest[kChains] = {lowest, lowest, lowest, lowest};
  ForEachVector(count, [&](int chain, std::int64_t i, auto lanes) HWY_ATTR {
    largest[chain] = hn::Max(largest[chain], lanes.keep(lanes.load(x + i), lowest));
  });
  const V all = hn::Max(hn::Max(largest[0], largest[1]), hn::Max(largest[2], largest[3]));
  return hn::GetLane(hn::MaxOfLanes(D(), all));
}

// y of one row, whose maximum is `largest`; returns that of `next`, the row to come or x again,
// which is found while the sum of this one is not there yet. With `powers`, room for the row, each
// exponential is made once; without, for the sum and again for y. A NaN that a maximum loses comes
// back in the sum.
template <bool Stream, class T>
float ForwardRow(const T* x, std::int64_t count, const ExpBelow& exp, float largest, float* powers,
                 const T* next, T* y) {
  const V origin = exp.origin(largest);
  const auto power = [&](std::int64_t i, auto lanes)
                         HWY_ATTR { return exp(lanes.load(x + i), origin); };
  Sum sum;
  if (powers == nullptr) {
    ForEachVector(count, [&](int chain, std::int64_t i, auto lanes) HWY_ATTR {
      sum.chains[chain] = hn::Add(sum.chains[chain], lanes.keep(power(i, lanes), hn::Zero(D())));
    });
  } else {
    ForEachVector(count, [&](int chain, std::int64_t i, auto lanes) HWY_ATTR {
      PrefetchVector<Stream>(next, i);
      const V e = lanes.keep(power(i, lanes), hn::Zero(D()));
      Store(e, powers + i);
      sum.chains[chain] = hn::Add(sum.chains[chain], e);
    });
  }
  const float next_largest = next == x ? largest : Largest(next, count);
  const V share = hn::Set(D(), 1.0f / sum.total());
  if (powers == nullptr) {
    WriteRow<Stream>(y, count, [&](std::int64_t i, auto lanes) HWY_ATTR {
      return hn::Mul(power(i, lanes), share);
    });
  } else {
    WriteRow<Stream>(
        y, count, [&](std::int64_t i, auto) HWY_ATTR { return hn::Mul(Load(powers + i), share); });
  }
  return next_largest;
}

template <bool Stream, class T>
void RunForward(const SoftmaxForward& p, const RowTasks& tasks, float* powers) {
  const std::int64_t count = p.x.dim(1);
  const ExpBelow exp(p.scale);
  tasks.run([&](std::int64_t first, std::int64_t end, int worker) HWY_ATTR {
    float* const own = powers == nullptr ? nullptr : powers + worker * padded(count);
    float largest = Largest(element<T>(p.x, first, 0), count);
    for (std::int64_t row = first; row < end; ++row) {
      const T* const next = element<T>(p.x, std::min(row + 1, end - 1), 0);
      largest = ForwardRow<Stream>(element<T>(p.x, row, 0), count, exp, largest, own, next,
                                   element<T>(p.y, row, 0));
    }
    if (Stream) hwy::FlushStream();
  });
}

template <bool Stream, class T>
void BackwardRow(const T* dy, const T* y, std::int64_t count, float scale, const T* next_dy,
                 const T* next_y, T* dx) {
  Sum products;
  ForEachVector(count, [&](int chain, std::int64_t i, auto lanes) HWY_ATTR {
    V& sum = products.chains[chain];
    sum = hn::MulAdd(lanes.load(dy + i), lanes.load(y + i), sum);
  });
  const V dot = hn::Set(D(), products.total()), scales = hn::Set(D(), scale);
  WriteRow<Stream>(dx, count, [&](std::int64_t i, auto lanes) HWY_ATTR {
    PrefetchVector<Stream>(next_dy, i);
    PrefetchVector<Stream>(next_y, i);
    return hn::Mul(hn::Mul(lanes.load(y + i), scales), hn::Sub(lanes.load(dy + i), dot));
  });
}

template <bool Stream, class T>
void RunBackward(const SoftmaxBackward& p, const RowTasks& tasks) {
  tasks.run([&](std::int64_t first, std::int64_t end, int) HWY_ATTR {
    for (std::int64_t row = first; row < end; ++row) {
      const std::int64_t next = std::min(row + 1, end - 1);
      BackwardRow<Stream>(element<T>(p.dy, row, 0), element<T>(p.y, row, 0), p.dy.dim(1), p.scale,
                          element<T>(p.dy, next, 0), element<T>(p.y, next, 0),
                          element<T>(p.dx, row, 0));
    }
    if (Stream) hwy::FlushStream();
  });
}

void SoftmaxForwardHere(const SoftmaxForward& p, const RowTasks& tasks, float* powers) {
  const auto run = [&](auto stream, auto element_type) {
    RunForward<decltype(stream)::value, decltype(element_type)>(p, tasks, powers);
  };
  WithRowTypes(p.x.dtype(), streams(p.y, {p.x}), run);
}

void SoftmaxBackwardHere(const SoftmaxBackward& p, const RowTasks& tasks) {
  const auto run = [&](auto stream, auto element_type) {
    RunBackward<decltype(stream)::value, decltype(element_type)>(p, tasks);
  };
  WithRowTypes(p.dy.dtype(), streams(p.dx, {p.dy, p.y}), run);
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace graft::cpu {

HWY_EXPORT(SoftmaxForwardHere);
HWY_EXPORT(SoftmaxBackwardHere);

namespace {

// Room for a row of each thread in float32; null where rows are longer than is worth keeping.
float* layout(Scratch& scratch, const SoftmaxForward& params, int threads) {
  // A row of 64 KiB leaves room for the rest in a second-level cache.
  constexpr std::int64_t kMostKept = 16384;
  const std::int64_t count = params.x.dim(1);
  return count <= kMostKept ? scratch.take<float>(threads * padded(count)) : nullptr;
}

}  // namespace

Support supports(const SoftmaxForward& params) { return float_on_cpu("x", params.x); }
Support supports(const SoftmaxBackward& params) { return float_on_cpu("dy", params.dy); }

std::size_t scratch_bytes(const SoftmaxForward& params, int threads) {
  return bytes_of([&](Scratch& scratch) { return layout(scratch, params, threads); });
}

std::size_t scratch_bytes(const SoftmaxBackward&, int) { return 0; }

void softmax_forward(Context& context, const SoftmaxForward& params) {
  init_isa();
  const RowTasks tasks(context, params.x.dim(0), params.x.dim(1));
  float* const powers =
      lay_out(context, [&](Scratch& scratch) { return layout(scratch, params, tasks.threads); });
  HWY_DYNAMIC_DISPATCH(SoftmaxForwardHere)(params, tasks, powers);
}

void softmax_backward(Context& context, const SoftmaxBackward& params) {
  init_isa();
  const RowTasks tasks(context, params.dy.dim(0), params.dy.dim(1));
  HWY_DYNAMIC_DISPATCH(SoftmaxBackwardHere)(params, tasks);
}

}  // namespace graft::cpu
#endif
