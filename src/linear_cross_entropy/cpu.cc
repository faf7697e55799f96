// Cross entropy of z = x·Wᵀ, for a chunk of rows at a time:
//
//   1. logits z (chunk, V), with max and Σ exp of each block of columns while it is in cache
//   2. logsumexp of each row from those, and the losses
//   3. dx = (softmax(z) − onehot)·W, block by block of columns into one sum a slice of columns
//
// Slices of columns are the tasks of both products. They depend on the shapes alone and their sums
// are added in order, so results do not depend on the number of threads. 4·M·K·V multiply-adds'
// worth of FLOPs with dx, half without; W is read once a chunk for each of the two products.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "backend/bfloat16.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/softmax.h"
#include "backend/cpu/threads.h"
#include "checks.h"
#include "graft/linear_cross_entropy.h"
#include "product/cpu/kernels.h"
#include "weight/cpu/dense.h"
#include "weight/cpu/panels.h"

namespace graft::cpu {
namespace {

// Rows of a chunk: enough to be worth another read of W, few enough that the logits of a vocabulary
// of 50,000 stay below 32 MiB.
constexpr std::int64_t kChunkRows = 140;
// Column panels of a block: a block of logits (140 × 512 float32 at most) stays in a core's cache.
constexpr std::int64_t kBlockPanels = 16;
constexpr std::int64_t kMostSlices = 16;

// Of one row over one slice of columns: max and Σ exp(z − max).
struct Partial {
  float max;
  double sum;
};

Partial merge(const Partial& a, const Partial& b) {
  if (a.sum == 0) return b;
  if (b.sum == 0) return a;
  const float max = std::max(a.max, b.max);
  return {max, a.sum * std::exp(static_cast<double>(a.max) - max) +
                   b.sum * std::exp(static_cast<double>(b.max) - max)};
}

struct Worker {
  float* logits;            // [row][ld] of a block of columns; null where dx is wanted
  std::uint32_t* p_panels;  // [panel]: a block of softmax(z) − onehot
};

struct Parts {
  std::uint32_t* forward;  // column panels of W and Wᵀ, where it came plain
  std::uint32_t* backward;
  std::byte* gathered;  // rows of x, [panel][rows][K] in its dtype
  std::uint32_t* x_panels;
  float* logits;      // [row][ld], where dx is wanted
  Partial* partials;  // [slice][row]
  float* target_logits;
  float* logsumexp;
  float* sums;  // [slice][row][K] of dx
  std::vector<Worker> workers;
};

// What the shapes decide.
struct Plan {
  // `rows` of x are not ignored.
  Plan(const LinearCrossEntropy& params, std::int64_t rows, int thread_count)
      : kernels(kernels_for(params.weight.dtype())),
        threads(thread_count),
        k(params.weight.in_features()),
        v(params.weight.out_features()),
        n_panels(ceil_div(v, kernels.width)),
        slices(std::clamp<std::int64_t>(n_panels / 4, 1, kMostSlices)),
        kept(rows),
        panels(ceil_div(rows, kernels.rows)),
        most_panels(std::min(panels, kChunkRows / kernels.rows)),
        most_rows(most_panels * kernels.rows),
        block_cols(std::min(n_panels, kBlockPanels) * kernels.width),
        ld(params.dx.present() ? n_panels * kernels.width : block_cols),
        p_panel_size(kernels.row_panel_size(block_cols)) {}

  Parts layout(Scratch& scratch, const LinearCrossEntropy& params) const {
    const bool gradient = params.dx.present(), plain = !params.weight.is_packed();
    const auto x_size = static_cast<std::int64_t>(size_of(params.x.dtype()));
    Parts parts;
    parts.forward = scratch.take<std::uint32_t>(plain ? packed_panels_size(kernels, v, k) : 0);
    parts.backward =
        scratch.take<std::uint32_t>(plain && gradient ? packed_panels_size(kernels, k, v) : 0);
    parts.gathered = scratch.take<std::byte>(most_rows * k * x_size);
    parts.x_panels = scratch.take<std::uint32_t>(most_panels * kernels.row_panel_size(k));
    parts.logits = scratch.take<float>(gradient ? most_rows * ld : 0);
    parts.partials = scratch.take<Partial>(slices * most_rows);
    parts.target_logits = scratch.take<float>(most_rows);
    parts.logsumexp = scratch.take<float>(most_rows);
    parts.sums = scratch.take<float>(gradient ? slices * most_rows * k : 0);
    for (int i = 0; i < threads; ++i) {
      Worker worker;
      worker.logits = scratch.take<float>(gradient ? 0 : most_rows * ld);
      worker.p_panels = scratch.take<std::uint32_t>(gradient ? most_panels * p_panel_size : 0);
      parts.workers.push_back(worker);
    }
    return parts;
  }

