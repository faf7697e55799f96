#include "product/cpu/plan.h"

#include <algorithm>

#include "weight/cpu/panels.h"

namespace graft::cpu {
namespace {

// Rows whose outer products are made late, when all of y is there: so few that they are still in
// some cache, and that partial sums of their small chunks would be more to move than they are.
constexpr std::int64_t kLateRows = kMostOuterRows;

bool is_row_major_float(const Kernels& kernels, const Source& matrix) {
  return !kernels.bfloat16 && matrix.dtype == DType::kFloat32 && matrix.col_stride == 1;
}

// A dense float32 S of exactly one group of columns is its own packed form.
bool shrink_is_packed(const Kernels& kernels, const LowRank& pair) {
  const bool one_group = pair.rank == kernels.shrink_cols || pair.rank == kernels.wide_shrink_cols;
  return one_group && is_row_major_float(kernels, pair.shrink) &&
         pair.shrink.row_stride == pair.rank;
}

// Rows of a row-major float32 E serve as column panels where no panel is ragged.
bool expand_serves_as_it_is(const Kernels& kernels, const LowRank& pair, std::int64_t n) {
  return is_row_major_float(kernels, pair.expand) && n % kernels.width == 0;
}

// Nothing but the shrink reads x, and it lies as the kernel wants it.
bool shrinks_from_rows(const Kernels& kernels, const Term& term) {
  return term.pair.rank > 0 && term.weight == nullptr && is_row_major_float(kernels, term.x) &&
         term.pair.input_dropout == nullptr;
}

bool makes_base_product(const Term& term) { return term.weight != nullptr && term.y != nullptr; }

bool makes_h_for_outer_products(const Product& product, std::size_t term) {
  return std::any_of(product.outer_products.begin(), product.outer_products.end(),
                     [term](const OuterProduct& outer) {
                       return outer.term == term && outer.coefficients == nullptr;
                     });
}

bool drops_rows(const Product& product, std::size_t term) {
  return std::any_of(
      product.outer_products.begin(), product.outer_products.end(),
      [term](const OuterProduct& outer) { return outer.term == term && outer.dropped; });
}

float scale_of(const Dropout* dropout) { return dropout != nullptr ? dropout->scale() : 1.0f; }

// Columns of outer products that a task finishes, of `cols` in all: whole register blocks on every
// instruction set, some tasks a thread, and not so narrow that the rows' coefficients, packed anew
// in each, cost much.
std::int64_t outer_task_cols(const Product& product, int threads) {
  constexpr std::int64_t kRegisterBlock = 48, kMost = 192, kTasksPerThread = 3;
  std::int64_t cols = 0;
  for (const OuterProduct& outer : product.outer_products) cols += outer.cols;
  if (cols == 0) return 0;
  const std::int64_t even = ceil_div(cols, kTasksPerThread * threads);
  return std::min(kMost, ceil_div(even, kRegisterBlock) * kRegisterBlock);
}

}  // namespace

bool needs_dense_copy(const OuterProduct& outer) {
  return outer.dropped || outer.matrix.col_stride != 1;
}

Plan::Plan(const Product& p, int thread_count)
    : product(p),
      kernels(kernels_for(p.multiply)),
      threads(thread_count),
      partition(share()),
      outer_cols(outer_task_cols(p, thread_count)) {
  const std::int64_t chunk_panels = partition.most_chunk_panels();
  for (Input& input : inputs) {
    input.panels_at = x_panels;
    x_panels += chunk_panels * input.panel_size;
  }
  for (std::size_t i = 0; i < p.terms.size(); ++i) {
    const Term& term = p.terms[i];
    const LowRank& pair = term.pair;
    const bool has_pair = pair.rank > 0,
               packs_expand =
                   has_pair && term.y != nullptr && !expand_serves_as_it_is(kernels, pair, term.n);
    TermPlan& plan = terms.emplace_back();
    plan.rank = pair.rank;
    plan.column_panels = ceil_div(term.n, kernels.width);
    plan.row_shrink = shrinks_from_rows(kernels, term);
    plan.packs_weight = makes_base_product(term) && !term.weight->is_packed();
    plan.packs_shrink = has_pair && !shrink_is_packed(kernels, pair);
    plan.packs_expand = packs_expand;
    plan.owns_h = has_pair && pair.h == nullptr && makes_h_for_outer_products(p, i);
    plan.shrink_tasks = plan.packs_shrink ? ceil_div(pair.rank, kernels.wide_shrink_cols) : 0;
    plan.expand_tasks = packs_expand ? std::min<std::int64_t>(threads, plan.column_panels) : 0;
    plan.drops_rows = drops_rows(p, i);
    plan.output_dropout =
        has_pair && (term.y != nullptr || plan.drops_rows) ? pair.output_dropout : nullptr;
    plan.input_scale = scale_of(pair.input_dropout);
    plan.output_scale = scale_of(plan.output_dropout);
    plan.h_panels_at = h_panels;
    h_panels += chunk_panels * kernels.row_panel_size(pair.rank);
    plan.kept_at = kept;
    kept += output_kept_bytes(i);
  }
}

// Forward, terms share their x and each has a y; backward it is the other way round.
Partition Plan::share() {
  const std::size_t count = product.terms.size();
  const bool forward = product.direction == Direction::kForward;
  bool has_weights = false;
  std::int64_t row_panel_size = 0, column_panels = 0, row_work = 0, weight_bytes = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const Term& term = product.terms[i];
    if (i == 0 || !forward) {
      inputs.push_back({i, i, false, 0, 0, 1});
      row_panel_size += kernels.row_panel_size(term.k);
    }
    if (i == 0 || forward) {
      outputs.push_back({i, i, column_panels, column_panels + ceil_div(term.n, kernels.width)});
      column_panels = outputs.back().last_column;
    }
    Input& input = inputs.back();
    input.last = i + 1;
    input.packs |=
        makes_base_product(term) || (term.pair.rank > 0 && !shrinks_from_rows(kernels, term));
    if (term.y != nullptr) row_work += term.n * term.pair.rank;
    // A pair's h would be made anew for each range of columns.
    if (makes_base_product(term) && term.pair.rank == 0) {
      weight_bytes += packed_panels_size(kernels, term.n, term.k) * 4;
    }
    if (makes_base_product(term)) {
      has_weights = true;
      row_work += term.n * term.k;
      input.panel_size = kernels.row_panel_size(term.k);
      input.shrink_panels = kernels.shrink_panels;
    }
    outputs.back().last = i + 1;
  }
  return Partition(kernels, product.m, row_panel_size, column_panels, row_work, has_weights,
                   weight_bytes, threads);
}

