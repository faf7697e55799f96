#include "metal/unfused.h"

#include <numeric>

namespace graft::standin {
namespace {

// Bytes of the arrays that steps read and write, by their names in the formulas. Gradients and
// intermediate results have the sizes of what they belong to.
struct Bytes {
  explicit Bytes(const Problem& p)
      : x(4.0 * p.rows() * p.in),
        y(4.0 * p.rows() * p.out),
        w(4.0 * p.in * p.out),
        a(4.0 * p.in * p.rank),
        b(4.0 * p.rank * p.out),
        h(4.0 * p.rows() * p.rank),
        mask(1.0 * p.rows() * p.in),
        column(4.0 * p.rows()),
        row(4.0 * p.in) {}

  double x, y, w, a, b;
  double h;       // x·A; and g = dy·Bᵀ
  double mask;    // of dropout, a byte an element
  double column;  // a number for each row: a sum, a mean
  double row;     // a number for each feature: a norm's weight or bias
};

// A multiply-add for each element of both products, (rows, in)·(in, rank) and (rows, rank)·(rank,
// out).
double pair_flops(const Problem& p) { return 2.0 * p.rows() * p.rank * (p.in + p.out); }
double base_flops(const Problem& p) { return 2.0 * p.rows() * p.in * p.out; }

}  // namespace

double Sequence::bytes() const { return std::accumulate(steps.begin(), steps.end(), 0.0); }

// y = (x·A·B)·s
Sequence unfused_lora_delta(const Problem& p) {
  const Bytes n(p);
  return {{
              n.x + n.a + n.h,  // h = x·A
              n.h + n.b + n.y,  // h·B
              n.y + n.y,        // ·s
          },
          pair_flops(p)};
}

// dx = s·dy·Bᵀ·Aᵀ, dA = xᵀ·(s·dy·Bᵀ), dB = hᵀ·(s·dy)
Sequence unfused_lora_delta_backward(const Problem& p) {
  const Bytes n(p);
  return {{
              n.y + n.y,        // s·dy
              n.y + n.b + n.h,  // g = s·dy·Bᵀ
              n.h + n.a + n.x,  // dx = g·Aᵀ
              n.x + n.h + n.a,  // dA = xᵀ·g
              n.h + n.y + n.b,  // dB = hᵀ·(s·dy)
          },
          2 * pair_flops(p)};
}

// y = x·Wᵀ + (x·A·B)·s
Sequence unfused_lora_linear(const Problem& p) {
  const Bytes n(p);
  Sequence sequence = unfused_lora_delta(p);
  sequence.steps.push_back(n.x + n.w + n.y);  // x·Wᵀ
  sequence.steps.push_back(n.y + n.y + n.y);  // +
  sequence.least_flops += base_flops(p);
  return sequence;
}

// dx = dy·W + s·dy·Bᵀ·Aᵀ; W is frozen.
Sequence unfused_lora_linear_backward(const Problem& p) {
  const Bytes n(p);
  Sequence sequence = unfused_lora_delta_backward(p);
  sequence.steps.push_back(n.y + n.w + n.x);  // dy·W
  sequence.steps.push_back(n.x + n.x + n.x);  // +
  sequence.least_flops += base_flops(p);
  return sequence;
}

// y = x·Wᵀ + (drop(x)·A·B)·s: drop(x) takes the place of x before A, and is kept for dA.
Sequence unfused_lora_linear_dropout(const Problem& p) {
  const Bytes n(p);
  Sequence sequence = unfused_lora_linear(p);
  sequence.steps.push_back(n.mask);              // drawn
  sequence.steps.push_back(n.x + n.mask + n.x);  // drop(x)
  return sequence;
}

// dx = dy·W + drop(s·dy·Bᵀ·Aᵀ)
Sequence unfused_lora_linear_dropout_backward(const Problem& p) {
  const Bytes n(p);
  Sequence sequence = unfused_lora_linear_backward(p);
  sequence.steps.push_back(n.x + n.mask + n.x);
  return sequence;
}

// y = x·Wᵀ: one product is one launch anyway.
Sequence unfused_linear(const Problem& p) {
  const Bytes n(p);
  return {{n.x + n.w + n.y}, base_flops(p)};
}

// dx = dy·W
Sequence unfused_linear_dx(const Problem& p) { return unfused_linear(p); }

// y = e / sum(e) with e = exp(s·x − max(s·x))
Sequence unfused_softmax(const Problem& p) {
  const Bytes n(p);
  return {{
      n.x + n.x,             // s·x
      n.x + n.column,        // max
      n.x + n.column + n.x,  // −
      n.x + n.x,             // exp
      n.x + n.column,        // sum
      n.x + n.column + n.x,  // ÷
  }};
}

// dx = s·y∘(dy − sum(dy∘y))
Sequence unfused_softmax_backward(const Problem& p) {
  const Bytes n(p);
  return {{
      n.x + n.x + n.x,       // dy∘y
      n.x + n.column,        // sum
      n.x + n.column + n.x,  // −
      n.x + n.x + n.x,       // ∘y
      n.x + n.x,             // ·s
  }};
}

// y = v∘weight with v = x·rstd, rstd = 1/√(mean(x²) + eps)
Sequence unfused_rms_norm(const Problem& p) {
  const Bytes n(p);
  return {{
      n.x + n.x,             // x²
      n.x + n.column,        // mean
      n.column + n.column,   // + eps
      n.column + n.column,   // 1/√
      n.x + n.column + n.x,  // v
      n.x + n.row + n.x,     // ∘weight
  }};
}

// dx = rstd·(g − v·mean(g∘v)) with g = dy∘weight, dweight = the sum over rows of dy∘v
Sequence unfused_rms_norm_backward(const Problem& p) {
  const Bytes n(p);
  return {{
      n.x + n.row + n.x,     // g
      n.x + n.x + n.x,       // g∘v
      n.x + n.column,        // mean
      n.x + n.column + n.x,  // v·
      n.x + n.x + n.x,       // −
      n.x + n.column + n.x,  // rstd·
      n.x + n.x + n.x,       // dy∘v
      n.x + n.row,           // sum
  }};
}

// The same of x + residual, which is an output.
Sequence unfused_add_rms_norm(const Problem& p) {
  const Bytes n(p);
  Sequence sequence = unfused_rms_norm(p);
  sequence.steps.push_back(n.x + n.x + n.x);
  return sequence;
}

// dx, which is dresidual too, has the sum's own gradient added.
Sequence unfused_add_rms_norm_backward(const Problem& p) {
  const Bytes n(p);
  Sequence sequence = unfused_rms_norm_backward(p);
  sequence.steps.push_back(n.x + n.x + n.x);
  return sequence;
}

// y = v∘weight + bias with v = c·rstd, c = x − mean(x), rstd = 1/√(mean(c²) + eps)
Sequence unfused_layer_norm(const Problem& p) {
  const Bytes n(p);
  return {{
      n.x + n.column,        // mean
      n.x + n.column + n.x,  // c
      n.x + n.x,             // c²
      n.x + n.column,        // mean
      n.column + n.column,   // + eps
      n.column + n.column,   // 1/√
      n.x + n.column + n.x,  // v
      n.x + n.row + n.x,     // ∘weight
      n.x + n.row + n.x,     // + bias
  }};
}

// dx = rstd·(g − mean(g) − v·mean(g∘v)) with g = dy∘weight, dweight and dbias the sums over rows of
// dy∘v and dy
Sequence unfused_layer_norm_backward(const Problem& p) {
  const Bytes n(p);
  Sequence sequence = unfused_rms_norm_backward(p);
  sequence.steps.push_back(n.x + n.column);        // mean(g)
  sequence.steps.push_back(n.x + n.column + n.x);  // −
  sequence.steps.push_back(n.x + n.row);           // dbias
  return sequence;
}

}  // namespace graft::standin
