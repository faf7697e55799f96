#include "apps/graft/bench/candidates.h"

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "graft/linear.h"
#include "graft/lora.h"
#include "graft/mlx/lora.h"

namespace graft::app::bench {
namespace {

constexpr float kScaling = 2.0f;

// ---- the core, called directly ----

struct Views {
  Views(const Case& item, const Tensors& set) {
    const DType type = item.bf16 ? DType::kBFloat16 : DType::kFloat32;
    constexpr DType f32 = DType::kFloat32;
    x = {set.raw_x.as<void>(), type, {item.rows(), item.in}};
    dy = {set.raw_dy.as<void>(), type, {item.rows(), item.out}};
    y = {set.y.as<void>(), type, {item.rows(), item.out}};
    dx = {set.dx.as<void>(), type, {item.rows(), item.in}};
    if (item.rank == 0) return;
    h = {set.h.as<void>(), f32, {item.rows(), item.rank}};
    da = {set.da.as<void>(), f32, {item.in, item.rank}};
    db = {set.db.as<void>(), f32, {item.rank, item.out}};
    adapter = {{set.raw_a.as<void>(), type, {item.in, item.rank}},
               {set.raw_b.as<void>(), type, {item.rank, item.out}},
               kScaling};
  }
  ConstTensorView x, dy;
  TensorView y, dx, h, da, db;
  graft::Adapter adapter;
};

void linear_core(Context& context, const Case& item, const Tensors& set) {
  const Views v(item, set);
  linear_forward(context, {.x = v.x, .weight = *set.packed->panels(), .bias = {}, .y = v.y});
  if (item.pass == Pass::kForward) return;
  linear_backward(context, {.dy = v.dy, .weight = *set.packed->panels(), .dx = v.dx});
}

// What the adapter alone and a layer with it have in common.
template <class Forward>
void fill_forward(const Case& item, const Views& v, Forward& forward) {
  forward.x = v.x;
  forward.adapter = v.adapter;
  forward.y = v.y;
  if (item.pass == Pass::kForwardBackward) forward.h = v.h;
}

template <class Backward>
void fill_backward(const Views& v, Backward& backward) {
  backward.dy = v.dy;
  backward.x = v.x;
  backward.h = v.h;
  backward.adapter = v.adapter;
  backward.dx = v.dx;
  backward.da = v.da;
  backward.db = v.db;
}

void delta_core(Context& context, const Case& item, const Tensors& set) {
  const Views v(item, set);
  LoraDeltaForward forward;
  fill_forward(item, v, forward);
  lora_delta_forward(context, forward);
  if (item.pass == Pass::kForward) return;
  LoraDeltaBackward backward;
  fill_backward(v, backward);
  lora_delta_backward(context, backward);
}

void lora_linear_core(Context& context, const Case& item, const Tensors& set) {
  const Views v(item, set);
  LoraLinearForward forward;
  fill_forward(item, v, forward);
  forward.weight = *set.packed->panels();
  forward.dropout = {.p = item.dropout, .seed = 1, .offset = 0};
  lora_linear_forward(context, forward);
  if (item.pass == Pass::kForward) return;
  LoraLinearBackward backward;
  fill_backward(v, backward);
  backward.weight = *set.packed->panels();
  backward.dropout = forward.dropout;
  lora_linear_backward(context, backward);
}

// ---- products through the BLAS ----

void run_blas(const Blas& blas, const Case& item, const Tensors& set) {
  const std::int64_t rows = item.rows(), in = item.in, out = item.out, rank = item.rank;
  const Blas::Matrix x{set.raw_x.as<float>(), in}, x_t{x.data, in, true};
  const Blas::Matrix dy{set.raw_dy.as<float>(), out}, w{set.raw_w.as<float>(), in};
  const Blas::Matrix w_t{w.data, in, true}, a{set.raw_a.as<float>(), rank}, a_t{a.data, rank, true};
  const Blas::Matrix b{set.raw_b.as<float>(), out}, b_t{b.data, out, true};
  const Blas::Matrix h{set.h.as<float>(), rank}, h_t{h.data, rank, true};
  const Blas::Matrix g{set.g.as<float>(), rank};
  const bool has_base = item.op != Op::kLoraDelta;
  const bool has_adapter = item.op != Op::kLinear;
  const float onto_base = has_base ? 1.0f : 0.0f;

  auto* y = set.y.as<float>();
  if (has_base) blas.multiply(rows, out, in, 1.0f, x, w_t, 0.0f, y);
  if (has_adapter) {
    blas.multiply(rows, rank, in, 1.0f, x, a, 0.0f, set.h.as<float>());
    blas.multiply(rows, out, rank, kScaling, h, b, onto_base, y);
  }
  if (item.pass == Pass::kForward) return;

  auto* dx = set.dx.as<float>();
  if (has_base) blas.multiply(rows, in, out, 1.0f, dy, w, 0.0f, dx);
  if (has_adapter) {
    blas.multiply(rows, rank, out, kScaling, dy, b_t, 0.0f, set.g.as<float>());
    blas.multiply(rows, in, rank, 1.0f, g, a_t, onto_base, dx);
    blas.multiply(in, rank, rows, 1.0f, x_t, g, 0.0f, set.da.as<float>());
    blas.multiply(rank, out, rows, kScaling, h_t, dy, 0.0f, set.db.as<float>());
  }
}

// ---- under MLX ----

// y as a function of {x, a, b}, or of {x} alone, of one set.
using Graph = std::function<mx::array(const std::vector<mx::array>&, const Tensors&)>;

Candidate under_mlx(std::string name, bool uses_blas, const Case& item,
                    const std::vector<Tensors>& sets, Graph graph) {
  const bool backward = item.pass == Pass::kForwardBackward;
  const bool has_adapter = item.op != Op::kLinear;
  auto run = [&sets, backward, has_adapter, graph = std::move(graph)](std::size_t i) {
    const Tensors& set = sets[i];
    std::vector<mx::array> inputs = {set.x};
    if (has_adapter) inputs.insert(inputs.end(), {set.a, set.b});
    if (!backward) return mx::eval(graph(inputs, set));
    const auto function = [&](const std::vector<mx::array>& given) {
      return std::vector<mx::array>{graph(given, set)};
    };
    auto [outputs, gradients] = mx::vjp(function, inputs, {set.dy});
    outputs.insert(outputs.end(), gradients.begin(), gradients.end());
    mx::eval(outputs);
  };
  return {std::move(name), uses_blas, std::move(run)};
}

mx::array fused(const Case& item, const std::vector<mx::array>& inputs, const Tensors& set) {
  switch (item.op) {
    case Op::kLinear:
      return mlx::linear(inputs[0], set.packed);
    case Op::kLoraDelta:
      return mlx::lora_forward_fused(inputs[0], inputs[1], inputs[2], kScaling);
    case Op::kLoraLinear:
      break;
  }
  return mlx::lora_linear(inputs[0], set.packed, std::nullopt, inputs[1], inputs[2], kScaling,
                          {.p = item.dropout});
}

// MLX's own bfloat16 products on the CPU are some 30 times slower than its float32 ones, so the
// best order widens first.
mx::array widened(const mx::array& array) { return mx::astype(array, mx::float32); }

mx::array dropped(const Case& item, const mx::array& x) {
  if (item.dropout == 0.0f) return x;
  const mx::array kept = mx::random::bernoulli(1.0f - item.dropout, x.shape());
  return mx::multiply(mx::multiply(x, mx::array(1.0f / (1.0f - item.dropout))), kept);
}

mx::array scaled_shrink(const Case& item, const std::vector<mx::array>& inputs) {
  return mx::multiply(mx::matmul(dropped(item, widened(inputs[0])), widened(inputs[1])),
                      mx::array(kScaling));
}

mx::array composed_base(const std::vector<mx::array>& inputs, const Tensors& set) {
  return mx::matmul(widened(inputs[0]), mx::transpose(widened(set.w)));
}

// The orders worth trying; which is best depends on the shape.
std::vector<std::pair<const char*, Graph>> composed_graphs(const Case& item) {
  using Inputs = std::vector<mx::array>;
  switch (item.op) {
    case Op::kLinear:
      return {
          {"x·Wᵀ", [](const Inputs& in, const Tensors& set) { return composed_base(in, set); }}};
    case Op::kLoraDelta:
      return {{"(s·(x·A))·B",
               [item](const Inputs& in, const Tensors&) {
                 return mx::matmul(scaled_shrink(item, in), widened(in[2]));
               }},
              {"s·((x·A)·B)", [](const Inputs& in, const Tensors&) {
                 return mx::multiply(
                     mx::matmul(mx::matmul(widened(in[0]), widened(in[1])), widened(in[2])),
                     mx::array(kScaling));
               }}};
    case Op::kLoraLinear:
      break;
  }
  return {{"addmm",
           [item](const Inputs& in, const Tensors& set) {
             return mx::addmm(composed_base(in, set), scaled_shrink(item, in), widened(in[2]));
           }},
          {"add", [item](const Inputs& in, const Tensors& set) {
             return mx::add(composed_base(in, set),
                            mx::matmul(scaled_shrink(item, in), widened(in[2])));
           }}};
}

}  // namespace

std::vector<Candidate> candidates_for(const Case& item, const std::vector<Tensors>& sets,
                                      const Blas& blas) {
  std::vector<Candidate> candidates;
  const auto context = std::make_shared<Context>();
  const auto add_core = [&](const char* name, auto function) {
    candidates.push_back({name, false, [context, item, &sets, function](std::size_t i) {
                            function(*context, item, sets[i]);
                          }});
  };
  switch (item.op) {
    case Op::kLinear:
      add_core(kCore, linear_core);
      break;
    case Op::kLoraDelta:
      add_core(kCore, delta_core);
      break;
    case Op::kLoraLinear:
      add_core(kCore, lora_linear_core);
      add_core(kBase, linear_core);
      break;
  }
  candidates.push_back(under_mlx(
      kEval, false, item, sets,
      [item](const auto& inputs, const Tensors& set) { return fused(item, inputs, set); }));

  if (blas.present() && !item.bf16 && item.dropout == 0.0f) {
    candidates.push_back(
        {kBlas, true, [&blas, item, &sets](std::size_t i) { run_blas(blas, item, sets[i]); }});
  }
  for (const auto& [name, graph] : composed_graphs(item)) {
    const mx::Dtype dtype = item.bf16 ? mx::bfloat16 : mx::float32;
    candidates.push_back(under_mlx(std::string(kComposed) + name, true, item, sets,
                                   [graph = graph, dtype](const auto& inputs, const Tensors& set) {
                                     return mx::astype(graph(inputs, set), dtype);
                                   }));
  }
  return candidates;
}

}  // namespace graft::app::bench
