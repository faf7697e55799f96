// Cross entropy of z = x·Wᵀ, for a chunk of rows at a time:
//
//   1. logits z (chunk, V), with max and Σ exp of each block of columns while it is in cache
//   2. logsumexp of each row from those, and the losses
//   3. dx = (softmax(z) − onehot)·W, block by block of columns into one sum a slice of columns
//
// Slices of columns are the tasks of both products. They depend on the shapes alone and their sums
// are added in order, so results do not depend on the number of threads. 4·M·K·V multiply-adds'
// worth of FLOPs with dx, half without; W is read once a chunk for each of the two products.

#include "linear_cross_entropy/cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/bfloat16.h"
#include "backend/cpu/scratch_layout.h"
#include "backend/cpu/softmax.h"
#include "backend/cpu/threads.h"
#include "product/cpu/kernels.h"
#include "product/cpu/packed_panels.h"
#include "weight/dense_cpu.h"

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

class Run {
 public:
  Run(Context& context, const LinearCrossEntropy& params);
  void operator()();

 private:
  struct Slice {
    std::int64_t first, last;  // column panels
  };

  void clear_ignored_rows() const;
  void chunk(std::int64_t first_panel, std::int64_t panels);
  void gather(std::int64_t panel);
  void logits(std::int64_t slice, int worker);
  void finish_losses() const;
  void gradient(std::int64_t slice, int worker);
  void sum_gradient(std::int64_t row) const;

  Slice slice_at(std::int64_t slice) const {
    return {n_panels_ * slice / slices_, n_panels_ * (slice + 1) / slices_};
  }
  // Rows of the chunk before its panel `panel`.
  std::int64_t panel_row(std::int64_t panel) const {
    return row_of_panel(first_panel_ + panel) - first_row_;
  }
  std::int64_t row_of_panel(std::int64_t panel) const { return kept() * panel / all_panels_; }
  std::int64_t kept() const { return static_cast<std::int64_t>(rows_.size()); }
  std::int32_t target_of(std::int64_t chunk_row) const {
    const std::int64_t row = rows_[static_cast<std::size_t>(first_row_ + chunk_row)];
    return p_.targets.data_as<std::int32_t>()[row * p_.targets.stride(0)];
  }

  const Context& context_;
  const LinearCrossEntropy& p_;
  const Kernels& kernels_;
  const SoftmaxKernels& softmax_;
  const std::int64_t k_, v_, n_panels_, slices_;
  std::vector<std::int64_t> rows_;  // not ignored
  std::int64_t all_panels_ = 0;     // of rows_
  std::int64_t most_panels_ = 0;    // of a chunk

  // The chunk at hand.
  std::int64_t first_panel_ = 0, panels_ = 0, first_row_ = 0, chunk_rows_ = 0;

  // Scratch.
  const std::uint32_t* forward_ = nullptr;   // packed W
  const std::uint32_t* backward_ = nullptr;  // packed Wᵀ
  std::byte* gathered_ = nullptr;            // rows of x, [panel][rows][K] in its dtype
  std::uint32_t* x_panels_ = nullptr;
  float* logits_ = nullptr;  // [row][ld_]; without dx [worker][row][ld_], a block of columns
  std::int64_t ld_ = 0;
  Partial* partials_ = nullptr;  // [slice][row]
  float* target_logits_ = nullptr;
  float* logsumexp_ = nullptr;
  std::uint32_t* p_panels_ = nullptr;  // [worker][panel]: a block of softmax(z) − onehot
  std::int64_t p_panel_size_ = 0;
  float* sums_ = nullptr;  // [slice][row][K] of dx
  int workers_ = 0;        // threads, read once
  std::int64_t most_rows_ = 0;
};

