#include "benchmarks/graft_bench/graphs.h"

#include <optional>

#include "graft/mlx/lora.h"

namespace graft::bench {
namespace {

// MLX's own bfloat16 products on the CPU are some 30 times slower than its float32 ones, so the
// best order widens first.
mx::array widened(const mx::array& array) { return mx::astype(array, mx::float32); }

mx::array dropped(const Case& item, const mx::array& x) {
  if (item.dropout == 0.0f) return x;
  const mx::array kept = mx::random::bernoulli(1.0f - item.dropout, x.shape());
  return mx::multiply(mx::multiply(x, mx::array(1.0f / (1.0f - item.dropout))), kept);
}

mx::array scaled_shrink(const Case& item, const Arrays& inputs) {
  return mx::multiply(mx::matmul(dropped(item, widened(inputs[0])), widened(inputs[1])),
                      mx::array(kScaling));
}

mx::array composed_base(const Arrays& inputs) {
  return mx::matmul(widened(inputs.front()), mx::transpose(widened(inputs.back())));
}

}  // namespace

Arrays inputs_of(const Case& item, const Tensors& set) {
  switch (item.op) {
    case Op::kLinear:
      return {set.x, set.w};
    case Op::kLoraDelta:
      return {set.x, set.a, set.b};
    case Op::kLoraLinear:
      break;
  }
  return {set.x, set.a, set.b, set.w};
}

std::size_t trained_inputs(const Case& item) { return item.op == Op::kLinear ? 1 : 3; }

mx::array fused_graph(const Case& item, const Arrays& inputs, const Weight& packed) {
  const mx::array& x = inputs[0];
  switch (item.op) {
    case Op::kLinear:
      return packed.present() ? mlx::linear(x, packed) : mlx::linear(x, inputs[1]);
    case Op::kLoraDelta:
      return mlx::lora_forward_fused(x, inputs[1], inputs[2], kScaling);
    case Op::kLoraLinear:
      break;
  }
  const mlx::DropoutState dropout{.p = item.dropout};
  return packed.present()
             ? mlx::lora_linear(x, packed, std::nullopt, inputs[1], inputs[2], kScaling, dropout)
             : mlx::lora_linear(x, inputs[3], std::nullopt, inputs[1], inputs[2], kScaling,
                                dropout);
}

std::vector<std::pair<std::string, Graph>> composed_graphs(const Case& item) {
  switch (item.op) {
    case Op::kLinear:
      return {{"x·Wᵀ", composed_base}};
    case Op::kLoraDelta:
      return {{"(s·(x·A))·B",
               [item](const Arrays& in) {
                 return mx::matmul(scaled_shrink(item, in), widened(in[2]));
               }},
              {"s·((x·A)·B)", [](const Arrays& in) {
                 return mx::multiply(
                     mx::matmul(mx::matmul(widened(in[0]), widened(in[1])), widened(in[2])),
                     mx::array(kScaling));
               }}};
    case Op::kLoraLinear:
      break;
  }
  return {{"addmm",
           [item](const Arrays& in) {
             return mx::addmm(composed_base(in), scaled_shrink(item, in), widened(in[2]));
           }},
          {"add", [item](const Arrays& in) {
             return mx::add(composed_base(in), mx::matmul(scaled_shrink(item, in), widened(in[2])));
           }}};
}

Arrays outputs_of(const Graph& graph, Pass pass, std::size_t trained, const Arrays& inputs,
                  const mx::array& dy) {
  if (pass == Pass::kForward) return {graph(inputs)};
  const auto frozen = inputs.begin() + static_cast<std::ptrdiff_t>(trained);
  const auto function = [&](const Arrays& given) {
    Arrays all = given;
    all.insert(all.end(), frozen, inputs.end());
    return Arrays{graph(all)};
  };
  auto [outputs, gradients] = mx::vjp(function, Arrays(inputs.begin(), frozen), {dy});
  outputs.insert(outputs.end(), gradients.begin(), gradients.end());
  return outputs;
}

}  // namespace graft::bench