DropoutElements Plan::output_elements(std::size_t term, std::int64_t chunk,
                                      std::int64_t split) const {
  const std::int64_t n = product.terms[term].n, row = partition.first_row(chunk);
  const std::int64_t rows = partition.first_row(chunk + 1) - row;
  if (split == 0 && terms[term].drops_rows) return {row, rows, n, 0, n};
  const std::int64_t col = partition.split_panel(split) * kernels.width;
  const std::int64_t end = partition.split_panel(split + 1) * kernels.width;
  return {row, rows, n, col, std::min(n, end) - col};
}

// Of any task: the first chunk has the most panels.
std::int64_t Plan::output_kept_bytes(std::size_t term) const {
  if (terms[term].output_dropout == nullptr || partition.chunks() == 0) return 0;
  std::int64_t most = 0;
  for (std::int64_t split = 0; split < partition.splits; ++split) {
    DropoutElements elements = output_elements(term, 0, split);
    elements.rows = partition.most_chunk_panels() * kernels.rows;
    most = std::max(most, elements.bytes());
  }
  return most;
}

std::int64_t Plan::chunks_with_partials(const OuterProduct& outer) const {
  std::int64_t chunk = partition.chunks();
  if (needs_dense_copy(outer)) return chunk;  // late rows are read where they lie
  while (chunk > 0 && product.m - partition.first_row(chunk - 1) <= kLateRows) --chunk;
  return chunk;
}

ProductScratch Plan::layout(Scratch& scratch) const {
  const std::int64_t chunk_panels = partition.most_chunk_panels();
  const std::int64_t chunk_rows = chunk_panels * kernels.rows;
  ProductScratch parts;

  std::int64_t most_k = 0, most_dropped_k = 0, most_rank = 0, most_kept = kept;
  for (std::size_t i = 0; i < terms.size(); ++i) {
    const Term& term = product.terms[i];
    const TermPlan& plan = terms[i];
    TermScratch& to = parts.terms.emplace_back();
    to.weight = scratch.take<std::uint32_t>(
        plan.packs_weight ? packed_panels_size(kernels, term.n, term.k) : 0);
    to.shrink = scratch.take<std::uint32_t>(
        plan.packs_shrink ? kernels.packed_a_size(term.k, plan.rank) : 0);
    to.expand = scratch.take<std::uint32_t>(
        plan.packs_expand ? packed_panels_size(kernels, term.n, plan.rank) : 0);
    to.bias = scratch.take<float>(term.bias != nullptr ? plan.column_panels * kernels.width : 0);
    to.h = scratch.take<float>(plan.owns_h ? product.m * plan.rank : 0);

    most_k = std::max(most_k, term.k);
    if (term.pair.input_dropout != nullptr) {
      most_dropped_k = std::max(most_dropped_k, term.k);
      most_kept = std::max(most_kept, DropoutElements{0, kernels.rows, term.k, 0, term.k}.bytes());
    }
    most_rank = std::max(most_rank, plan.rank);
  }
  std::int64_t dense_cols = 0;
  for (const OuterProduct& outer : product.outer_products) {
    parts.outer_partials.push_back(
        scratch.take<float>(chunks_with_partials(outer) * terms[outer.term].rank * outer.cols));
    if (needs_dense_copy(outer)) dense_cols = std::max(dense_cols, outer.cols);
  }
  const std::int64_t most_x_panels = std::max(x_panels, kernels.row_panel_size(most_k));
  int shrink_panels = 1;
  for (const Input& input : inputs) shrink_panels = std::max(shrink_panels, input.shrink_panels);
  const bool sums_terms = outputs.size() < terms.size();
  for (int i = 0; i < threads; ++i) {
    WorkerScratch& worker = parts.workers.emplace_back();
    worker.x_panels = scratch.take<std::uint32_t>(most_x_panels);
    worker.h_panels = scratch.take<std::uint32_t>(h_panels);
    worker.dropped = scratch.take<std::uint32_t>(
        most_dropped_k > 0 ? shrink_panels * kernels.row_panel_size(most_dropped_k) : 0);
    worker.h = scratch.take<float>(shrink_panels * kernels.h_panel_size(most_rank));
    worker.rows = scratch.take<float>(chunk_rows * dense_cols);
    worker.kept = scratch.take<std::uint8_t>(most_kept);
    worker.partial = scratch.take<float>(sums_terms ? chunk_rows * kernels.width : 0);
    worker.sums = scratch.take<float>(product.outer_products.empty() ? 0 : most_rank * outer_cols);
  }
  return parts;
}

}  // namespace graft::cpu
