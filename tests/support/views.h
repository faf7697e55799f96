#pragma once

#include "backend/calls.h"

namespace graft::test {

/// @{
/// Calls `each` on every view of a call's params, inputs as ConstTensorView& and Weight&, outputs
/// as TensorView&: for tests that run the same params elsewhere.
template <class Each>
void each_view(LayerNormForward& p, Each&& each) {
  each(p.x), each(p.weight), each(p.bias), each(p.y), each(p.mean), each(p.rstd);
}
template <class Each>
void each_view(LayerNormBackward& p, Each&& each) {
  each(p.dy), each(p.x), each(p.weight), each(p.mean), each(p.rstd);
  each(p.dx), each(p.dweight), each(p.dbias);
}
template <class Each>
void each_view(LinearForward& p, Each&& each) {
  each(p.x), each(p.weight), each(p.bias), each(p.y);
}
template <class Each>
void each_view(LinearBackward& p, Each&& each) {
  each(p.dy), each(p.weight), each(p.dx);
}
template <class Each>
void each_view(LinearCrossEntropy& p, Each&& each) {
  each(p.x), each(p.weight), each(p.targets), each(p.losses), each(p.dx);
}
template <class Each>
void each_view(LoraDeltaForward& p, Each&& each) {
  each(p.x), each(p.adapter.a), each(p.adapter.b), each(p.y), each(p.h);
}
template <class Each>
void each_view(LoraDeltaBackward& p, Each&& each) {
  each(p.dy), each(p.x), each(p.h), each(p.adapter.a), each(p.adapter.b);
  each(p.dx), each(p.da), each(p.db);
}
template <class Each>
void each_view(LoraLinearForward& p, Each&& each) {
  each(p.x), each(p.weight), each(p.bias), each(p.adapter.a), each(p.adapter.b);
  each(p.y), each(p.h);
}
template <class Each>
void each_view(LoraLinearBackward& p, Each&& each) {
  each(p.dy), each(p.x), each(p.h), each(p.weight), each(p.adapter.a), each(p.adapter.b);
  each(p.dx), each(p.da), each(p.db);
}
template <class Each>
void each_view(RmsNormForward& p, Each&& each) {
  each(p.x), each(p.residual), each(p.weight), each(p.y), each(p.sum), each(p.rstd);
}
template <class Each>
void each_view(RmsNormBackward& p, Each&& each) {
  each(p.dy), each(p.s), each(p.weight), each(p.rstd), each(p.dsum), each(p.ds), each(p.dweight);
}
template <class Each>
void each_view(Rope& p, Each&& each) {
  each(p.x), each(p.y);
}
template <class Each>
void each_view(SoftmaxForward& p, Each&& each) {
  each(p.x), each(p.y);
}
template <class Each>
void each_view(SoftmaxBackward& p, Each&& each) {
  each(p.dy), each(p.y), each(p.dx);
}
template <class Each>
void each_view(SwigluForward& p, Each&& each) {
  each(p.gate), each(p.up), each(p.y);
}
template <class Each>
void each_view(SwigluBackward& p, Each&& each) {
  each(p.dy), each(p.gate), each(p.up), each(p.dgate), each(p.dup);
}
/// @}

}  // namespace graft::test
