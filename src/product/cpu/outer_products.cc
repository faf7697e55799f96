#include "product/cpu/outer_products.h"

#include <algorithm>

namespace graft::cpu {

OuterProducts::OuterProducts(const Plan& plan, const ProductScratch& scratch)
    : plan_(plan), scratch_(scratch) {
  const auto& all = plan.product.outer_products;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const bool needs_tasks =
        all[i].coefficients == nullptr || plan.chunks_with_partials(all[i]) > 0;
    Blocks& blocks = needs_tasks ? late_ : early_;
    for (std::int64_t c = 0; c < all[i].cols; c += plan.outer_cols) blocks.push_back({i, c});
  }
}

const float* OuterProducts::coefficients(const OuterProduct& outer, std::int64_t row) const {
  const TermPlan& term = plan_.terms[outer.term];
  const LowRank& pair = plan_.product.terms[outer.term].pair;
  const float* h = outer.coefficients;
  if (h == nullptr) h = term.owns_h ? scratch_.terms[outer.term].h : pair.h;
  return h + row * term.rank;
}

// A chunk's rows of the matrix, dropped (as dx is, by the same bits), as dense floats.
Source OuterProducts::dense_rows(const OuterProduct& outer, std::int64_t chunk,
                                 const WorkerScratch& worker) const {
  const DropoutElements all = plan_.output_elements(outer.term, chunk, 0);
  const Kept kept =
      outer.dropped ? all.kept(worker.kept + plan_.terms[outer.term].kept_at) : Kept();
  plan_.kernels.drop_rows(outer.matrix.at(all.row, 0), all.rows, outer.cols, kept, worker.rows);
  return {worker.rows, DType::kFloat32, outer.cols, 1};
}

void OuterProducts::add(std::int64_t chunk, const WorkerScratch& worker) const {
  const std::int64_t row = plan_.partition.first_row(chunk);
  const std::int64_t rows = plan_.partition.first_row(chunk + 1) - row;
  const auto& all = plan_.product.outer_products;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const OuterProduct& outer = all[i];
    if (chunk >= plan_.chunks_with_partials(outer)) continue;
    const std::int64_t rank = plan_.terms[outer.term].rank;
    const Source matrix =
        needs_dense_copy(outer) ? dense_rows(outer, chunk, worker) : outer.matrix.at(row, 0);
    plan_.kernels.outer(coefficients(outer, row), rank, matrix, rows, outer.cols,
                        scratch_.outer_partials[i] + chunk * rank * outer.cols, outer.cols);
  }
}

// The late rows first, then what chunks have summed, in their order, whatever thread made them: the
// same bits every time. A block has all of the rank: of a gradient of A, which lies transposed,
// that is a stretch of memory no other task writes to.
void OuterProducts::finish(const Block& block, const WorkerScratch& worker) const {
  const auto [index, first] = block;
  const OuterProduct& outer = plan_.product.outer_products[index];
  const std::int64_t rank = plan_.terms[outer.term].rank, ld = plan_.outer_cols;
  const std::int64_t cols = std::min(ld, outer.cols - first);
  const std::int64_t chunks = plan_.chunks_with_partials(outer);
  const std::int64_t row = plan_.partition.first_row(chunks), m = plan_.product.m;
  if (row < m) {
    plan_.kernels.outer(coefficients(outer, row), rank, outer.matrix.at(row, first), m - row, cols,
                        worker.sums, ld);
  } else {
    std::fill_n(worker.sums, rank * ld, 0.0f);
  }
  const float* partial = scratch_.outer_partials[index] + first;
  for (std::int64_t i = 0; i < chunks * rank; ++i, partial += outer.cols) {
    plan_.kernels.add(partial, cols, worker.sums + i % rank * ld);
  }
  write(outer, worker.sums, first, cols);
}

// out, columns [first, first + cols) = scaling · sums [rank][outer_cols], and dropout's factor.
void OuterProducts::write(const OuterProduct& outer, const float* sums, std::int64_t first,
                          std::int64_t cols) const {
  const std::int64_t rank = plan_.terms[outer.term].rank, ld = plan_.outer_cols;
  const std::int64_t row_stride = outer.row_stride, col_stride = outer.col_stride;
  float* const out = outer.out + first * col_stride;
  const float dropout_scale = outer.dropped ? plan_.terms[outer.term].output_scale : 1.0f;
  const float scaling = outer.scaling * dropout_scale;
  if (row_stride == 1) {
    plan_.kernels.transpose(sums, ld, rank, cols, scaling, out, col_stride);
    return;
  }
  for (std::int64_t j = 0; j < rank; ++j) {
    for (std::int64_t c = 0; c < cols; ++c) {
      out[j * row_stride + c * col_stride] = scaling * sums[j * ld + c];
    }
  }
}

}  // namespace graft::cpu
