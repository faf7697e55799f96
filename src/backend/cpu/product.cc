#include "backend/cpu/product.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/packed_panels.h"
#include "backend/cpu/partition.h"
#include "backend/cpu/scratch_layout.h"
#include "backend/cpu/threads.h"
#include "backend/element.h"
#include "linear/packed_weight_impl.h"

namespace graft::cpu {

std::int64_t packed_panels_size(const Kernels& kernels, std::int64_t n, std::int64_t k) {
  return (n + kernels.width - 1) / kernels.width * kernels.column_panel_size(k);
}

namespace {

void pack_panel(const Kernels& kernels, const Source& w, std::int64_t n, std::int64_t k,
                std::int64_t panel, std::uint32_t* panels) {
  const std::int64_t col = panel * kernels.width;
  kernels.pack_columns(w.at(col, 0),
                       static_cast<int>(std::min<std::int64_t>(kernels.width, n - col)), k,
                       panels + panel * kernels.column_panel_size(k));
}

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

// Which elements of rows [row, row + rows) × columns [col, col + cols) of an (M, n) matrix are
// kept. Whole rows are one stretch of counters. Else each row has its own, and lies where its first
// bit has the place in a byte that its element has in a counter: for that, rows are n % 8 bits and
// whole bytes apart.
struct Elements {
  std::int64_t row = 0, rows = 0, n = 0, col = 0, cols = 0;

  std::int64_t first() const { return row * n + col; }
  std::int64_t row_stride() const { return cols == n ? n : (7 + cols + 7) / 8 * 8 + n % 8; }
  std::int64_t bytes() const { return ceil_div(7 + rows * row_stride(), 8) + kKeptSlack; }

  Kept keep(const Kernels& kernels, const Dropout& dropout, std::uint8_t* bits) const {
    const auto fill = [&](std::int64_t element, std::int64_t count, std::uint8_t* to) {
      kernels.dropout_bits(dropout, static_cast<std::uint64_t>(element / 8),
                           ceil_div(element % 8 + count, 8), to);
    };
    const Kept kept{bits, first() % 8, row_stride()};
    if (cols == n) {
      fill(first(), rows * n, bits);
    } else {
      for (std::int64_t i = 0; i < rows; ++i) {
        fill(first() + i * n, cols, bits + (kept.first + i * kept.row_stride) / 8);
      }
    }
    return kept;
  }
};

// One call: what is packed for all tasks, and each worker's own scratch.
class Run {
 public:
  Run(Context& context, const Product& product);
  void operator()();

 private:
  struct Worker {
    std::uint32_t* x;        // row panels of a chunk
    std::uint32_t* low;      // their low-rank panels
    std::uint32_t* dropped;  // row panels of drop(x) in a pass of the shrink, unscaled
    float* h;                // of the panels in a pass of the shrink, [rank][stride] each
    float* rows;             // dense float rows of a chunk, where a matrix has to be rewritten
    std::uint8_t* kept;      // bits of dropout, of a row panel of x or a chunk of y
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
  const std::uint32_t* drop_panels(std::int64_t panel, int panels, const std::uint32_t* x,
                                   const Worker& worker);
  Elements output_elements(std::int64_t chunk, std::int64_t split) const;
  void add_outer_products(std::int64_t chunk, const Kept& kept, const Worker& worker);
  void multiply(std::int64_t chunk, std::int64_t split, const Kept& kept, const Worker& worker);
  bool needs_dense_copy(const OuterProduct& outer) const;
  std::int64_t chunks_with_partials(const OuterProduct& outer) const;
  int panel_rows(std::int64_t panel) const {
    return static_cast<int>(partition_.panel_row(panel + 1) - partition_.panel_row(panel));
  }
  bool needs_tasks(const OuterProduct& outer) const;
  void finish_outer_product(const Block& block, const Worker& worker);
  void write_gradient(const float* sums, std::int64_t first, std::int64_t cols,
                      const OuterProduct& outer) const;