  std::int64_t first_row(std::int64_t panel) const { return kept * panel / panels; }

  const Kernels& kernels;
  const int threads;
  const std::int64_t k, v, n_panels, slices;
  const std::int64_t kept, panels;            // rows, and their panels
  const std::int64_t most_panels, most_rows;  // of a chunk
  const std::int64_t block_cols;              // of a block of logits
  const std::int64_t ld;                      // from a row of logits to the next
  const std::int64_t p_panel_size;
};

std::vector<std::int64_t> rows_that_count(const LinearCrossEntropy& params) {
  std::vector<std::int64_t> rows;
  for (std::int64_t row = 0; row < params.x.dim(0); ++row) {
    const std::int32_t target =
        params.targets.data_as<std::int32_t>()[row * params.targets.stride(0)];
    if (target != params.ignore_index) rows.push_back(row);
  }
  return rows;
}

class LossRun {
 public:
  LossRun(Context& context, const LinearCrossEntropy& params);
  void operator()();

 private:
  struct Slice {
    std::int64_t first, last;  // column panels
  };

  void clear_ignored_rows() const;
  void chunk(std::int64_t first_panel, std::int64_t panels);
  void gather(std::int64_t panel);
  void logits(std::int64_t slice, const Worker& worker);
  void finish_losses() const;
  void gradient(std::int64_t slice, const Worker& worker);
  void sum_gradient(std::int64_t row) const;

  Slice slice_at(std::int64_t slice) const {
    return {plan_.n_panels * slice / plan_.slices, plan_.n_panels * (slice + 1) / plan_.slices};
  }
  // Rows of the chunk before its panel `panel`.
  std::int64_t panel_row(std::int64_t panel) const {
    return plan_.first_row(first_panel_ + panel) - first_row_;
  }
  std::int32_t target_of(std::int64_t chunk_row) const {
    const std::int64_t row = rows_[static_cast<std::size_t>(first_row_ + chunk_row)];
    return p_.targets.data_as<std::int32_t>()[row * p_.targets.stride(0)];
  }

  const Context& context_;
  const LinearCrossEntropy& p_;
  const SoftmaxKernels& softmax_;
  const std::vector<std::int64_t> rows_;  // not ignored
  const Plan plan_;
  const Kernels& kernels_;
  Parts parts_;
  const std::uint32_t* forward_ = nullptr;   // packed W
  const std::uint32_t* backward_ = nullptr;  // packed Wᵀ