Run::Run(Context& context, const LinearCrossEntropy& params)
    : context_(context),
      p_(params),
      kernels_(kernels_for(params.weight.dtype())),
      softmax_(softmax_kernels()),
      k_(params.weight.in_features()),
      v_(params.weight.out_features()),
      n_panels_(ceil_div(v_, kernels_.width)),
      slices_(std::clamp<std::int64_t>(n_panels_ / 4, 1, kMostSlices)) {
  for (std::int64_t row = 0; row < p_.x.dim(0); ++row) {
    if (p_.targets.data_as<std::int32_t>()[row * p_.targets.stride(0)] != p_.ignore_index) {
      rows_.push_back(row);
    }
  }
  all_panels_ = ceil_div(kept(), kernels_.rows);
  if (all_panels_ == 0) return;

  const bool gradient = p_.dx.present();
  most_panels_ = std::min(all_panels_, kChunkRows / kernels_.rows);
  const std::int64_t panels = most_panels_;
  const std::int64_t rows = panels * kernels_.rows;
  most_rows_ = rows;
  workers_ = context.threads();
  const std::int64_t block = std::min(n_panels_, kBlockPanels) * kernels_.width;
  ld_ = gradient ? n_panels_ * kernels_.width : block;
  p_panel_size_ = kernels_.row_panel_size(block);

  const bool packed = p_.weight.is_packed();
  ScratchLayout layout;
  const auto forward =
      layout.reserve<std::uint32_t>(packed ? 0 : packed_panels_size(kernels_, v_, k_));
  const auto backward =
      layout.reserve<std::uint32_t>(packed || !gradient ? 0 : packed_panels_size(kernels_, k_, v_));
  const auto gathered =
      layout.reserve<std::byte>(rows * k_ * static_cast<std::int64_t>(size_of(p_.x.dtype())));
  const auto x_panels = layout.reserve<std::uint32_t>(panels * kernels_.row_panel_size(k_));
  const auto logits = layout.reserve<float>(rows * ld_ * (gradient ? 1 : workers_));
  const auto partials = layout.reserve<Partial>(slices_ * rows);
  const auto target_logits = layout.reserve<float>(rows);
  const auto logsumexp = layout.reserve<float>(rows);
  const auto p_panels =
      layout.reserve<std::uint32_t>(gradient ? workers_ * panels * p_panel_size_ : 0);
  const auto sums = layout.reserve<float>(gradient ? slices_ * rows * k_ : 0);
  layout.allocate(context);

  gathered_ = layout.at<std::byte>(gathered);
  x_panels_ = layout.at<std::uint32_t>(x_panels);
  logits_ = layout.at<float>(logits);
  partials_ = layout.at<Partial>(partials);
  target_logits_ = layout.at<float>(target_logits);
  logsumexp_ = layout.at<float>(logsumexp);
  p_panels_ = layout.at<std::uint32_t>(p_panels);
  sums_ = layout.at<float>(sums);
  if (packed) {
    forward_ = packed_panels(p_.weight, Direction::kForward);
    backward_ = packed_panels(p_.weight, Direction::kBackward);
    return;
  }
  const Source w = Source::of(p_.weight.view());
  pack_panels(context, kernels_, w, v_, k_, layout.at<std::uint32_t>(forward));
  forward_ = layout.at<std::uint32_t>(forward);
  if (gradient) {
    pack_panels(context, kernels_, w.transposed(), k_, v_, layout.at<std::uint32_t>(backward));
    backward_ = layout.at<std::uint32_t>(backward);
  }
}

void Run::operator()() {
  clear_ignored_rows();
  for (std::int64_t panel = 0; panel < all_panels_; panel += most_panels_) {
    chunk(panel, std::min(most_panels_, all_panels_ - panel));
  }
}

