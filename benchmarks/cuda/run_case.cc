#include "benchmarks/cuda/run_case.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <optional>

#include "backend/cuda/device.h"
#include "benchmarks/cuda/device_memory.h"
#include "benchmarks/cuda/mma_loop.h"
#include "benchmarks/cuda/turns.h"
#include "graft/layer_norm.h"
#include "graft/linear.h"
#include "graft/lora.h"
#include "graft/rms_norm.h"
#include "graft/softmax.h"

namespace graft::bench {
namespace {

constexpr double kRotatedBytes = 200e6;  // several times the L2 of any GPU that is measured
constexpr double kGraphMicroseconds = 3000;

// The tensors of a LoRA layer, in as many sets as it takes to overflow the cache.
struct Layer {
  TensorView x, w, a, b, y, h, dy, dx, da, db, shrunk, expanded, g, da_half, db_half;
};

double bytes_of(const CudaCase& c) {
  const auto size = static_cast<double>(size_of(c.dtype));
  const std::int64_t weights = is_delta(c.work) ? c.rank * (c.k + c.n) : c.n * c.k;
  return size * static_cast<double>(c.m * c.k + weights + c.m * c.n);
}

// A graph of more calls than that takes seconds to make. The smallest deltas then go round 110 MB,
// still twice the L2 of an H200.
std::size_t sets_of(double bytes) {
  return static_cast<std::size_t>(std::clamp(std::ceil(kRotatedBytes / bytes), 2.0, 1200.0));
}

Layer layer_of(const CudaCase& c, DeviceMemory& memory, std::uint32_t seed) {
  const float by_k = 1.0f / std::sqrt(static_cast<float>(c.k));
  Layer l;
  l.x = memory.random(c.dtype, {c.m, c.k}, seed + 1);
  if (!is_delta(c.work)) l.w = memory.random(c.dtype, {c.n, c.k}, seed + 2, by_k);
  l.a = memory.random(c.adapter, {c.k, c.rank}, seed + 3, by_k);
  l.b = memory.random(c.adapter, {c.rank, c.n}, seed + 4);
  l.y = memory.zeros(c.dtype, {c.m, c.n});
  l.h = memory.zeros(DType::kFloat32, {c.m, c.rank});
  l.shrunk = memory.zeros(c.dtype, {c.m, c.rank});
  if (c.work != Work::kForward && c.work != Work::kDelta) {
    l.dy = memory.random(c.dtype, {c.m, c.n}, seed + 5);
    l.dx = memory.zeros(c.dtype, {c.m, c.k});
    l.da = memory.zeros(DType::kFloat32, {c.k, c.rank});
    l.db = memory.zeros(DType::kFloat32, {c.rank, c.n});
    l.g = memory.zeros(c.dtype, {c.m, c.rank});
    l.da_half = memory.zeros(c.dtype, {c.k, c.rank});
    l.db_half = memory.zeros(c.dtype, {c.rank, c.n});
  }
  return l;
}

// Graft's calls of a layer.
LinearForward linear_of(const Layer& l) { return {l.x, l.w, {}, l.y}; }
LinearBackward linear_backward_of(const Layer& l) { return {l.dy, l.w, l.dx}; }
Dropout dropout_of(const CudaCase& c) { return {c.dropout, 42, 7}; }
LoraDeltaForward delta_of(const CudaCase& c, const Layer& l) {
  return {l.x, {l.a, l.b, 2.0f}, dropout_of(c), false, l.y, {}};
}
LoraDeltaBackward delta_backward_of(const CudaCase& c, const Layer& l) {
  return {l.dy, l.x, l.h, {l.a, l.b, 2.0f}, dropout_of(c), l.dx, l.da, l.db};
}
LoraLinearForward forward_of(const CudaCase& c, const Layer& l, bool training) {
  return {l.x, l.w, {}, {l.a, l.b, 2.0f}, dropout_of(c), l.y, training ? l.h : TensorView()};
}
LoraLinearBackward backward_of(const CudaCase& c, const Layer& l) {
  return {l.dy, l.x, l.h, l.w, {l.a, l.b, 2.0f}, dropout_of(c), l.dx, l.da, l.db};
}

// What composed code does, in its best order, all in the tensors' type: each a product of cuBLAS.
void composed_forward(Cublas& cublas, cudaStream_t stream, const Layer& l, bool base) {
  cublas.multiply(stream, l.x, l.a, l.shrunk);
  if (base) cublas.multiply(stream, l.x, l.w.transposed(), l.y);
  cublas.multiply(stream, l.shrunk, l.b, l.y, 2.0f, base ? 1.0f : 0.0f);
}

void composed_backward(Cublas& cublas, cudaStream_t stream, const Layer& l, bool base) {
  cublas.multiply(stream, l.dy, l.b.transposed(), l.g);
  if (base) cublas.multiply(stream, l.dy, l.w, l.dx);
  cublas.multiply(stream, l.g, l.a.transposed(), l.dx, 2.0f, base ? 1.0f : 0.0f);
  cublas.multiply(stream, l.x.transposed(), l.g, l.da_half, 2.0f);
  cublas.multiply(stream, l.shrunk.transposed(), l.dy, l.db_half, 2.0f);
}

// Ends a line: times of every contender, and the ratio of `ours` to each of the others.
void add_turns(Line& line, const std::vector<Contender>& contenders,
               const std::vector<Turns>& turns) {
  for (std::size_t i = 0; i < contenders.size(); ++i) {
    line.emplace_back(contenders[i].name + "_us", digits(turns[i].us, 2));
    line.emplace_back(contenders[i].name + "_spread",
                      digits(turns[i].low, 2) + ".." + digits(turns[i].high, 2));
  }
  for (std::size_t i = 1; i < contenders.size() && contenders[0].name == "graft"; ++i) {
    line.emplace_back("graft/" + contenders[i].name, digits(turns[0].ratios[i], 4));
  }
  const auto index_of = [&contenders](const char* name) {
    return static_cast<std::size_t>(
        std::find_if(contenders.begin(), contenders.end(),
                     [name](const Contender& each) { return each.name == name; }) -
        contenders.begin());
  };
  if (const std::size_t i = index_of("linear"), loop = index_of("mma_loop");
      std::max(i, loop) < contenders.size()) {
    line.emplace_back("linear/mma_loop", digits(turns[i].ratios[loop], 4));
  }
}

std::size_t calls_of(double microseconds, std::size_t sets) {
  const double calls = std::clamp(kGraphMicroseconds / microseconds, 20.0, 300.0);
  return std::max(static_cast<std::size_t>(calls), sets);
}

// What a case that is planned for compute capability 8.0 is planned for: the device that there is,
// with as much of shared memory as an A100 has.
cuda::DeviceFacts sm_80_facts() {
  cuda::DeviceFacts facts = cuda::facts_of(0);
  facts.major = 8, facts.minor = 0;
  facts.shared_bytes = 163 << 10;
  return facts;
}

Line run_product(const CudaCase& c, Cublas& cublas, int rounds) {
  std::optional<cuda::PlannedAs> planned;
  if (c.sm_80) planned.emplace(0, sm_80_facts());
  DeviceMemory memory;
  const std::size_t sets = sets_of(bytes_of(c));
  std::vector<Layer> layers;
  for (std::size_t i = 0; i < sets; ++i) {
    layers.push_back(layer_of(c, memory, static_cast<std::uint32_t>(i) * 16));
  }
  const bool with_forward = c.work != Work::kBackward && c.work != Work::kDeltaBackward;
  const bool with_backward = c.work != Work::kForward && c.work != Work::kDelta;

  Line line;
  Support support = c.work == Work::kDelta           ? supports(delta_of(c, layers[0]))
                    : c.work == Work::kDeltaBackward ? supports(delta_backward_of(c, layers[0]))
                    : with_forward ? supports(forward_of(c, layers[0], with_backward))
                                   : supports(backward_of(c, layers[0]));
  std::string path = support.path;
  if (c.work == Work::kForwardBackward && support.yes) {
    support = supports(backward_of(c, layers[0]));
    if (path != support.path) path += std::string(", ") + support.path;
  }
  line.emplace_back("path", support.yes ? path : support.reason);

  std::vector<Contender> contenders;
  if (support.yes) {
    contenders.push_back({"graft", [&](cudaStream_t stream, std::size_t set) {
                            Context context = pool_context(stream);
                            const Layer& l = layers[set];
                            if (c.work == Work::kDelta) {
                              lora_delta_forward(context, delta_of(c, l));
                              return;
                            }
                            if (c.work == Work::kDeltaBackward) {
                              lora_delta_backward(context, delta_backward_of(c, l));
                              return;
                            }
                            if (with_forward) {
                              lora_linear_forward(context, forward_of(c, l, with_backward));
                            }
                            if (with_backward) lora_linear_backward(context, backward_of(c, l));
                          }});
  }
  if (!is_delta(c.work)) {
    contenders.push_back({"cublas", [&](cudaStream_t stream, std::size_t set) {
                            const Layer& l = layers[set];
                            if (with_forward) cublas.multiply(stream, l.x, l.w.transposed(), l.y);
                            if (with_backward) cublas.multiply(stream, l.dy, l.w, l.dx);
                          }});
    if (supports(linear_of(layers[0]))) {
      contenders.push_back({"linear", [&](cudaStream_t stream, std::size_t set) {
                              Context context = pool_context(stream);
                              if (with_forward) linear_forward(context, linear_of(layers[set]));
                              if (with_backward) {
                                linear_backward(context, linear_backward_of(layers[set]));
                              }
                            }});
    }
  }
  if (c.adapter == c.dtype) {
    contenders.push_back({"composed", [&](cudaStream_t stream, std::size_t set) {
                            const Layer& l = layers[set];
                            if (with_forward) {
                              composed_forward(cublas, stream, l, !is_delta(c.work));
                            }
                            if (with_backward)
                              composed_backward(cublas, stream, l, !is_delta(c.work));
                          }});
  }
  const double flops = 2.0 * static_cast<double>(c.m) * static_cast<double>(c.k) *
                       static_cast<double>(c.n) * (with_forward && with_backward ? 2 : 1);
  if (c.sm_80) {
    contenders.push_back(
        {"mma_loop", [flops](cudaStream_t stream, std::size_t) { mma_loop(stream, flops); }});
  }
  const double guess =
      is_delta(c.work) ? 10 : std::max(10.0, flops / (c.dtype == DType::kFloat32 ? 4e7 : 7e8));
  add_turns(line, contenders, take_turns(contenders, sets, calls_of(guess, sets), rounds));
  return line;
}

// q, k and v beside one product as wide as the three.
Line run_siblings(const CudaCase& c, Cublas& cublas, int rounds) {
  DeviceMemory memory;
  const std::array<std::int64_t, 3> widths{c.n, c.n / 4, c.n / 4};
  const std::size_t sets = 4;
  std::vector<std::array<Layer, 3>> triples(sets);
  std::vector<Layer> whole;
  for (std::size_t i = 0; i < sets; ++i) {
    const auto seed = static_cast<std::uint32_t>(i) * 64;
    for (std::size_t j = 0; j < widths.size(); ++j) {
      CudaCase one = c;
      one.n = widths[j];
      triples[i][j] = layer_of(one, memory, seed + 16 * static_cast<std::uint32_t>(j));
      triples[i][j].x = triples[i][0].x;
    }
    CudaCase one = c;
    one.n = widths[0] + widths[1] + widths[2];
    whole.push_back(layer_of(one, memory, seed + 48));
  }
  const auto layers_of = [&](std::size_t set) {
    std::vector<LoraLinearForward> layers;
    for (const Layer& l : triples[set]) layers.push_back(forward_of(c, l, false));
    return layers;
  };
  Line line;
  std::vector<Contender> contenders;
  const Support support = supports(layers_of(0)[0]);
  line.emplace_back("path", support.yes ? support.path : support.reason);
  if (support.yes) {
    contenders.push_back({"graft", [&](cudaStream_t stream, std::size_t set) {
                            Context context = pool_context(stream);
                            lora_linear_forward(context, LoraSiblingsForward(layers_of(set)));
                          }});
  }
  contenders.push_back({"cublas", [&](cudaStream_t stream, std::size_t set) {
                          cublas.multiply(stream, whole[set].x, whole[set].w.transposed(),
                                          whole[set].y);
                        }});
  contenders.push_back({"composed", [&](cudaStream_t stream, std::size_t set) {
                          for (const Layer& l : triples[set]) {
                            composed_forward(cublas, stream, l, true);
                          }
                        }});
  add_turns(line, contenders, take_turns(contenders, sets, 20, rounds));
  return line;
}

// A row operation beside a copy of as many bytes as it has to move.
Line run_rows(const CudaCase& c, int rounds) {
  struct Set {
    TensorView x, y, dy, dx, weight, bias, mean, rstd, dweight, dbias, from, to;
  };
  const auto matrix = static_cast<double>(c.m * c.k) * static_cast<double>(size_of(c.dtype));
  const bool both = c.work == Work::kSoftmaxBoth || c.work == Work::kRmsNormBoth ||
                    c.work == Work::kLayerNormBoth;
  // Forward reads x and writes y; backward reads dy and what it needs again, and writes dx.
  const double bytes = matrix * (both ? 5 : 2);
  DeviceMemory memory;
  const std::size_t sets = sets_of(bytes);
  std::vector<Set> all;
  for (std::size_t i = 0; i < sets; ++i) {
    const auto seed = static_cast<std::uint32_t>(i) * 8;
    Set s;
    s.x = memory.random(c.dtype, {c.m, c.k}, seed), s.y = memory.zeros(c.dtype, {c.m, c.k});
    s.dy = memory.random(c.dtype, {c.m, c.k}, seed + 1), s.dx = memory.zeros(c.dtype, {c.m, c.k});
    s.weight = memory.random(c.dtype, {c.k}, seed + 2),
    s.bias = memory.random(c.dtype, {c.k}, seed);
    s.mean = memory.zeros(DType::kFloat32, {c.m}), s.rstd = memory.zeros(DType::kFloat32, {c.m});
    s.dweight = memory.zeros(DType::kFloat32, {c.k});
    s.dbias = memory.zeros(DType::kFloat32, {c.k});
    const auto copied = static_cast<std::int64_t>(bytes / 2);
    s.from = memory.random(DType::kFloat16, {copied / 2}, seed);
    s.to = memory.zeros(DType::kFloat16, {copied / 2});
    all.push_back(s);
  }
  const auto run = [&](Context& context, const Set& s) {
    switch (c.work) {
      case Work::kSoftmaxBoth:
      case Work::kSoftmax:
        softmax_forward(context, {s.x, 1.0f, s.y});
        if (both) softmax_backward(context, {s.dy, s.y, 1.0f, s.dx});
        return;
      case Work::kRmsNormBoth:
      case Work::kRmsNorm:
        rms_norm_forward(context,
                         {s.x, {}, s.weight, 1e-5f, s.y, {}, both ? s.rstd : TensorView()});
        if (both) {
          rms_norm_backward(context, {s.dy, s.x, s.weight, 1e-5f, s.rstd, {}, s.dx, s.dweight});
        }
        return;
      default:
        layer_norm_forward(context, {s.x, s.weight, s.bias, 1e-5f, s.y,
                                     both ? s.mean : TensorView(), both ? s.rstd : TensorView()});
        if (both) {
          layer_norm_backward(
              context, {s.dy, s.x, s.weight, 1e-5f, s.mean, s.rstd, s.dx, s.dweight, s.dbias});
        }
    }
  };
  const std::vector<Contender> contenders = {
      {"graft",
       [&](cudaStream_t stream, std::size_t set) {
         Context context = pool_context(stream);
         run(context, all[set]);
       }},
      {"copy", [&](cudaStream_t stream, std::size_t set) {
         const TensorView& to = all[set].to;
         must(cudaMemcpyAsync(to.mutable_data(), all[set].from.data(),
                              static_cast<std::size_t>(to.size()) * size_of(to.dtype()),
                              cudaMemcpyDeviceToDevice, stream),
              "copy");
       }}};
  Line line;
  line.emplace_back("path", "rows");
  line.emplace_back("bytes", digits(bytes, 0));
  add_turns(line, contenders, take_turns(contenders, sets, calls_of(bytes / 3.5e6, sets), rounds));
  return line;
}

}  // namespace

Line run_case(const CudaCase& item, Cublas& cublas, int rounds) {
  if (is_rows(item.work)) return run_rows(item, rounds);
  if (item.work == Work::kSiblings) return run_siblings(item, cublas, rounds);
  return run_product(item, cublas, rounds);
}

}  // namespace graft::bench
