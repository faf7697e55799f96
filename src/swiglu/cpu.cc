// SwiGLU is bound by memory (float32: 12 bytes an element forward, 20 backward), so the kernel is
// one pass of some 40 instructions a vector.

#include "backend/cpu/isa.h"
#include "backend/cpu/spans.h"
#include "backend/cpu/targets.h"
#include "checks.h"
#include "graft/swiglu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "swiglu/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "backend/cpu/exp-inl.h"
#include "backend/cpu/memory-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

HWY_INLINE V Sigmoid(V t) {
  const V one = hn::Set(D(), 1.0f);
  return hn::Div(one, hn::Add(one, Exp(hn::Neg(t))));
}

struct Gradient {
  V gate, up;
};

HWY_INLINE V Forward(V gate, V up) { return hn::Mul(hn::Mul(gate, Sigmoid(gate)), up); }

HWY_INLINE Gradient Backward(V dy, V gate, V up) {
  // silu'(t) = σ(t)·(1 + t·(1 − σ(t)))
  const V one = hn::Set(D(), 1.0f);
  const V sigmoid = Sigmoid(gate);
  const V slope = hn::Mul(sigmoid, hn::MulAdd(gate, hn::Sub(one, sigmoid), one));
  return {hn::Mul(hn::Mul(dy, up), slope), hn::Mul(dy, hn::Mul(gate, sigmoid))};
}

template <class T>
void ForwardSpan(const T* gate, const T* up, T* y, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Store(Forward(Load(gate + i), Load(up + i)), y + i);
  }
  if (i < count) {
    const std::int64_t rest = count - i;
    StorePart(Forward(LoadPart(gate + i, rest), LoadPart(up + i, rest)), y + i, rest);
  }
}

// Either output may be null.
template <class T>
void BackwardSpan(const T* dy, const T* gate, const T* up, T* dgate, T* dup, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Gradient d = Backward(Load(dy + i), Load(gate + i), Load(up + i));
    if (dgate != nullptr) Store(d.gate, dgate + i);
    if (dup != nullptr) Store(d.up, dup + i);
  }
  if (i < count) {
    const std::int64_t rest = count - i;
    const Gradient d =
        Backward(LoadPart(dy + i, rest), LoadPart(gate + i, rest), LoadPart(up + i, rest));
    if (dgate != nullptr) StorePart(d.gate, dgate + i, rest);
    if (dup != nullptr) StorePart(d.up, dup + i, rest);
  }
}

template <class T>
void RunForward(const Context& context, const SwigluForward& p) {
  const bool one_row = without_gaps({p.gate, p.up, p.y});
  for_each_span(context, p.y.dim(0), p.y.dim(1), one_row,
                [&](std::int64_t row, std::int64_t col, std::int64_t count) {
                  ForwardSpan(element<T>(p.gate, row, col), element<T>(p.up, row, col),
                              element<T>(p.y, row, col), count);
                });
}

template <class T>
void RunBackward(const Context& context, const SwigluBackward& p) {
  const bool one_row = without_gaps({p.dy, p.gate, p.up, p.dgate, p.dup});
  for_each_span(context, p.dy.dim(0), p.dy.dim(1), one_row,
                [&](std::int64_t row, std::int64_t col, std::int64_t count) {
                  BackwardSpan(element<T>(p.dy, row, col), element<T>(p.gate, row, col),
                               element<T>(p.up, row, col), element<T>(p.dgate, row, col),
                               element<T>(p.dup, row, col), count);
                });
}

void SwigluForwardHere(const Context& context, const SwigluForward& p) {
  p.y.dtype() == DType::kFloat32 ? RunForward<float>(context, p)
                                 : RunForward<hwy::bfloat16_t>(context, p);
}

void SwigluBackwardHere(const Context& context, const SwigluBackward& p) {
  p.dy.dtype() == DType::kFloat32 ? RunBackward<float>(context, p)
                                  : RunBackward<hwy::bfloat16_t>(context, p);
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace graft::cpu {

HWY_EXPORT(SwigluForwardHere);
HWY_EXPORT(SwigluBackwardHere);

Support supports(const SwigluForward& p) { return float_on_cpu("gate", p.gate); }
Support supports(const SwigluBackward& p) { return float_on_cpu("gate", p.gate); }

std::size_t scratch_bytes(const SwigluForward&, int) { return 0; }
std::size_t scratch_bytes(const SwigluBackward&, int) { return 0; }

void swiglu_forward(Context& context, const SwigluForward& params) {
  init_isa();
  HWY_DYNAMIC_DISPATCH(SwigluForwardHere)(context, params);
}

void swiglu_backward(Context& context, const SwigluBackward& params) {
  init_isa();
  HWY_DYNAMIC_DISPATCH(SwigluBackwardHere)(context, params);
}

}  // namespace graft::cpu
#endif
