#include "attention/reference.h"

#include <cmath>
#include <limits>
#include <vector>

#include "backend/element.h"
#include "backend/rotary_reference.h"

namespace graft::reference {

namespace {

using Rows = std::vector<std::vector<double>>;  // (T, d)

std::int64_t offset(const ConstTensorView& x, std::int64_t b, std::int64_t t, std::int64_t h) {
  return b * x.stride(0) + t * x.stride(1) + h * x.stride(2);
}

Rows load(const ConstTensorView& x, std::int64_t b, std::int64_t h) {
  Rows rows(static_cast<std::size_t>(x.dim(1)));
  for (std::size_t t = 0; t < rows.size(); ++t) {
    for (std::int64_t e = 0; e < x.dim(3); ++e) {
      rows[t].push_back(
          load_element(x, offset(x, b, static_cast<std::int64_t>(t), h) + e * x.stride(3)));
    }
  }
  return rows;
}

void store(const Rows& rows, const TensorView& x, std::int64_t b, std::int64_t h) {
  for (std::size_t t = 0; t < rows.size(); ++t) {
    for (std::size_t e = 0; e < rows[t].size(); ++e) {
      store_element(x,
                    offset(x, b, static_cast<std::int64_t>(t), h) +
                        static_cast<std::int64_t>(e) * x.stride(3),
                    static_cast<float>(rows[t][e]));
    }
  }
}

void turn_all(Rows& rows, const Rotary& rotary, std::int64_t first, bool inverse) {
  if (!rotary.enabled) return;
  for (std::size_t t = 0; t < rows.size(); ++t) {
    turn(rows[t], rotary, rotary.position + first + static_cast<std::int64_t>(t), inverse);
  }
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

void add(const std::vector<double>& from, double factor, std::vector<double>& to) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += factor * from[i];
}

// One query head: turned inputs, weights p of each query over the keys, and y.
struct Head {
  Rows q, k, v, p, y;
  std::vector<double> logsumexp;

  Head(const ConstTensorView& q_view, const ConstTensorView& k_view, const ConstTensorView& v_view,
       const AttentionOptions& options, std::int64_t b, std::int64_t h)
      : q(load(q_view, b, h)),
        k(load(k_view, b, h / (q_view.dim(2) / k_view.dim(2)))),
        v(load(v_view, b, h / (q_view.dim(2) / k_view.dim(2)))) {
    const std::int64_t cached = k_view.dim(1) - q_view.dim(1);
    turn_all(q, options.rotary, cached, false);
    turn_all(k, options.rotary, 0, false);
    for (std::size_t i = 0; i < q.size(); ++i) {
      std::size_t seen = k.size();
      if (options.causal)
        seen = static_cast<std::size_t>(static_cast<std::int64_t>(i) + 1 + cached);
      p.emplace_back();
      y.emplace_back(static_cast<std::size_t>(q_view.dim(3)));
      double max = -std::numeric_limits<double>::infinity(), sum = 0;
      for (std::size_t j = 0; j < seen; ++j) {
        p[i].push_back(options.scale * dot(q[i], k[j]));
        max = std::max(max, p[i][j]);
      }
      for (double& score : p[i]) sum += score = std::exp(score - max);
      logsumexp.push_back(max + std::log(sum));
      for (std::size_t j = 0; j < seen; ++j) add(v[j], p[i][j] /= sum, y[i]);
    }
  }
};

Rows zeros(const Rows& like) {
  Rows rows;
  for (const auto& row : like) rows.emplace_back(row.size());
  return rows;
}

}  // namespace

void attention_forward(const AttentionForward& params) {
  const std::int64_t heads = params.q.dim(2), queries = params.q.dim(1);
  for (std::int64_t b = 0; b < params.q.dim(0); ++b) {
    for (std::int64_t h = 0; h < heads; ++h) {
      const Head head(params.q, params.k, params.v, params.options, b, h);
      store(head.y, params.y, b, h);
      for (std::int64_t t = 0; t < queries && params.logsumexp.present(); ++t) {
        store_element(params.logsumexp, (b * heads + h) * queries + t,
                      static_cast<float>(head.logsumexp[static_cast<std::size_t>(t)]));
      }
    }
  }
}

void attention_backward(const AttentionBackward& params) {
  const std::int64_t group = params.q.dim(2) / params.k.dim(2);
  const std::int64_t cached = params.k.dim(1) - params.q.dim(1);
  const double scale = params.options.scale;
  for (std::int64_t b = 0; b < params.q.dim(0); ++b) {
    for (std::int64_t kv_head = 0; kv_head < params.k.dim(2); ++kv_head) {
      Rows dk = zeros(load(params.k, b, kv_head)), dv = dk;
      for (std::int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        const Head head(params.q, params.k, params.v, params.options, b, h);
        const Rows dy = load(params.dy, b, h), y = load(params.y, b, h);
        Rows dq = zeros(head.q);
        for (std::size_t i = 0; i < head.q.size(); ++i) {
          const double delta = dot(dy[i], y[i]);
          for (std::size_t j = 0; j < head.p[i].size(); ++j) {
            const double ds = scale * head.p[i][j] * (dot(dy[i], head.v[j]) - delta);
            add(head.k[j], ds, dq[i]);
            add(head.q[i], ds, dk[j]);
            add(dy[i], head.p[i][j], dv[j]);
          }
        }
        turn_all(dq, params.options.rotary, cached, true);
        if (params.dq.present()) store(dq, params.dq, b, h);
      }
      turn_all(dk, params.options.rotary, 0, true);
      if (params.dk.present()) store(dk, params.dk, b, kv_head);
      if (params.dv.present()) store(dv, params.dv, b, kv_head);
    }
  }
}

}  // namespace graft::reference
