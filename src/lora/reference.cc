#include "lora/reference.h"

#include <vector>

#include "backend/element.h"
#include "backend/philox.h"

namespace graft::reference {
namespace {

using Matrix = std::vector<std::vector<double>>;

Matrix zeros(std::int64_t rows, std::int64_t cols) {
  return Matrix(static_cast<std::size_t>(rows),
                std::vector<double>(static_cast<std::size_t>(cols)));
}

Matrix matrix_of(const ConstTensorView& view) {
  Matrix m = zeros(view.dim(0), view.dim(1));
  for (std::size_t i = 0; i < m.size(); ++i) {
    for (std::size_t j = 0; j < m[i].size(); ++j) {
      m[i][j] = load_element(view, static_cast<std::int64_t>(i), static_cast<std::int64_t>(j));
    }
  }
  return m;
}

void write(const Matrix& m, const TensorView& view) {
  if (!view.present()) return;
  for (std::size_t i = 0; i < m.size(); ++i) {
    for (std::size_t j = 0; j < m[i].size(); ++j) {
      store_element(view, static_cast<std::int64_t>(i), static_cast<std::int64_t>(j),
                    static_cast<float>(m[i][j]));
    }
  }
}

Matrix transpose(const Matrix& m, std::int64_t cols) {
  Matrix t = zeros(cols, static_cast<std::int64_t>(m.size()));
  for (std::size_t i = 0; i < m.size(); ++i) {
    for (std::size_t j = 0; j < m[i].size(); ++j) t[j][i] = m[i][j];
  }
  return t;
}

// a (M, K) · b (K, N); N is passed since b may have no rows.
Matrix multiply(const Matrix& a, const Matrix& b, std::int64_t cols) {
  Matrix c = zeros(static_cast<std::int64_t>(a.size()), cols);
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t k = 0; k < b.size(); ++k) {
      for (std::size_t j = 0; j < b[k].size(); ++j) c[i][j] += a[i][k] * b[k][j];
    }
  }
  return c;
}

void add_scaled(Matrix& target, const Matrix& source, double factor) {
  for (std::size_t i = 0; i < target.size(); ++i) {
    for (std::size_t j = 0; j < target[i].size(); ++j) target[i][j] += factor * source[i][j];
  }
}

void scale(Matrix& m, double factor) {
  for (auto& row : m) {
    for (double& value : row) value *= factor;
  }
}

void apply_dropout(Matrix& m, const Dropout& dropout) {
  const double scale = 65536.0 / (65536 - dropout.threshold());
  std::uint64_t element = 0;
  for (auto& row : m) {
    for (double& value : row) {
      value = dropout_keeps(element++, dropout) ? value * scale : 0.0;
    }
  }
}

Matrix dropped(const ConstTensorView& x, const Dropout& dropout) {
  Matrix m = matrix_of(x);
  apply_dropout(m, dropout);
  return m;
}

// The adapter's part of y, and h on the way.
Matrix delta_forward(const ConstTensorView& x, const Adapter& adapter, const Dropout& dropout,
                     const TensorView& h_out) {
  const Matrix h = multiply(dropped(x, dropout), matrix_of(adapter.a), adapter.a.dim(1));
  write(h, h_out);
  Matrix y = multiply(h, matrix_of(adapter.b), adapter.b.dim(1));
  scale(y, adapter.scaling);
  return y;
}

// The adapter's part of dx, and da and db on the way; x and h may be absent with their outputs.
Matrix delta_backward(const ConstTensorView& dy_view, const ConstTensorView& x,
                      const ConstTensorView& h, const Adapter& adapter, const Dropout& dropout,
                      const TensorView& da_out, const TensorView& db_out) {
  const std::int64_t rank = adapter.a.dim(1), in = adapter.a.dim(0), out = adapter.b.dim(1);
  const Matrix dy = matrix_of(dy_view);
  const Matrix g = multiply(dy, transpose(matrix_of(adapter.b), out), rank);
  if (da_out.present()) {
    Matrix da = multiply(transpose(dropped(x, dropout), in), g, rank);
    scale(da, adapter.scaling);
    write(da, da_out);
  }
  if (db_out.present()) {
    Matrix db = multiply(transpose(matrix_of(h), rank), dy, out);
    scale(db, adapter.scaling);
    write(db, db_out);
  }
  Matrix dx = multiply(g, transpose(matrix_of(adapter.a), rank), in);
  scale(dx, adapter.scaling);
  apply_dropout(dx, dropout);
  return dx;
}

}  // namespace

void lora_delta_forward(const LoraDeltaForward& params) {
  Matrix y = delta_forward(params.x, params.adapter, params.dropout, params.h);
  if (params.accumulate) add_scaled(y, matrix_of(params.y), 1.0);
  write(y, params.y);
}

void lora_delta_backward(const LoraDeltaBackward& params) {
  const Matrix dx = delta_backward(params.dy, params.x, params.h, params.adapter, params.dropout,
                                   params.da, params.db);
  write(dx, params.dx);
}

void lora_linear_forward(const LoraLinearForward& params) {
  const ConstTensorView& w = params.weight.view();
  Matrix y = multiply(matrix_of(params.x), transpose(matrix_of(w), w.dim(1)), w.dim(0));
  if (params.adapter.a.present()) {
    add_scaled(y, delta_forward(params.x, params.adapter, params.dropout, params.h), 1.0);
  }
  if (params.bias.present()) {
    for (auto& row : y) {
      for (std::size_t n = 0; n < row.size(); ++n) {
        row[n] += load_element(params.bias, static_cast<std::int64_t>(n) * params.bias.stride(0));
      }
    }
  }
  write(y, params.y);
}

void lora_linear_backward(const LoraLinearBackward& params) {
  lora_linear_backward(LoraSiblingsBackward(&params, 1));
}

void lora_linear_forward(const LoraSiblingsForward& layers) {
  for (const LoraLinearForward& params : layers) lora_linear_forward(params);
}

void lora_linear_backward(const LoraSiblingsBackward& layers) {
  const TensorView& dx_out = layers.front().dx;
  Matrix dx = dx_out.present() ? zeros(dx_out.dim(0), dx_out.dim(1)) : Matrix();
  for (const LoraLinearBackward& params : layers) {
    if (params.adapter.a.present()) {
      add_scaled(dx,
                 delta_backward(params.dy, params.x, params.h, params.adapter, params.dropout,
                                params.da, params.db),
                 1.0);
    }
    if (!dx_out.present()) continue;
    const ConstTensorView& w = params.weight.view();
    add_scaled(dx, multiply(matrix_of(params.dy), matrix_of(w), w.dim(1)), 1.0);
  }
  write(dx, dx_out);
}

}  // namespace graft::reference
