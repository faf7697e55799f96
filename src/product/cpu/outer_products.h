#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/small_vector.h"
#include "product/cpu/plan.h"

namespace graft::cpu {

/// The outer products of a product: each chunk of rows adds its part while its rows are in cache,
/// and blocks of columns are finished, independently of each other, once all they need is there.
class OuterProducts {
 public:
  /// Columns of an outer product that one task finishes.
  struct Block {
    std::size_t product;
    std::int64_t first;
  };

  using Blocks = SmallVector<Block, 16>;

  OuterProducts(const Plan& plan, const ProductScratch& scratch);

  /// This chunk's part of each outer product, its h and the mask of its share of y being there.
  void add(std::int64_t chunk, const WorkerScratch& worker) const;
  void finish(const Block& block, const WorkerScratch& worker) const;

  /// What can be finished without any chunk's part or h, and what needs them all.
  const Blocks& early() const { return early_; }
  const Blocks& late() const { return late_; }

 private:
  Source dense_rows(const OuterProduct& outer, std::int64_t chunk,
                    const WorkerScratch& worker) const;
  const float* coefficients(const OuterProduct& outer, std::int64_t row) const;
  void write(const OuterProduct& outer, const float* sums, std::int64_t first,
             std::int64_t cols) const;

  const Plan& plan_;
  const ProductScratch& scratch_;
  Blocks early_, late_;
};

}  // namespace graft::cpu