  const Product& p_;
  const Kernels& kernels_;
  const int threads_;  // read once: workers_ has one each
  const Partition partition_;
  const std::int64_t rank_;
  const bool row_shrink_;                   // h straight from rows of x
  const int shrink_panels_;                 // at once
  const Dropout* const input_dropout_;      // null for none
  const Dropout* const output_dropout_;     // null also where nothing needs it
  const float input_scale_, output_scale_;  // of what they keep
  std::int64_t outer_cols_ = 0;             // of outer products that a task finishes
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

// The packed x of a chunk stays for the base product, and the shrink reads it.
bool shrinks_packed_panels(const Product& p) {
  return p.low_rank != nullptr && p.weight != nullptr && p.y.present();
}

bool any_dropped(const std::vector<OuterProduct>& outer_products) {
  return std::any_of(outer_products.begin(), outer_products.end(),
                     [](const OuterProduct& outer) { return outer.dropped; });
}

float scale_of(const Dropout* dropout) { return dropout != nullptr ? dropout->scale() : 1.0f; }

Run::Run(Context& context, const Product& product)
    : p_(product),
      kernels_(kernels_for(multiply_type(product))),
      threads_(num_threads()),
      partition_(kernels_, product.m, product.k, product.n, threads_),
      rank_(product.low_rank ? product.low_rank->rank : 0),
      row_shrink_(shrinks_from_rows(product, kernels_)),
      shrink_panels_(shrinks_packed_panels(product) ? kernels_.shrink_panels : 1),
      input_dropout_(product.low_rank ? product.low_rank->input_dropout : nullptr),
      output_dropout_(product.low_rank &&
                              (product.y.present() || any_dropped(product.outer_products))
                          ? product.low_rank->output_dropout
                          : nullptr),
      input_scale_(scale_of(input_dropout_)),
      output_scale_(scale_of(output_dropout_)),
      x_panel_size_(product.weight && product.y.present() ? kernels_.row_panel_size(product.k)
                                                          : 0) {
  const LowRank* low = p_.low_rank;
  const std::int64_t n_padded = partition_.n_panels * kernels_.width;
  const std::int64_t chunk_panels = partition_.most_chunk_panels();
  const std::int64_t chunk_rows = chunk_panels * kernels_.rows;

  ScratchLayout layout;
  const bool plain = p_.weight != nullptr && p_.weight->packed() == nullptr && p_.y.present();
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
  const std::int64_t low_size = kernels_.row_panel_size(rank_);
  std::int64_t kept_bytes = 0;
  if (input_dropout_ != nullptr) kept_bytes = Elements{0, kernels_.rows, p_.k, 0, p_.k}.bytes();
  if (output_dropout_ != nullptr && partition_.chunks() > 0) {  // the first chunk is the largest
    for (std::int64_t split = 0; split < partition_.splits; ++split) {
      Elements most = output_elements(0, split);
      most.rows = chunk_rows;
      kept_bytes = std::max(kept_bytes, most.bytes());
    }
  }
  struct Offsets {
    std::size_t x, low, dropped, h, rows, kept, sums;
  };
  std::vector<Offsets> offsets;
  for (int i = 0; i < threads_; ++i) {
    Offsets o;
    o.x = layout.reserve<float>(
        std::max(chunk_panels * x_panel_size_, kernels_.row_panel_size(p_.k)));
    o.low = layout.reserve<float>(chunk_panels * low_size);
    o.dropped = layout.reserve<float>(
        input_dropout_ != nullptr ? shrink_panels_ * kernels_.row_panel_size(p_.k) : 0);
    o.h = layout.reserve<float>(shrink_panels_ * kernels_.h_panel_size(rank_));
    o.rows = layout.reserve<float>(chunk_rows * dense_cols);
    o.kept = layout.reserve<std::uint8_t>(kept_bytes);
    o.sums = layout.reserve<float>(p_.outer_products.empty() ? 0 : rank_ * outer_cols_);
    offsets.push_back(o);
  }

  layout.allocate(context);
  const auto words = [&layout](std::size_t at) { return layout.at<std::uint32_t>(at); };
  const auto floats = [&layout](std::size_t at) { return layout.at<float>(at); };
  if (plain) w_ = plain_ = words(plain_at);
  if (p_.weight != nullptr && p_.weight->packed() != nullptr) {
    const PackedWeight::Impl& packed = p_.weight->packed()->impl();
    w_ = p_.direction == Direction::kForward ? packed.forward.get() : packed.backward.get();
  }
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
                        layout.at<std::uint8_t>(o.kept), floats(o.sums)});
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
  parallel_for(packing + tasks + static_cast<std::int64_t>(blocks.size()), threads_,
               [&](std::int64_t i, int index) {
                 const Worker& worker = workers_[static_cast<std::size_t>(index)];
                 if (i < packing) return pack_pair(i);
                 i -= packing;
                 if (i < tasks) return task(i / partition_.splits, i % partition_.splits, worker);
                 finish_outer_product(blocks[static_cast<std::size_t>(i - tasks)], worker);
               });
  parallel_for(static_cast<std::int64_t>(rest.size()), threads_, [&](std::int64_t i, int index) {
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
    const Source w = Source::of(p_.weight->plain());
    pack_panels(kernels_, p_.direction == Direction::kForward ? w : w.transposed(), p_.n, p_.k,
                plain_);
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
  Kept kept;
  if (output_dropout_ != nullptr) {
    kept = output_elements(chunk, split).keep(kernels_, *output_dropout_, worker.kept);
  }
  if (split == 0) add_outer_products(chunk, kept, worker);
  if (p_.y.present()) multiply(chunk, split, kept, worker);
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
      kernels_.low_rank_panel(h, rank_, low->scaling * input_scale_ * output_scale_,
                              worker.low + (oldest + i - first) * kernels_.row_panel_size(rank_));
      if (h_ != nullptr && write_h) {
        kernels_.transpose(h, kernels_.stride, rank_, panel_rows(oldest + i), input_scale_,
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
  } else {
    if (input_dropout_ != nullptr) x = drop_panels(panel, panels, x, worker);
    kernels_.shrink(x, panels, p_.k, a_, rank_, worker.h);
  }
}

const std::uint32_t* Run::drop_panels(std::int64_t panel, int panels, const std::uint32_t* x,
                                      const Worker& worker) {
  for (int i = 0; i < panels; ++i) {
    const std::int64_t at = i * kernels_.row_panel_size(p_.k);
    const Elements elements{partition_.panel_row(panel + i), panel_rows(panel + i), p_.k, 0, p_.k};
    const Kept kept = elements.keep(kernels_, *input_dropout_, worker.kept);
    kernels_.drop_panel(x + at, panel_rows(panel + i), p_.k, kept, worker.dropped + at);
  }
  return worker.dropped;
}

// What output dropout masks in a task: its share of columns, or whole rows where there are outer
// products of them too.
Elements Run::output_elements(std::int64_t chunk, std::int64_t split) const {
  const std::int64_t row = partition_.panel_row(partition_.first_panel(chunk));
  const std::int64_t rows = partition_.panel_row(partition_.first_panel(chunk + 1)) - row;
  if (split == 0 && any_dropped(p_.outer_products)) return {row, rows, p_.n, 0, p_.n};
  const std::int64_t col = partition_.split_panel(split) * kernels_.width;
  const std::int64_t end = partition_.split_panel(split + 1) * kernels_.width;
  return {row, rows, p_.n, col, std::min(p_.n, end) - col};
}

// Rows of the matrix are rewritten before outer products are made of them.
bool Run::needs_dense_copy(const OuterProduct& outer) const {
  return (outer.dropped && output_dropout_ != nullptr) || outer.matrix.col_stride != 1;
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
void Run::add_outer_products(std::int64_t chunk, const Kept& kept, const Worker& worker) {
  const std::int64_t row = partition_.panel_row(partition_.first_panel(chunk));
  const std::int64_t rows = partition_.panel_row(partition_.first_panel(chunk + 1)) - row;
  for (std::size_t i = 0; i < p_.outer_products.size(); ++i) {
    const OuterProduct& outer = p_.outer_products[i];
    if (chunk >= chunks_with_partials(outer)) continue;
    Source matrix = outer.matrix.at(row, 0);
    if (needs_dense_copy(outer)) {
      kernels_.drop_rows(matrix, rows, outer.cols, outer.dropped ? kept : Kept(), worker.rows);
      matrix = {worker.rows, DType::kFloat32, outer.cols, 1};
    }
    const float* coefficients = outer.coefficients != nullptr ? outer.coefficients : h_;
    kernels_.outer(coefficients + row * rank_, rank_, matrix, rows, outer.cols,
                   partials_[i] + chunk * rank_ * outer.cols, outer.cols);
  }
}

// The tiles of a chunk: column panels outside, so that each is read from memory once a chunk.
void Run::multiply(std::int64_t chunk, std::int64_t split, const Kept& kept, const Worker& worker) {
  const std::int64_t first = partition_.first_panel(chunk);
  const std::int64_t last = partition_.first_panel(chunk + 1);
  const std::int64_t first_column = partition_.split_panel(split);
  const std::int64_t last_column = partition_.split_panel(split + 1);
  const std::int64_t first_row = partition_.panel_row(first);
  const std::int64_t kept_col = output_elements(chunk, split).col;
  TileArgs tile;
  tile.steps = w_ != nullptr ? kernels_.steps(p_.k) : 0;
  tile.low_steps = rank_ > 0 ? kernels_.steps(rank_) : 0;
  tile.b_stride = b_step_;
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
      tile.kept = kept.at(row - first_row, col - kept_col);
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

// out, columns [first, first + cols) = scaling · sums [rank][outer_cols_], scaled as dropout asks.
void Run::write_gradient(const float* sums, std::int64_t first, std::int64_t cols,
                         const OuterProduct& outer) const {
  const std::int64_t row_stride = outer.out.stride(0), col_stride = outer.out.stride(1);
  float* const out = outer.out.mutable_data_as<float>() + first * col_stride;
  const float scaling = outer.scaling * (outer.dropped ? output_scale_ : 1.0f);
  if (row_stride == 1) {
    kernels_.transpose(sums, outer_cols_, rank_, cols, scaling, out, col_stride);
    return;
  }
  for (std::int64_t j = 0; j < rank_; ++j) {
    for (std::int64_t c = 0; c < cols; ++c) {
      out[j * row_stride + c * col_stride] = scaling * sums[j * outer_cols_ + c];
    }
  }
}

}  // namespace

void pack_panels(const Kernels& kernels, const Source& w, std::int64_t n, std::int64_t k,
                 std::uint32_t* panels) {
  parallel_for(ceil_div(n, kernels.width),
               [&](std::int64_t panel) { pack_panel(kernels, w, n, k, panel, panels); });
}

void run(Context& context, const Product& product) { Run(context, product)(); }

}  // namespace graft::cpu
