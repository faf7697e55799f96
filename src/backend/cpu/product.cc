#include "backend/cpu/product.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/packed_panels.h"
#include "backend/cpu/partition.h"
#include "backend/cpu/scratch_layout.h"
#include "backend/cpu/threads.h"
#include "backend/element.h"
#include "weight/dense_cpu.h"

namespace graft::cpu {

namespace {

bool is_row_major_float(const Kernels& kernels, const Source& matrix) {
  return !kernels.bfloat16 && matrix.dtype == DType::kFloat32 && matrix.col_stride == 1;
}

// A dense float32 S of exactly one group of columns is its own packed form.
bool a_is_packed(const Kernels& kernels, const LowRank& low) {
  const bool one_group = low.rank == kernels.shrink_cols || low.rank == kernels.wide_shrink_cols;
  return one_group && is_row_major_float(kernels, low.shrink) && low.shrink.row_stride == low.rank;
}

// Rows of a row-major float32 E serve as column panels where no panel is ragged.
bool b_serves_as_it_is(const Kernels& kernels, const LowRank& low, std::int64_t n) {
  return is_row_major_float(kernels, low.expand) && n % kernels.width == 0;
}

// Columns of outer products that a task finishes, of `cols` in all: whole register blocks on every
// instruction set, some tasks a thread, and not so narrow that the rows' coefficients, packed anew
// in each, cost much.
std::int64_t outer_task_cols(std::int64_t cols, int threads) {
  constexpr std::int64_t kRegisterBlock = 48, kMost = 192, kTasksPerThread = 3;
  const std::int64_t even = ceil_div(cols, kTasksPerThread * threads);
  return std::min(kMost, ceil_div(even, kRegisterBlock) * kRegisterBlock);
}

// Rows whose outer products are made late, when all of y is there: so few that they are still in
// some cache, and that partial sums of their small chunks would be more to move than they are.
constexpr std::int64_t kLateRows = kMostOuterRows;

// One call: what is packed for all tasks, and each worker's own scratch.
class Run {
 public:
  Run(Context& context, const Product& product);
  void operator()();

 private:
  struct Worker {
    std::uint32_t* x;        // row panels of a chunk
    std::uint32_t* low;      // their low-rank panels
    std::uint32_t* dropped;  // one row panel of drop(x)
    float* h;                // of the panels in a pass of the shrink, [rank][stride] each
    float* rows;             // dense float rows of a chunk, where a matrix has to be rewritten
    float* mask;             // output dropout of a chunk
    float* sums;             // a block of columns of an outer product, [rank][outer_cols_]
  };

  // Columns of an outer product that one task finishes.
  struct Block {
    std::size_t product;
    std::int64_t first;
  };

  void prepare();
  void pack_pair(std::int64_t i);
  void task(std::int64_t chunk, std::int64_t split, const Worker& worker);
  void pack_chunk(std::int64_t first, std::int64_t last, bool write_h, const Worker& worker);
  void shrink(std::int64_t panel, int panels, const std::uint32_t* x, const Worker& worker);
  const void* dropped_panel(std::int64_t row, int rows, const Worker& worker);
  void add_outer_products(std::int64_t chunk, const Worker& worker);
  void fill_mask(std::int64_t first, std::int64_t last, std::int64_t split, const Worker& worker);
  void multiply(std::int64_t first, std::int64_t last, std::int64_t split, const Worker& worker);
  std::int64_t chunks_with_partials(const OuterProduct& outer) const;
  int panel_rows(std::int64_t panel) const {
    return static_cast<int>(partition_.panel_row(panel + 1) - partition_.panel_row(panel));
  }
  bool needs_tasks(const OuterProduct& outer) const;
  void finish_outer_product(const Block& block, const Worker& worker);
  void write_gradient(const float* sums, std::int64_t first, std::int64_t cols,
                      const OuterProduct& outer) const;

