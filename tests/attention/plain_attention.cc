#include "attention/plain_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/element.h"
#include "backend/rotary_reference.h"

namespace graft::test {

namespace {

using Matrix = std::vector<std::vector<float>>;

float rounded(float value, DType dtype) {
  return dtype == DType::kBFloat16 ? from_bfloat16(to_bfloat16(value)) : value;
}

std::int64_t offset(const ConstTensorView& x, std::int64_t b, std::size_t t, std::int64_t h,
                    std::size_t e) {
  return b * x.stride(0) + static_cast<std::int64_t>(t) * x.stride(1) + h * x.stride(2) +
         static_cast<std::int64_t>(e) * x.stride(3);
}

Matrix load(const ConstTensorView& x, std::int64_t b, std::int64_t h) {
  Matrix rows(static_cast<std::size_t>(x.dim(1)),
              std::vector<float>(static_cast<std::size_t>(x.dim(3))));
  for (std::size_t t = 0; t < rows.size(); ++t) {
    for (std::size_t e = 0; e < rows[t].size(); ++e) {
      rows[t][e] = load_element(x, offset(x, b, t, h, e));
    }
  }
  return rows;
}

void store(const Matrix& rows, const TensorView& x, std::int64_t b, std::int64_t h) {
  for (std::size_t t = 0; t < rows.size(); ++t) {
    for (std::size_t e = 0; e < rows[t].size(); ++e) {
      store_element(x, offset(x, b, t, h, e), rows[t][e]);
    }
  }
}

void turn(Matrix& rows, const Rotary& rotary, std::int64_t first, bool inverse, DType dtype) {
  for (std::size_t t = 0; rotary.enabled && t < rows.size(); ++t) {
    const std::int64_t position = rotary.position + first + static_cast<std::int64_t>(t);
    const std::size_t pairs = rows[t].size() / 2;
    for (std::size_t i = 0; i < pairs; ++i) {
      // The unit vector turned gives the pair's cosine and sine, exact up to their rounding.
      std::vector<double> unit(rows[t].size());
      const std::size_t low = rotary.interleaved ? 2 * i : i;
      const std::size_t high = rotary.interleaved ? 2 * i + 1 : i + pairs;
      unit[low] = 1;
      reference::turn(unit, rotary, position, inverse);
      const float cos = rounded(static_cast<float>(unit[low]), dtype);
      const float sin = rounded(static_cast<float>(unit[high]), dtype);
      const float a = rows[t][low], b = rows[t][high];
      rows[t][low] = rounded(rounded(a * cos, dtype) - rounded(b * sin, dtype), dtype);
      rows[t][high] = rounded(rounded(b * cos, dtype) + rounded(a * sin, dtype), dtype);
    }
  }
}

Matrix product(const Matrix& a, const Matrix& b_transposed, DType dtype) {
  Matrix c;
  for (const auto& row : a) {
    c.emplace_back();
    for (const auto& column : b_transposed) {
      float sum = 0;
      for (std::size_t k = 0; k < row.size(); ++k) sum += row[k] * column[k];
      c.back().push_back(rounded(sum, dtype));
    }
  }
  return c;
}

Matrix transposed(const Matrix& a, std::size_t columns) {
  Matrix t(columns, std::vector<float>(a.size()));
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < columns; ++j) t[j][i] = a[i][j];
  }
  return t;
}

Matrix sum(Matrix a, const Matrix& b, DType dtype) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < a[i].size(); ++j) a[i][j] = rounded(a[i][j] + b[i][j], dtype);
  }
  return a;
}

}  // namespace

void plain_attention(const AttentionForward& f, const AttentionBackward& g) {
  const DType dtype = f.q.dtype();
  const auto r = [dtype](float value) { return rounded(value, dtype); };
  const std::int64_t heads = f.q.dim(2), queries = f.q.dim(1), cached = f.k.dim(1) - queries;
  const std::int64_t group = heads / f.k.dim(2);
  const auto d = static_cast<std::size_t>(f.q.dim(3));
  const auto keys = static_cast<std::size_t>(f.k.dim(1));
  const float scale = f.options.scale;
  for (std::int64_t b = 0; b < f.q.dim(0); ++b) {
    Matrix dk, dv;
    for (std::int64_t h = 0; h < heads; ++h) {
      Matrix q = load(f.q, b, h), k = load(f.k, b, h / group);
      const Matrix v = load(f.v, b, h / group), dy = load(g.dy, b, h);
      turn(q, f.options.rotary, cached, false, dtype);
      turn(k, f.options.rotary, 0, false, dtype);
      Matrix p = product(q, k, dtype);
      Matrix again;  // p from the logsumexp that was saved, as backward gets it
      std::vector<float> logsumexp;
      for (std::size_t i = 0; i < p.size(); ++i) {
        float max = -std::numeric_limits<float>::infinity(), total = 0;
        for (std::size_t j = 0; j < keys; ++j) {
          const bool seen = !f.options.causal ||
                            static_cast<std::int64_t>(j) <= static_cast<std::int64_t>(i) + cached;
          p[i][j] = seen ? r(scale * p[i][j]) : -std::numeric_limits<float>::infinity();
          max = std::max(max, p[i][j]);
        }
        const std::vector<float> scores = p[i];
        for (float& value : p[i]) total += value = r(std::exp(r(value - max)));
        for (float& value : p[i]) value = r(value / r(total));
        logsumexp.push_back(max + std::log(total));
        store_element(f.logsumexp, (b * heads + h) * queries + static_cast<std::int64_t>(i),
                      logsumexp[i]);
        again.emplace_back();
        for (const float score : scores) again[i].push_back(r(std::exp(score - logsumexp[i])));
      }
      const Matrix y = product(p, transposed(v, d), dtype);
      store(y, f.y, b, h);

      const Matrix given_y = load(g.y, b, h);
      Matrix ds = product(dy, v, dtype);
      for (std::size_t i = 0; i < ds.size(); ++i) {
        float delta = 0;
        for (std::size_t e = 0; e < d; ++e) delta += dy[i][e] * given_y[i][e];
        for (std::size_t j = 0; j < keys; ++j) {
          ds[i][j] = r(scale * r(again[i][j] * r(ds[i][j] - r(delta))));
        }
      }
      Matrix dq = product(ds, transposed(k, d), dtype);
      turn(dq, f.options.rotary, cached, true, dtype);
      store(dq, g.dq, b, h);
      const Matrix head_dk = product(transposed(ds, keys), transposed(q, d), dtype);
      const Matrix head_dv = product(transposed(again, keys), transposed(dy, d), dtype);
      dk = h % group == 0 ? head_dk : sum(dk, head_dk, dtype);
      dv = h % group == 0 ? head_dv : sum(dv, head_dv, dtype);
      if (h % group != group - 1) continue;
      turn(dk, f.options.rotary, 0, true, dtype);
      store(dk, g.dk, b, h / group);
      store(dv, g.dv, b, h / group);
    }
  }
}

}  // namespace graft::test