  // The chunk at hand.
  std::int64_t first_panel_ = 0, panels_ = 0, first_row_ = 0, chunk_rows_ = 0;
};

LossRun::LossRun(Context& context, const LinearCrossEntropy& params)
    : context_(context),
      p_(params),
      softmax_(softmax_kernels()),
      rows_(rows_that_count(params)),
      plan_(params, static_cast<std::int64_t>(rows_.size()), context.threads()),
      kernels_(plan_.kernels) {
  if (plan_.kept == 0) return;
  parts_ = lay_out(context, [&](Scratch& scratch) { return plan_.layout(scratch, params); });
  if (p_.weight.is_packed()) {
    forward_ = packed_panels(p_.weight, Direction::kForward);
    backward_ = packed_panels(p_.weight, Direction::kBackward);
    return;
  }
  const Source w = Source::of(p_.weight.view());
  pack_panels(context, kernels_, w, plan_.v, plan_.k, parts_.forward);
  forward_ = parts_.forward;
  if (p_.dx.present()) {
    pack_panels(context, kernels_, w.transposed(), plan_.k, plan_.v, parts_.backward);
    backward_ = parts_.backward;
  }
}

void LossRun::operator()() {
  clear_ignored_rows();
  for (std::int64_t panel = 0; panel < plan_.panels; panel += plan_.most_panels) {
    chunk(panel, std::min(plan_.most_panels, plan_.panels - panel));
  }
}

void LossRun::clear_ignored_rows() const {
  const std::int64_t row_bytes = plan_.k * static_cast<std::int64_t>(size_of(p_.x.dtype()));
  std::size_t next = 0;  // in rows_
  for (std::int64_t row = 0; row < p_.x.dim(0); ++row) {
    if (next < rows_.size() && rows_[next] == row) {
      ++next;
      continue;
    }
    p_.losses.mutable_data_as<float>()[row * p_.losses.stride(0)] = 0.0f;
    if (p_.dx.present() && row_bytes > 0) {
      char* const dx = static_cast<char*>(p_.dx.mutable_data());
      std::memset(dx + row * p_.dx.stride(0) * static_cast<std::int64_t>(size_of(p_.dx.dtype())), 0,
                  static_cast<std::size_t>(row_bytes));
    }
  }
}

void LossRun::chunk(std::int64_t first_panel, std::int64_t panels) {
  first_panel_ = first_panel;
  panels_ = panels;
  first_row_ = plan_.first_row(first_panel);
  chunk_rows_ = plan_.first_row(first_panel + panels) - first_row_;

  parallel_for(context_, panels_, [this](std::int64_t panel) { gather(panel); });
  parallel_for(context_, plan_.slices, plan_.threads, [this](std::int64_t slice, int worker) {
    logits(slice, parts_.workers[static_cast<std::size_t>(worker)]);
  });
  finish_losses();
  if (p_.dx.present() && plan_.k > 0) {
    parallel_for(context_, plan_.slices, plan_.threads, [this](std::int64_t slice, int worker) {
      gradient(slice, parts_.workers[static_cast<std::size_t>(worker)]);
    });
    parallel_for(context_, chunk_rows_, [this](std::int64_t row) { sum_gradient(row); });
  }
}

// Packs a panel of the rows that count.
void LossRun::gather(std::int64_t panel) {
  const std::int64_t first = panel_row(panel), count = panel_row(panel + 1) - first;
  const auto element = static_cast<std::int64_t>(size_of(p_.x.dtype()));
  std::byte* const rows = parts_.gathered + panel * kernels_.rows * plan_.k * element;
  for (std::int64_t i = 0; i < count && plan_.k > 0; ++i) {
    const std::int64_t row = rows_[static_cast<std::size_t>(first_row_ + first + i)];
    std::memcpy(rows + i * plan_.k * element,
                static_cast<const std::byte*>(p_.x.data()) + row * p_.x.stride(0) * element,
                static_cast<std::size_t>(plan_.k * element));
  }
  kernels_.pack_rows({rows, p_.x.dtype(), plan_.k, 1}, static_cast<int>(count), plan_.k,
                     parts_.x_panels + panel * kernels_.row_panel_size(plan_.k));
}

void LossRun::logits(std::int64_t slice, const Worker& worker) {
  const auto [first, last] = slice_at(slice);
  Partial* const partials = parts_.partials + slice * plan_.most_rows;
  std::fill(partials, partials + chunk_rows_,
            Partial{-std::numeric_limits<float>::infinity(), 0.0});
  for (std::int64_t begin = first; begin < last; begin += kBlockPanels) {
    const std::int64_t end = std::min(last, begin + kBlockPanels);
    const std::int64_t first_col = begin * kernels_.width;
    float* const block = p_.dx.present() ? parts_.logits + first_col : worker.logits;
    for (std::int64_t n = begin; n < end; ++n) {
      TileArgs tile;
      tile.cols =
          static_cast<int>(std::min<std::int64_t>(kernels_.width, plan_.v - n * kernels_.width));
      tile.w = forward_ + n * kernels_.column_panel_size(plan_.k);
      tile.steps = kernels_.steps(plan_.k);
      tile.y_stride = plan_.ld;
      for (std::int64_t panel = 0; panel < panels_; ++panel) {
        const std::int64_t row = panel_row(panel);
        tile.rows = static_cast<int>(panel_row(panel + 1) - row);
        tile.x = parts_.x_panels + panel * kernels_.row_panel_size(plan_.k);
        read_ahead(tile, n + 1 == last, kernels_.column_panel_size(plan_.k) * 4, panel, panels_);
        tile.y = block + row * plan_.ld + (n - begin) * kernels_.width;
        kernels_.tile(tile);
      }
    }
    const std::int64_t cols = std::min(plan_.v, end * kernels_.width) - first_col;
    for (std::int64_t row = 0; row < chunk_rows_; ++row) {
      const float* const z = block + row * plan_.ld;
      const float max = softmax_.max(z, cols);
      partials[row] = merge(partials[row], {max, softmax_.exp_sum(z, cols, 1.0f, max)});
      const std::int64_t target = target_of(row) - first_col;
      if (target >= 0 && target < cols) parts_.target_logits[row] = z[target];
    }
  }
}

void LossRun::finish_losses() const {
  for (std::int64_t row = 0; row < chunk_rows_; ++row) {
    Partial all = parts_.partials[row];
    for (std::int64_t slice = 1; slice < plan_.slices; ++slice) {
      all = merge(all, parts_.partials[slice * plan_.most_rows + row]);
    }
    const double logsumexp = all.max + std::log(all.sum);
    parts_.logsumexp[row] = static_cast<float>(logsumexp);
    const std::int64_t at = rows_[static_cast<std::size_t>(first_row_ + row)];
    p_.losses.mutable_data_as<float>()[at * p_.losses.stride(0)] =
        static_cast<float>(logsumexp - parts_.target_logits[row]);
  }
}

void LossRun::gradient(std::int64_t slice, const Worker& worker) {
  const auto [first, last] = slice_at(slice);
  std::uint32_t* const p_panels = worker.p_panels;
  float* const sum = parts_.sums + slice * plan_.most_rows * plan_.k;
  for (std::int64_t begin = first; begin < last; begin += kBlockPanels) {
    const std::int64_t first_col = begin * kernels_.width;
    const std::int64_t cols =
        std::min(plan_.v, std::min(last, begin + kBlockPanels) * kernels_.width) - first_col;
    for (std::int64_t row = 0; row < chunk_rows_; ++row) {
      float* const z = parts_.logits + row * plan_.ld + first_col;
      softmax_.exp(z, cols, 1.0f, parts_.logsumexp[row]);
      const std::int64_t target = target_of(row) - first_col;
      if (target >= 0 && target < cols) z[target] -= 1.0f;
    }
    for (std::int64_t panel = 0; panel < panels_; ++panel) {
      const std::int64_t row = panel_row(panel);
      kernels_.pack_rows({parts_.logits + row * plan_.ld + first_col, DType::kFloat32, plan_.ld, 1},
                         static_cast<int>(panel_row(panel + 1) - row), cols,
                         p_panels + panel * plan_.p_panel_size);
    }
    const std::int64_t column_panels = ceil_div(plan_.k, kernels_.width);
    for (std::int64_t j = 0; j < column_panels; ++j) {
      TileArgs tile;
      tile.cols =
          static_cast<int>(std::min<std::int64_t>(kernels_.width, plan_.k - j * kernels_.width));
      tile.w = backward_ + j * kernels_.column_panel_size(plan_.v) +
               kernels_.column_panel_size(first_col);
      tile.steps = kernels_.steps(cols);
      tile.y_stride = plan_.k;
      tile.accumulate = begin > first;
      for (std::int64_t panel = 0; panel < panels_; ++panel) {
        const std::int64_t row = panel_row(panel);
        tile.rows = static_cast<int>(panel_row(panel + 1) - row);
        tile.x = p_panels + panel * plan_.p_panel_size;
        read_ahead(tile, j + 1 == column_panels, kernels_.column_panel_size(plan_.v) * 4, panel,
                   panels_);
        tile.y = sum + row * plan_.k + j * kernels_.width;
        kernels_.tile(tile);
      }
    }
  }
}

void LossRun::sum_gradient(std::int64_t row) const {
  float* const sum = parts_.sums + row * plan_.k;
  for (std::int64_t slice = 1; slice < plan_.slices; ++slice) {
    const float* const part = sum + slice * plan_.most_rows * plan_.k;
    for (std::int64_t k = 0; k < plan_.k; ++k) sum[k] += part[k];
  }
  const std::int64_t at = rows_[static_cast<std::size_t>(first_row_ + row)] * p_.dx.stride(0);
  if (p_.dx.dtype() == DType::kFloat32) {
    std::copy(sum, sum + plan_.k, p_.dx.mutable_data_as<float>() + at);
  } else {
    std::transform(sum, sum + plan_.k, p_.dx.mutable_data_as<std::uint16_t>() + at, to_bfloat16);
  }
}

void check_targets(const Check& check, const LinearCrossEntropy& p) {
  const std::int64_t vocabulary = p.weight.out_features();
  for (std::int64_t row = 0; row < p.targets.dim(0); ++row) {
    const std::int32_t target = p.targets.data_as<std::int32_t>()[row * p.targets.stride(0)];
    if (target == p.ignore_index || (target >= 0 && target < vocabulary)) continue;
    check.fail("targets: expected 0 to " + std::to_string(vocabulary - 1) + ", or " +
               std::to_string(p.ignore_index) + " to ignore, got " + std::to_string(target) +
               " at row " + std::to_string(row));
  }
}

}  // namespace

Support supports(const LinearCrossEntropy& params) {
  return all_of({float_on_cpu("x", params.x), weight_on_cpu(params.weight)});
}

void linear_cross_entropy(Context& context, const LinearCrossEntropy& params) {
  check_targets(Check("linear_cross_entropy"), params);
  LossRun(context, params)();
}

std::size_t scratch_bytes(const LinearCrossEntropy& params, int threads) {
  const Plan plan(params, params.x.dim(0), threads);
  return bytes_of([&](Scratch& scratch) { return plan.layout(scratch, params); });
}

}  // namespace graft::cpu