  const Context& context_;
  const Product& p_;
  const Kernels& kernels_;
  const int threads_;  // read once: workers_ has one each
  const Partition partition_;
  const std::int64_t rank_;
  const bool row_shrink_;                // h straight from rows of x
  const int shrink_panels_;              // at once
  const Dropout* const output_dropout_;  // null also where no y is wanted
  std::int64_t outer_cols_ = 0;          // of outer products that a task finishes
  const std::int64_t
      x_panel_size_;  // from a row panel to the next; 0 if no base product keeps them
  const std::uint32_t* w_ = nullptr;  // column panels
  std::uint32_t* plain_ = nullptr;    // the same, if the weight came plain
  const std::uint32_t* a_ = nullptr;  // packed S
  std::uint32_t* a_to_pack_ = nullptr;
  const std::uint32_t* b_ = nullptr;  // column panels of E
  std::uint32_t* b_to_pack_ = nullptr;
  std::int64_t a_groups_ = 0;  // tasks that pack S,
  std::int64_t b_ranges_ = 0;  // and E
  Countdown pair_packed_;
  std::int64_t b_step_ = 0;       // 32-bit elements from a step of a column panel to the next
  std::int64_t b_panel_ = 0;      // and from a panel to the next
  float* bias_ = nullptr;         // padded to whole panels
  float* h_ = nullptr;            // (M, rank), if the caller or an outer product wants it
  std::vector<float*> partials_;  // an outer product: [chunk][rank][cols]
  std::vector<Worker> workers_;
};

DType multiply_type(const Product& p) { return p.weight ? p.weight->dtype() : p.multiply; }

// Nothing but the shrink reads x, and it lies as the kernel wants it.
bool shrinks_from_rows(const Product& p, const Kernels& kernels) {
  return p.low_rank != nullptr && p.weight == nullptr && !kernels.bfloat16 &&
         p.x.dtype == DType::kFloat32 && p.x.col_stride == 1 &&
         p.low_rank->input_dropout == nullptr;
}

// What the shrink reads is the packed x of the base product.
bool shrinks_packed_panels(const Product& p) {
  return p.low_rank != nullptr && p.weight != nullptr && p.y.present() &&
         p.low_rank->input_dropout == nullptr;
}

bool needs_dense_copy(const OuterProduct& outer) {
  return outer.dropout != nullptr || outer.matrix.col_stride != 1;
}

Run::Run(Context& context, const Product& product)
    : context_(context),
      p_(product),
      kernels_(kernels_for(multiply_type(product))),
      threads_(context.threads()),
      partition_(kernels_, product.m, product.k, product.n, threads_),
      rank_(product.low_rank ? product.low_rank->rank : 0),
      row_shrink_(shrinks_from_rows(product, kernels_)),
      shrink_panels_(shrinks_packed_panels(product) ? kernels_.shrink_panels : 1),
      output_dropout_(product.low_rank && product.y.present() ? product.low_rank->output_dropout
                                                              : nullptr),
      x_panel_size_(product.weight && product.y.present() ? kernels_.row_panel_size(product.k)
                                                          : 0) {
  const LowRank* low = p_.low_rank;
  const std::int64_t n_padded = partition_.n_panels * kernels_.width;
  const std::int64_t chunk_panels = partition_.most_chunk_panels();
  const std::int64_t chunk_rows = chunk_panels * kernels_.rows;

  ScratchLayout layout;
  const bool plain = p_.weight != nullptr && !p_.weight->is_packed() && p_.y.present();
  const std::size_t plain_at =
      layout.reserve<float>(plain ? packed_panels_size(kernels_, p_.n, p_.k) : 0);
  const bool pack_a = low && !a_is_packed(kernels_, *low);
  const bool pack_b = low && p_.y.present() && !b_serves_as_it_is(kernels_, *low, p_.n);
  const std::size_t a_at = layout.reserve<float>(pack_a ? kernels_.packed_a_size(p_.k, rank_) : 0);
  const std::size_t b_at =
      layout.reserve<float>(pack_b ? packed_panels_size(kernels_, p_.n, rank_) : 0);
  const std::size_t bias_at = layout.reserve<float>(p_.bias.present() ? n_padded : 0);
  const bool own_h =
      low && low->h == nullptr &&
      std::any_of(p_.outer_products.begin(), p_.outer_products.end(),
                  [](const OuterProduct& outer) { return outer.coefficients == nullptr; });
  const std::size_t h_at = layout.reserve<float>(own_h ? p_.m * rank_ : 0);
  std::vector<std::size_t> partials_at;
  std::int64_t dense_cols = 0, all_outer_cols = 0;
  for (const OuterProduct& outer : p_.outer_products) all_outer_cols += outer.cols;
  outer_cols_ = outer_task_cols(all_outer_cols, threads_);
  for (const OuterProduct& outer : p_.outer_products) {
    partials_at.push_back(layout.reserve<float>(chunks_with_partials(outer) * rank_ * outer.cols));
    if (needs_dense_copy(outer)) dense_cols = std::max(dense_cols, outer.cols);
  }
  const bool input_dropout = low && low->input_dropout;
  const std::int64_t low_size = kernels_.row_panel_size(rank_);
  struct Offsets {
    std::size_t x, low, dropped, h, rows, mask, sums;
  };
  std::vector<Offsets> offsets;
  for (int i = 0; i < threads_; ++i) {
    Offsets o;
    o.x = layout.reserve<float>(
        std::max(chunk_panels * x_panel_size_, kernels_.row_panel_size(p_.k)));
    o.low = layout.reserve<float>(chunk_panels * low_size);
    o.dropped = layout.reserve<float>(input_dropout ? kernels_.row_panel_size(p_.k) : 0);
    o.h = layout.reserve<float>(shrink_panels_ * kernels_.h_panel_size(rank_));
    o.rows = layout.reserve<float>(
        std::max(chunk_rows * dense_cols, input_dropout ? kernels_.rows * p_.k : 0));
    o.mask = layout.reserve<float>(
        output_dropout_ ? chunk_rows * partition_.most_split_panels() * kernels_.width : 0);
    o.sums = layout.reserve<float>(p_.outer_products.empty() ? 0 : rank_ * outer_cols_);
    offsets.push_back(o);
  }

  layout.allocate(context);
  const auto words = [&layout](std::size_t at) { return layout.at<std::uint32_t>(at); };
  const auto floats = [&layout](std::size_t at) { return layout.at<float>(at); };
  if (plain) w_ = plain_ = words(plain_at);
  if (p_.weight != nullptr && p_.weight->is_packed()) w_ = packed_panels(*p_.weight, p_.direction);
  if (low) {
    a_ = static_cast<const std::uint32_t*>(low->shrink.data);
    b_ = static_cast<const std::uint32_t*>(low->expand.data);
    b_step_ = pack_b ? kernels_.width : low->expand.row_stride;
    b_panel_ = pack_b ? kernels_.column_panel_size(rank_) : kernels_.width;
  }
  if (pack_a) {
    a_ = a_to_pack_ = words(a_at);
    a_groups_ = ceil_div(rank_, kernels_.wide_shrink_cols);
  }
  if (pack_b) {
    b_ = b_to_pack_ = words(b_at);
    b_ranges_ = std::min<std::int64_t>(threads_, partition_.n_panels);
  }
  if (p_.bias.present()) bias_ = floats(bias_at);
  if (low) h_ = own_h ? floats(h_at) : low->h;
  for (const std::size_t at : partials_at) partials_.push_back(floats(at));
  for (const Offsets& o : offsets) {
    workers_.push_back({words(o.x), words(o.low), words(o.dropped), floats(o.h), floats(o.rows),
                        floats(o.mask), floats(o.sums)});
  }
}

void Run::operator()() {
  prepare();
  // What can be done at once fills the end of the first round of tasks; the rest is the second.
  std::vector<Block> blocks, rest;
  for (std::size_t i = 0; i < p_.outer_products.size(); ++i) {
    std::vector<Block>& to = needs_tasks(p_.outer_products[i]) ? rest : blocks;
    for (std::int64_t c = 0; c < p_.outer_products[i].cols; c += outer_cols_) to.push_back({i, c});
  }
  const std::int64_t packing = a_groups_ + b_ranges_;
  const std::int64_t tasks = partition_.chunks() * partition_.splits;
  pair_packed_.start(packing);
  parallel_for(context_, packing + tasks + static_cast<std::int64_t>(blocks.size()), threads_,
               [&](std::int64_t i, int index) {
                 const Worker& worker = workers_[static_cast<std::size_t>(index)];
                 if (i < packing) return pack_pair(i);
                 i -= packing;
                 if (i < tasks) return task(i / partition_.splits, i % partition_.splits, worker);
                 finish_outer_product(blocks[static_cast<std::size_t>(i - tasks)], worker);
               });
  parallel_for(context_, static_cast<std::int64_t>(rest.size()), threads_,
               [&](std::int64_t i, int index) {
                 finish_outer_product(rest[static_cast<std::size_t>(i)],
                                      workers_[static_cast<std::size_t>(index)]);
               });
}

// Packs the bias, and W if it came plain.
void Run::prepare() {
  if (bias_ != nullptr) {
    const std::int64_t padded = partition_.n_panels * kernels_.width;
    for (std::int64_t j = 0; j < padded; ++j) {
      bias_[j] = j < p_.n ? load_element(p_.bias, j * p_.bias.stride(0)) : 0.0f;
    }
  }
  if (plain_ != nullptr) {
    const Source w = Source::of(p_.weight->view());
    pack_panels(context_, kernels_, p_.direction == Direction::kForward ? w : w.transposed(), p_.n,
                p_.k, plain_);
  }
}

// The first tasks pack S, a group of columns each, and E, a range of panels each; the others pack
// rows of x until they need them.
void Run::pack_pair(std::int64_t i) {
  if (i < a_groups_) {
    const std::int64_t col = i * kernels_.wide_shrink_cols;
    const std::int64_t cols = std::min<std::int64_t>(kernels_.wide_shrink_cols, rank_ - col);
    kernels_.pack_a(p_.low_rank->shrink.at(0, col), p_.k, cols,
                    a_to_pack_ + kernels_.packed_a_size(p_.k, col));
  } else {
    const std::int64_t range = i - a_groups_;
    const std::int64_t last = partition_.n_panels * (range + 1) / b_ranges_;
    for (std::int64_t j = partition_.n_panels * range / b_ranges_; j < last; ++j) {
      pack_panel(kernels_, p_.low_rank->expand.transposed(), p_.n, rank_, j, b_to_pack_);
    }
  }
  pair_packed_.done();
}

void Run::task(std::int64_t chunk, std::int64_t split, const Worker& worker) {
  const std::int64_t first = partition_.first_panel(chunk);
  const std::int64_t last = partition_.first_panel(chunk + 1);
  pack_chunk(first, last, split == 0, worker);
  if (output_dropout_ != nullptr) fill_mask(first, last, split, worker);
  if (split == 0) add_outer_products(chunk, worker);
  if (p_.y.present()) multiply(first, last, split, worker);
}

// Packs the rows of a chunk, and while panels are hot, their h.
void Run::pack_chunk(std::int64_t first, std::int64_t last, bool write_h, const Worker& worker) {
  const LowRank* low = p_.low_rank;
  for (std::int64_t panel = first; panel < last; ++panel) {
    const std::int64_t row = partition_.panel_row(panel);
    const int rows = panel_rows(panel);
    std::uint32_t* x = worker.x + (panel - first) * x_panel_size_;
    Source here = p_.x.at(row, 0);
    // The next panel's rows begin `rows` on: too few bytes a row for a prefetcher to find them.
    if (panel + 1 < last) here.ahead = rows * here.row_bytes();
    if (!row_shrink_) kernels_.pack_rows(here, rows, p_.k, x);
    if (low == nullptr) continue;

    const int packed = static_cast<int>((panel - first) % shrink_panels_) + 1;
    if (packed < shrink_panels_ && panel + 1 < last) continue;
    const std::int64_t oldest = panel + 1 - packed;
    shrink(oldest, packed, x - (packed - 1) * x_panel_size_, worker);
    for (int i = 0; i < packed; ++i) {
      const float* h = worker.h + i * kernels_.h_panel_size(rank_);
      kernels_.low_rank_panel(h, rank_, low->scaling,
                              worker.low + (oldest + i - first) * kernels_.row_panel_size(rank_));
      if (h_ != nullptr && write_h) {
        kernels_.transpose(h, kernels_.stride, rank_, panel_rows(oldest + i), 1.0f,
                           h_ + partition_.panel_row(oldest + i) * rank_, rank_);
      }
    }
  }
}

// The h of consecutive row panels, which lie packed at x.
void Run::shrink(std::int64_t panel, int panels, const std::uint32_t* x, const Worker& worker) {
  pair_packed_.wait();
  const std::int64_t row = partition_.panel_row(panel);
  if (row_shrink_) {
    kernels_.row_shrink(p_.x.at(row, 0), panel_rows(panel), p_.k, a_, rank_, worker.h);
  } else if (p_.low_rank->input_dropout != nullptr) {
    kernels_.shrink(dropped_panel(row, panel_rows(panel), worker), 1, p_.k, a_, rank_, worker.h);
  } else {
    kernels_.shrink(x, panels, p_.k, a_, rank_, worker.h);
  }
}

const void* Run::dropped_panel(std::int64_t row, int rows, const Worker& worker) {
  kernels_.dropout_mask(*p_.low_rank->input_dropout, static_cast<std::uint64_t>(row * p_.k),
                        rows * p_.k, worker.rows);
  kernels_.drop_rows(p_.x.at(row, 0), rows, p_.k, worker.rows, p_.k, worker.rows);
  kernels_.pack_rows({worker.rows, DType::kFloat32, p_.k, 1}, rows, p_.k, worker.dropped);
  return worker.dropped;
}

// The chunks before the late rows; all of them where a row has to be rewritten before it is read.
std::int64_t Run::chunks_with_partials(const OuterProduct& outer) const {
  std::int64_t chunk = partition_.chunks();
  if (needs_dense_copy(outer)) return chunk;
  while (chunk > 0 && p_.m - partition_.panel_row(partition_.first_panel(chunk - 1)) <= kLateRows) {
    --chunk;
  }
  return chunk;
}

// This chunk's part of each outer product: its rows have just been read.
void Run::add_outer_products(std::int64_t chunk, const Worker& worker) {
  const std::int64_t row = partition_.panel_row(partition_.first_panel(chunk));
  const std::int64_t rows = partition_.panel_row(partition_.first_panel(chunk + 1)) - row;
  for (std::size_t i = 0; i < p_.outer_products.size(); ++i) {
    const OuterProduct& outer = p_.outer_products[i];
    if (chunk >= chunks_with_partials(outer)) continue;
    Source matrix = outer.matrix.at(row, 0);
    if (needs_dense_copy(outer)) {
      const float* mask = nullptr;
      std::int64_t mask_stride = outer.cols;
      if (outer.dropout != nullptr && outer.dropout == output_dropout_ && partition_.splits == 1) {
        mask = worker.mask;  // the same elements as dx
        mask_stride = partition_.n_panels * kernels_.width;
      } else if (outer.dropout != nullptr) {
        kernels_.dropout_mask(*outer.dropout, static_cast<std::uint64_t>(row * outer.cols),
                              rows * outer.cols, worker.rows);
        mask = worker.rows;
      }
      kernels_.drop_rows(matrix, rows, outer.cols, mask, mask_stride, worker.rows);
      matrix = {worker.rows, DType::kFloat32, outer.cols, 1};
    }
    const float* coefficients = outer.coefficients != nullptr ? outer.coefficients : h_;
    kernels_.outer(coefficients + row * rank_, rank_, matrix, rows, outer.cols,
                   partials_[i] + chunk * rank_ * outer.cols, outer.cols);
  }
}

// The output dropout of a chunk's share of columns, [row][share], zero past the last column.
void Run::fill_mask(std::int64_t first, std::int64_t last, std::int64_t split,
                    const Worker& worker) {
  const std::int64_t col = partition_.split_panel(split) * kernels_.width;
  const std::int64_t end = partition_.split_panel(split + 1) * kernels_.width;
  const std::int64_t cols = std::min(p_.n, end) - col;
  float* mask = worker.mask;
  for (std::int64_t row = partition_.panel_row(first); row < partition_.panel_row(last); ++row) {
    kernels_.dropout_mask(*output_dropout_, static_cast<std::uint64_t>(row * p_.n + col), cols,
                          mask);
    std::fill(mask + cols, mask + (end - col), 0.0f);
    mask += end - col;
  }
}

// The tiles of a chunk: column panels outside, so that each is read from memory once a chunk.
void Run::multiply(std::int64_t first, std::int64_t last, std::int64_t split,
                   const Worker& worker) {
  const std::int64_t first_column = partition_.split_panel(split);
  const std::int64_t last_column = partition_.split_panel(split + 1);
  const std::int64_t mask_stride = (last_column - first_column) * kernels_.width;
  const std::int64_t first_row = partition_.panel_row(first);
  TileArgs tile;
  tile.steps = w_ != nullptr ? kernels_.steps(p_.k) : 0;
  tile.low_steps = rank_ > 0 ? kernels_.steps(rank_) : 0;
  tile.b_stride = b_step_;
  tile.mask_stride = mask_stride;
  tile.y_stride = p_.y.dim(0) > 1 ? p_.y.stride(0) : p_.n;
  tile.y_bfloat16 = p_.y.dtype() == DType::kBFloat16;
  tile.accumulate = p_.accumulate;
  const std::int64_t y_size = static_cast<std::int64_t>(size_of(p_.y.dtype()));
  const std::int64_t w_bytes = kernels_.column_panel_size(p_.k) * 4;
  for (std::int64_t column = first_column; column < last_column; ++column) {
    const std::int64_t col = column * kernels_.width;
    tile.cols = static_cast<int>(std::min<std::int64_t>(kernels_.width, p_.n - col));
    tile.w = w_ + column * kernels_.column_panel_size(p_.k);
    tile.b = b_ + column * b_panel_;
    tile.bias = bias_ != nullptr ? bias_ + col : nullptr;
    for (std::int64_t panel = first; panel < last; ++panel) {
      const std::int64_t row = partition_.panel_row(panel);
      tile.rows = panel_rows(panel);
      read_ahead(tile, column + 1 == last_column, w_bytes, panel - first, last - first);
      tile.x = worker.x + (panel - first) * x_panel_size_;
      tile.h = worker.low + (panel - first) * kernels_.row_panel_size(rank_);
      tile.mask = output_dropout_ ? worker.mask + (row - first_row) * mask_stride +
                                        (column - first_column) * kernels_.width
                                  : nullptr;
      tile.y = static_cast<char*>(p_.y.mutable_data()) + (row * tile.y_stride + col) * y_size;
      kernels_.tile(tile);
    }
  }
}

// Whether the tasks make something that the outer product is of: h, or its chunks' parts.
bool Run::needs_tasks(const OuterProduct& outer) const {
  return outer.coefficients == nullptr || chunks_with_partials(outer) > 0;
}

// The late rows first, then what chunks have summed, in their order, whatever thread made them: the
// same bits every time. A block has all of the rank: of a gradient of A, which lies transposed,
// that is a stretch of memory no other task writes to.
void Run::finish_outer_product(const Block& block, const Worker& worker) {
  const auto [index, first] = block;
  const OuterProduct& outer = p_.outer_products[index];
  const std::int64_t cols = std::min(outer_cols_, outer.cols - first);
  const std::int64_t chunks = chunks_with_partials(outer);
  const std::int64_t row = partition_.panel_row(partition_.first_panel(chunks));
  float* const sums = worker.sums;  // [rank][outer_cols_]
  if (row < p_.m) {
    const float* coefficients = outer.coefficients != nullptr ? outer.coefficients : h_;
    kernels_.outer(coefficients + row * rank_, rank_, outer.matrix.at(row, first), p_.m - row, cols,
                   sums, outer_cols_);
  } else {
    std::fill_n(sums, rank_ * outer_cols_, 0.0f);
  }
  const float* partial = partials_[index] + first;
  for (std::int64_t i = 0; i < chunks * rank_; ++i, partial += outer.cols) {
    kernels_.add(partial, cols, sums + i % rank_ * outer_cols_);
  }
  write_gradient(sums, first, cols, outer);
}

// out, columns [first, first + cols) = scaling · sums [rank][outer_cols_].
void Run::write_gradient(const float* sums, std::int64_t first, std::int64_t cols,
                         const OuterProduct& outer) const {
  const std::int64_t row_stride = outer.out.stride(0), col_stride = outer.out.stride(1);
  float* const out = outer.out.mutable_data_as<float>() + first * col_stride;
  if (row_stride == 1) {
    kernels_.transpose(sums, outer_cols_, rank_, cols, outer.scaling, out, col_stride);
    return;
  }
  for (std::int64_t j = 0; j < rank_; ++j) {
    for (std::int64_t c = 0; c < cols; ++c) {
      out[j * row_stride + c * col_stride] = outer.scaling * sums[j * outer_cols_ + c];
    }
  }
}

}  // namespace

void run(Context& context, const Product& product) { Run(context, product)(); }

}  // namespace graft::cpu
