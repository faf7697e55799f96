#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/scratch.h"
#include "backend/cpu/small_vector.h"
#include "product/cpu/dropout_elements.h"
#include "product/cpu/partition.h"
#include "product/cpu/product.h"

// What a product's shapes decide before anything runs: how its terms share inputs and outputs, what
// has to be packed or rewritten, how the work is dealt out, and the scratch that all of it takes.

namespace graft::cpu {

/// A matrix x that terms [first, last) read.
struct Input {
  std::size_t first, last;
  bool packs;               // into row panels
  std::int64_t panel_size;  // from a row panel to the next, 32-bit elements; 0 if none are kept
  std::int64_t panels_at;   // in WorkerScratch::x_panels
  int shrink_panels;        // whose h is made at once
};

/// A matrix y that terms [first, last) sum to: columns panels [first_column, last_column) of all.
struct Output {
  std::size_t first, last;
  std::int64_t first_column, last_column;
};

/// What one term needs of it.
struct TermPlan {
  std::int64_t rank, column_panels;
  bool row_shrink;  // h straight from rows of x
  bool packs_weight, packs_shrink, packs_expand, owns_h;
  std::int64_t shrink_tasks, expand_tasks;  // that pack S, a group of columns each, and E
  const Dropout* output_dropout;            // null also where nothing needs it
  float input_scale, output_scale;          // of what dropout keeps
  bool drops_rows;                          // whole ones, for an outer product
  std::int64_t h_panels_at, kept_at;        // in a worker's parts
};

/// A term's packed operands, for all tasks.
struct TermScratch {
  std::uint32_t* weight;  // column panels, if the weight came plain
  std::uint32_t* shrink;  // packed S
  std::uint32_t* expand;  // column panels of E
  float* bias;            // padded to whole panels
  float* h;               // (M, rank)
};

/// What a thread works with: the chunk of rows at hand.
struct WorkerScratch {
  std::uint32_t* x_panels;  // row panels of each input
  std::uint32_t* h_panels;  // low-rank panels of each term
  std::uint32_t* dropped;   // row panels of drop(x), unscaled, in a pass of the shrink
  float* h;                 // of the panels in a pass of the shrink, [rank][stride] each
  float* rows;              // dense float rows, where a matrix has to be rewritten
  std::uint8_t* kept;       // bits of dropout: on a row panel of x, or on a chunk of each term's y
  float* partial;           // a column panel of y before its last term: [panel][rows][width]
  float* sums;              // a block of columns of an outer product, [rank][outer_cols]
};

struct ProductScratch {
  SmallVector<TermScratch, 3> terms;
  SmallVector<float*, 2> outer_partials;  // an outer product's: [chunk][rank][cols]
  SmallVector<WorkerScratch, 8> workers;
};

struct Plan {
  Plan(const Product& product, int threads);

  ProductScratch layout(Scratch& scratch) const;

  /// Chunks whose part of an outer product is summed apart; of the rows after them, it is made
  /// late.
  std::int64_t chunks_with_partials(const OuterProduct& outer) const;
  /// What a term's output dropout is on in a task: its share of columns, or whole rows where an
  /// outer product is of them too.
  DropoutElements output_elements(std::size_t term, std::int64_t chunk, std::int64_t split) const;
  std::size_t input_of(std::size_t term) const { return inputs.size() == 1 ? 0 : term; }

  const Product& product;
  const Kernels& kernels;
  const int threads;
  SmallVector<TermPlan, 3> terms;
  SmallVector<Input, 3> inputs;
  SmallVector<Output, 3> outputs;
  const Partition partition;
  std::int64_t outer_cols;  // of outer products that a task finishes
  // Of a worker: 32-bit elements of row panels, and bytes of bits.
  std::int64_t x_panels = 0, h_panels = 0, kept = 0;

 private:
  Partition share();
  std::int64_t output_kept_bytes(std::size_t term) const;
};

/// Rows of the matrix are rewritten before the outer product is made of them.
bool needs_dense_copy(const OuterProduct& outer);

}  // namespace graft::cpu