void Run::clear_ignored_rows() const {
  const std::int64_t row_bytes = k_ * static_cast<std::int64_t>(size_of(p_.x.dtype()));
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

void Run::chunk(std::int64_t first_panel, std::int64_t panels) {
  first_panel_ = first_panel;
  panels_ = panels;
  first_row_ = row_of_panel(first_panel);
  chunk_rows_ = row_of_panel(first_panel + panels) - first_row_;

  parallel_for(context_, panels_, [this](std::int64_t panel) { gather(panel); });
  parallel_for(context_, slices_, workers_,
               [this](std::int64_t slice, int worker) { logits(slice, worker); });
  finish_losses();
  if (p_.dx.present() && k_ > 0) {
    parallel_for(context_, slices_, workers_,
                 [this](std::int64_t slice, int worker) { gradient(slice, worker); });
    parallel_for(context_, chunk_rows_, [this](std::int64_t row) { sum_gradient(row); });
  }
}

// Packs a panel of the rows that count.
void Run::gather(std::int64_t panel) {
  const std::int64_t first = panel_row(panel), count = panel_row(panel + 1) - first;
  const auto element = static_cast<std::int64_t>(size_of(p_.x.dtype()));
  std::byte* const rows = gathered_ + panel * kernels_.rows * k_ * element;
  for (std::int64_t i = 0; i < count && k_ > 0; ++i) {
    const std::int64_t row = rows_[static_cast<std::size_t>(first_row_ + first + i)];
    std::memcpy(rows + i * k_ * element,
                static_cast<const std::byte*>(p_.x.data()) + row * p_.x.stride(0) * element,
                static_cast<std::size_t>(k_ * element));
  }
  kernels_.pack_rows({rows, p_.x.dtype(), k_, 1}, static_cast<int>(count), k_,
                     x_panels_ + panel * kernels_.row_panel_size(k_));
}

void Run::logits(std::int64_t slice, int worker) {
  const auto [first, last] = slice_at(slice);
  Partial* const partials = partials_ + slice * most_rows_;
  std::fill(partials, partials + chunk_rows_,
            Partial{-std::numeric_limits<float>::infinity(), 0.0});
  for (std::int64_t begin = first; begin < last; begin += kBlockPanels) {
    const std::int64_t end = std::min(last, begin + kBlockPanels);
    const std::int64_t first_col = begin * kernels_.width;
    float* const block =
        p_.dx.present() ? logits_ + first_col : logits_ + worker * most_rows_ * ld_;
    for (std::int64_t n = begin; n < end; ++n) {
      TileArgs tile;
      tile.cols = static_cast<int>(std::min<std::int64_t>(kernels_.width, v_ - n * kernels_.width));
      tile.w = forward_ + n * kernels_.column_panel_size(k_);
      tile.steps = kernels_.steps(k_);
      tile.y_stride = ld_;
      for (std::int64_t panel = 0; panel < panels_; ++panel) {
        const std::int64_t row = panel_row(panel);
        tile.rows = static_cast<int>(panel_row(panel + 1) - row);
        tile.x = x_panels_ + panel * kernels_.row_panel_size(k_);
        read_ahead(tile, n + 1 == last, kernels_.column_panel_size(k_) * 4, panel, panels_);
        tile.y = block + row * ld_ + (n - begin) * kernels_.width;
        kernels_.tile(tile);
      }
    }
    const std::int64_t cols = std::min(v_, end * kernels_.width) - first_col;
    for (std::int64_t row = 0; row < chunk_rows_; ++row) {
      const float* const z = block + row * ld_;
      const float max = softmax_.max(z, cols);
      partials[row] = merge(partials[row], {max, softmax_.exp_sum(z, cols, 1.0f, max)});
      const std::int64_t target = target_of(row) - first_col;
      if (target >= 0 && target < cols) target_logits_[row] = z[target];
    }
  }
}

void Run::finish_losses() const {
  for (std::int64_t row = 0; row < chunk_rows_; ++row) {
    Partial all = partials_[row];
    for (std::int64_t slice = 1; slice < slices_; ++slice) {
      all = merge(all, partials_[slice * most_rows_ + row]);
    }
    const double logsumexp = all.max + std::log(all.sum);
    logsumexp_[row] = static_cast<float>(logsumexp);
    const std::int64_t at = rows_[static_cast<std::size_t>(first_row_ + row)];
    p_.losses.mutable_data_as<float>()[at * p_.losses.stride(0)] =
        static_cast<float>(logsumexp - target_logits_[row]);
  }
}

void Run::gradient(std::int64_t slice, int worker) {
  const auto [first, last] = slice_at(slice);
  std::uint32_t* const p_panels = p_panels_ + worker * panels_ * p_panel_size_;
  float* const sum = sums_ + slice * most_rows_ * k_;
  for (std::int64_t begin = first; begin < last; begin += kBlockPanels) {
    const std::int64_t first_col = begin * kernels_.width;
    const std::int64_t cols =
        std::min(v_, std::min(last, begin + kBlockPanels) * kernels_.width) - first_col;
    for (std::int64_t row = 0; row < chunk_rows_; ++row) {
      float* const z = logits_ + row * ld_ + first_col;
      softmax_.exp(z, cols, 1.0f, logsumexp_[row]);
      const std::int64_t target = target_of(row) - first_col;
      if (target >= 0 && target < cols) z[target] -= 1.0f;
    }
    for (std::int64_t panel = 0; panel < panels_; ++panel) {
      const std::int64_t row = panel_row(panel);
      kernels_.pack_rows({logits_ + row * ld_ + first_col, DType::kFloat32, ld_, 1},
                         static_cast<int>(panel_row(panel + 1) - row), cols,
                         p_panels + panel * p_panel_size_);
    }
    const std::int64_t column_panels = ceil_div(k_, kernels_.width);
    for (std::int64_t j = 0; j < column_panels; ++j) {
      TileArgs tile;
      tile.cols = static_cast<int>(std::min<std::int64_t>(kernels_.width, k_ - j * kernels_.width));
      tile.w =
          backward_ + j * kernels_.column_panel_size(v_) + kernels_.column_panel_size(first_col);
      tile.steps = kernels_.steps(cols);
      tile.y_stride = k_;
      tile.accumulate = begin > first;
      for (std::int64_t panel = 0; panel < panels_; ++panel) {
        const std::int64_t row = panel_row(panel);
        tile.rows = static_cast<int>(panel_row(panel + 1) - row);
        tile.x = p_panels + panel * p_panel_size_;
        read_ahead(tile, j + 1 == column_panels, kernels_.column_panel_size(v_) * 4, panel,
                   panels_);
        tile.y = sum + row * k_ + j * kernels_.width;
        kernels_.tile(tile);
      }
    }
  }
}

void Run::sum_gradient(std::int64_t row) const {
  float* const sum = sums_ + row * k_;
  for (std::int64_t slice = 1; slice < slices_; ++slice) {
    const float* const part = sum + slice * most_rows_ * k_;
    for (std::int64_t k = 0; k < k_; ++k) sum[k] += part[k];
  }
  const std::int64_t at = rows_[static_cast<std::size_t>(first_row_ + row)] * p_.dx.stride(0);
  if (p_.dx.dtype() == DType::kFloat32) {
    std::copy(sum, sum + k_, p_.dx.mutable_data_as<float>() + at);
  } else {
    std::transform(sum, sum + k_, p_.dx.mutable_data_as<std::uint16_t>() + at, to_bfloat16);
  }
}

}  // namespace

void linear_cross_entropy(Context& context, const LinearCrossEntropy& params) {
  Run(context, params)();
}

}  // namespace graft::cpu
