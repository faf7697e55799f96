#include "graft/mlx/detail/metal_lora.h"

#include <utility>

#include "graft/metal_lora.h"
#include "graft/mlx/detail/metal.h"
#include "graft/mlx/detail/philox.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

constexpr const char* kNoBackward = "the Metal kernels have no backward pass yet";

metal::LoraDelta shape_of(const LoraCall& call, const Arrays& inputs) {
  metal::LoraDelta shape;
  shape.rows = rows_of(inputs[0].shape());
  shape.in_features = inputs[1].shape(0);
  shape.out_features = inputs[2].shape(1);
  shape.rank = inputs[1].shape(1);
  shape.x = *dtype_of(inputs[0].dtype());
  shape.a = *dtype_of(inputs[1].dtype());
  shape.b = *dtype_of(inputs[2].dtype());
  shape.dropout = call.dropout > 0;
  return shape;
}

// {y, h} from one launch.
Arrays delta(const LoraCall& call, const Arrays& inputs, mx::Stream s) {
  const metal::LoraDelta shape = shape_of(call, inputs);
  const mx::Shape y_shape = with_last(inputs[0].shape(), inputs[2].shape(1));
  const mx::Shape h_shape = with_last(inputs[0].shape(), inputs[1].shape(1));
  if (shape.rows == 0 || shape.out_features == 0) {
    return {mx::zeros(y_shape, inputs[0].dtype(), s), mx::zeros(h_shape, mx::float32, s)};
  }
  const int rows = static_cast<int>(shape.rows);
  Arrays arrays{mx::reshape(inputs[0], {rows, inputs[0].shape(-1)}, s), inputs[1], inputs[2],
                mx::array(call.scaling)};
  if (call.dropout > 0) {
    arrays.push_back(mx::reshape(inputs[call.seed()], {}, s));
    arrays.push_back(mx::reshape(inputs[call.offset()], {}, s));
    arrays.push_back(mx::array(dropout_threshold(call.dropout)));
    arrays.push_back(mx::array(1.0f / (1.0f - call.dropout)));
  }
  const Arrays outputs = launch(metal::lora_delta(shape), arrays,
                                {{rows, inputs[2].shape(1)}, {rows, inputs[1].shape(1)}},
                                {inputs[0].dtype(), mx::float32}, s);
  return {mx::reshape(outputs[0], y_shape, s), mx::reshape(outputs[1], h_shape, s)};
}

}  // namespace

Support supports_metal(const LoraCall& call, const Arrays& inputs) {
  if (!fused_enabled()) return Support::no("fusion is turned off");
  if (auto support = dtypes_known(inputs, call.seed()); !support) return support;
  if (call.has_weight()) return Support::no("Metal kernels for lora_linear are not there yet");
  return metal::supports(shape_of(call, inputs));
}

mx::array metal_lora(const LoraCall& call, const Arrays& inputs, const Caller& caller,
                     mx::Stream s) {
  const auto forward = [call, s](const Arrays& primals) { return delta(call, primals, s); };
  const auto composed = [call, s](const Arrays& primals) {
    return composed_lora(call, primals, s);
  };
  const auto vjp = [=](const Arrays& primals, const Arrays& cotangents, const Arrays&) {
    Arrays marked{counted(cotangents[0], caller, Direction::kBackward, kNoBackward, s)};
    const auto y = [&](const Arrays& values) { return Arrays{composed(values)[0]}; };
    return mx::vjp(y, primals, marked).second;
  };
  const auto jvp = [=](const Arrays& primals, const Arrays& tangents, const std::vector<int>&) {
    return mx::jvp(composed, primals, tangents).second;
  };
  const auto vmap = [=](const Arrays& primals, const std::vector<int>& axes) {
    Arrays outputs = mx::vmap(composed, axes)(primals);
    return std::pair(outputs, std::vector<int>(outputs.size(), 0));
  };
  const mx::array y = mx::custom_function(forward, vjp, jvp, vmap)(inputs)[0];
  return counted(y, caller, Direction::kForward, "", s);
}

}  // namespace graft::mlx::detail
