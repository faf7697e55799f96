#include "graft/mlx/detail/metal_adapter.h"

#include <memory>
#include <utility>

#include "graft/metal_lora.h"
#include "graft/mlx/detail/philox.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

// scaling·matrixᵀ·coefficients, or its transpose, (columns of matrix, rank) or (rank, columns of
// matrix). Inputs: those two, scaling, [dropout on the matrix].
mx::array launch_outer(Arrays inputs, bool by_column, const Sources& sources,
                       const ArraysFunction& composed, bool counts, const Caller& caller,
                       mx::Stream s) {
  const mx::array &matrix = inputs[0], &coefficients = inputs[1];
  const int columns = matrix.shape(1), rank = coefficients.shape(1);
  const Outputs outputs{{by_column ? mx::Shape{columns, rank} : mx::Shape{rank, columns}},
                        {mx::float32}};
  if (matrix.size() == 0) return zeros(outputs, s)[0];
  metal::LoraOuter outer;
  outer.rows = matrix.shape(0);
  outer.columns = columns;
  outer.rank = rank;
  outer.matrix = *dtype_of(matrix.dtype());
  outer.dropout = inputs.size() > 3;
  outer.by_column = by_column;
  auto kernel = kernel_of(metal::lora_outer(outer), inputs, outputs, s);
  const std::size_t read = inputs.size();
  sources.append_to(inputs);
  auto node = std::make_shared<MetalNode>(s, caller, Pass::kBackward, counts, std::move(kernel),
                                          composed, read);
  return mx::array::make_arrays(outputs.shapes, outputs.dtypes, node, inputs)[0];
}

}  // namespace

Arrays dropout_inputs(const LoraCall& call, const Arrays& inputs, mx::Stream s) {
  if (call.dropout == 0) return {};
  const graft::Dropout dropout{call.dropout};
  return {mx::reshape(inputs[call.seed()], {}, s), mx::reshape(inputs[call.offset()], {}, s),
          mx::array(dropout.threshold()), mx::array(dropout.scale())};
}

mx::array dropped(const LoraCall& call, const mx::array& x, const Arrays& dropout, mx::Stream s) {
  return dropout.empty() ? x : composed_dropout(x, call.dropout, dropout[0], dropout[1], s);
}

mx::array product(const mx::array& left, const mx::array& right, mx::Stream s) {
  return mx::matmul(mx::astype(left, mx::float32, s), mx::astype(right, mx::float32, s), s);
}

Sources Sources::of(const Arrays& inputs, std::size_t at) {
  return {inputs[at], inputs[at + 1], inputs[at + 2], inputs[at + 3],
          Arrays(inputs.begin() + static_cast<int>(at + 4), inputs.end())};
}

void Sources::append_to(Arrays& inputs) const {
  inputs.insert(inputs.end(), {x, a, b, dy});
  if (!dropout.empty()) inputs.insert(inputs.end(), {dropout[0], dropout[1]});
}

std::vector<bool> Sources::has_rows(std::size_t read,
                                    std::initializer_list<std::size_t> matrices) const {
  std::vector<bool> rows(read + (dropout.empty() ? 4 : 6));
  for (const std::size_t i : matrices) rows[i] = true;
  rows[0] = rows[read] = rows[read + 3] = true;
  return rows;
}

mx::array Sources::g(mx::Stream s) const { return product(dy, mx::transpose(b, s), s); }

mx::array Sources::dropped_x(const LoraCall& call, mx::Stream s) const {
  return dropped(call, x, dropout, s);
}

mx::array Sources::pair(const LoraCall& call, mx::Stream s) const {
  const auto plain =
      mx::multiply(product(g(s), mx::transpose(a, s), s), mx::array(call.scaling), s);
  return dropped(call, plain, dropout, s);
}

mx::array launch_da(const LoraCall& call, const mx::array& g, const Sources& sources, bool counts,
                    const Caller& caller, mx::Stream s) {
  Arrays inputs{sources.x, g, mx::array(call.scaling)};
  inputs.insert(inputs.end(), sources.dropout.begin(), sources.dropout.end());
  const auto composed = [call, s, read = inputs.size()](const Arrays& in) {
    const Sources all = Sources::of(in, read);
    const auto da = product(mx::transpose(all.dropped_x(call, s), s), all.g(s), s);
    return Arrays{mx::multiply(da, mx::array(call.scaling), s)};
  };
  return mx::astype(launch_outer(std::move(inputs), true, sources, composed, counts, caller, s),
                    sources.a.dtype(), s);
}

mx::array launch_db(const LoraCall& call, const mx::array& h, const Sources& sources, bool counts,
                    const Caller& caller, mx::Stream s) {
  Arrays inputs{sources.dy, h, mx::array(call.scaling)};
  const auto composed = [call, s, read = inputs.size()](const Arrays& in) {
    const Sources all = Sources::of(in, read);
    const mx::array again = product(all.dropped_x(call, s), all.a, s);
    const auto db = product(mx::transpose(again, s), all.dy, s);
    return Arrays{mx::multiply(db, mx::array(call.scaling), s)};
  };
  return mx::astype(launch_outer(std::move(inputs), false, sources, composed, counts, caller, s),
                    sources.b.dtype(), s);
}

}  // namespace graft::mlx::detail
