#include "benchmarks/graft_bench/candidates.h"

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "benchmarks/graft_bench/graphs.h"
#include "graft/linear.h"
#include "graft/lora.h"

namespace graft::bench {
namespace {

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
  linear_forward(context, {.x = v.x, .weight = set.packed, .bias = {}, .y = v.y});
  if (item.pass == Pass::kForward) return;
  linear_backward(context, {.dy = v.dy, .weight = set.packed, .dx = v.dx});
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
  forward.weight = set.packed;
  forward.dropout = {.p = item.dropout, .seed = 1, .offset = 0};
  lora_linear_forward(context, forward);
  if (item.pass == Pass::kForward) return;
  LoraLinearBackward backward;
  fill_backward(v, backward);
  backward.weight = set.packed;
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

Candidate under_mlx(std::string name, bool uses_blas, const Case& item,
                    const std::vector<Tensors>& sets,
                    std::function<mx::array(const Arrays&, const Tensors&)> graph) {
  auto run = [&sets, item, graph = std::move(graph)](std::size_t i) {
    const Tensors& set = sets[i];
    const auto y = [&](const Arrays& inputs) { return graph(inputs, set); };
    mx::eval(outputs_of(y, item.pass, trained_inputs(item), inputs_of(item, set), set.dy));
  };
  return {std::move(name), uses_blas, std::move(run)};
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
  candidates.push_back(
      under_mlx(kEval, false, item, sets, [item](const Arrays& inputs, const Tensors& set) {
        return fused_graph(item, inputs, set.packed);
      }));

  if (blas.present() && !item.bf16 && item.dropout == 0.0f) {
    candidates.push_back(
        {kBlas, true, [&blas, item, &sets](std::size_t i) { run_blas(blas, item, sets[i]); }});
  }
  for (const auto& [name, graph] : composed_graphs(item)) {
    const mx::Dtype dtype = item.bf16 ? mx::bfloat16 : mx::float32;
    candidates.push_back(under_mlx(kComposed + name, true, item, sets,
                                   [build = graph, dtype](const Arrays& inputs, const Tensors&) {
                                     return mx::astype(build(inputs), dtype);
                                   }));
  }
  return candidates;
}

}  // namespace graft::bench
