#include <algorithm>

#include "backend/cpu/small_vector.h"
#include "backend/cpu/threads.h"
#include "backend/element.h"
#include "product/cpu/outer_products.h"
#include "product/cpu/plan.h"
#include "product/cpu/product.h"
#include "weight/cpu/dense.h"
#include "weight/cpu/panels.h"

namespace graft::cpu {
namespace {

// A term's operands as tiles read them.
struct Operands {
  const std::uint32_t* weight = nullptr;  // column panels; null: no base product
  std::int64_t weight_panel = 0;          // 32-bit elements from a panel to the next
  const std::uint32_t* shrink = nullptr;  // packed S
  const std::uint32_t* expand = nullptr;  // column panels of E
  std::int64_t expand_panel = 0;          // 32-bit elements from a panel to the next
  float* h = nullptr;                     // (M, rank), if the caller or an outer product wants it
  bool completes = false;                 // y: no term comes after it in the sum
  TileArgs tile;                          // what all of its tiles have in common
  std::int64_t y_element = 0, y_row = 0;  // bytes from one to the next, of y or of partial sums
  std::int64_t h_panel = 0;               // 32-bit elements from a low-rank row panel to the next
};

// Rows of a product's weight: what it sums over.
std::int64_t k_of(const Weight& weight, Direction direction) {
  return direction == Direction::kForward ? weight.in_features() : weight.out_features();
}

class ProductRun {
 public:
  ProductRun(Context& context, const Product& product);
  void operator()();

 private:
  void pack_biases_and_weights();
  void pack_pairs(std::int64_t task);
  void task(const Partition::Task& task, const WorkerScratch& worker);
  void pack_chunk(const Input& input, std::int64_t chunk, bool write_h,
                  const WorkerScratch& worker);
  void make_h(std::size_t term, std::int64_t chunk, std::int64_t panel, int panels,
              const std::uint32_t* x, bool write_h, const WorkerScratch& worker);
  const std::uint32_t* drop_panels(const Term& term, std::int64_t panel, int panels,
                                   const std::uint32_t* x, const WorkerScratch& worker) const;
  void multiply(std::size_t output, const Partition::Task& task, const WorkerScratch& worker) const;
  void multiply_panels(std::size_t output, std::size_t term, const Partition::Task& task,
                       std::int64_t first, std::int64_t last, std::int64_t end,
                       const WorkerScratch& worker) const;
  const std::uint32_t* weight_panel(std::size_t term, std::int64_t panel) const {
    return operands_[term].weight + panel * operands_[term].weight_panel;
  }
  const std::uint32_t* next_weight_panel(std::size_t output, std::size_t term, std::int64_t column,
                                         std::int64_t end) const;

  const Context& context_;
  const Product& p_;
  const Plan plan_;
  const Kernels& kernels_;
  const Partition& partition_;
  const ProductScratch scratch_;
  const OuterProducts outer_products_;
  SmallVector<Operands, 3> operands_;  // of each term
  std::int64_t packing_tasks_ = 0;     // of the pairs
  Countdown pairs_packed_;
};

ProductRun::ProductRun(Context& context, const Product& product)
    : context_(context),
      p_(product),
      plan_(product, context.threads()),
      kernels_(plan_.kernels),
      partition_(plan_.partition),
      scratch_(lay_out(context, [this](Scratch& scratch) { return plan_.layout(scratch); })),
      outer_products_(plan_, scratch_) {
  for (std::size_t i = 0; i < p_.terms.size(); ++i) {
    const Term& term = p_.terms[i];
    const TermPlan& plan = plan_.terms[i];
    const TermScratch& scratch = scratch_.terms[i];
    Operands& to = operands_.emplace_back();
    if (term.weight != nullptr && term.y != nullptr) {
      // Only what is packed here is of this K alone.
      const std::int64_t weight_k = plan.packs_weight ? term.k : k_of(*term.weight, p_.direction);
      to.weight = plan.packs_weight ? scratch.weight
                                    : packed_panels(*term.weight, p_.direction) +
                                          kernels_.column_panel_size(term.weight_k);
      to.weight_panel = kernels_.column_panel_size(weight_k);
    }
    const LowRank& pair = term.pair;
    to.shrink =
        plan.packs_shrink ? scratch.shrink : static_cast<const std::uint32_t*>(pair.shrink.data);
    to.expand =
        plan.packs_expand ? scratch.expand : static_cast<const std::uint32_t*>(pair.expand.data);
    to.expand_panel = plan.packs_expand ? kernels_.column_panel_size(pair.rank) : kernels_.width;
    to.h = plan.owns_h ? scratch.h : pair.h;
    to.h_panel = kernels_.row_panel_size(plan.rank);
    to.tile.steps = to.weight != nullptr ? kernels_.steps(term.k) : 0;
    to.tile.low_steps = plan.rank > 0 ? kernels_.steps(plan.rank) : 0;
    to.tile.b_stride = plan.packs_expand ? kernels_.width : pair.expand.row_stride;
    to.completes = plan_.outputs.size() == p_.terms.size() || i + 1 == p_.terms.size();
    to.tile.y_stride = kernels_.width;
    to.y_element = sizeof(float);
    if (to.completes && term.y != nullptr) {
      to.tile.y_stride = term.y->dim(0) > 1 ? term.y->stride(0) : term.n;
      to.tile.y_bfloat16 = term.y->dtype() == DType::kBFloat16;
      to.tile.accumulate = p_.accumulate;
      to.y_element = static_cast<std::int64_t>(size_of(term.y->dtype()));
    }
    to.y_row = to.tile.y_stride * to.y_element;
    packing_tasks_ += plan.shrink_tasks + plan.expand_tasks;
  }
}

void ProductRun::operator()() {
  pack_biases_and_weights();
  // What can be finished early fills the end of the first round of tasks; the rest is the second.
  const std::int64_t tasks = partition_.tasks();
  const auto early = static_cast<std::int64_t>(outer_products_.early().size());
  pairs_packed_.start(packing_tasks_);
  parallel_for(context_, packing_tasks_ + tasks + early, plan_.threads,
               [this, tasks](std::int64_t i, int index) {
                 const WorkerScratch& worker = scratch_.workers[static_cast<std::size_t>(index)];
                 if (i < packing_tasks_) return pack_pairs(i);
                 i -= packing_tasks_;
                 if (i < tasks) return task(partition_.task(i), worker);
                 const auto block = static_cast<std::size_t>(i - tasks);
                 outer_products_.finish(outer_products_.early()[block], worker);
               });
  parallel_for(context_, static_cast<std::int64_t>(outer_products_.late().size()), plan_.threads,
               [this](std::int64_t i, int index) {
                 outer_products_.finish(outer_products_.late()[static_cast<std::size_t>(i)],
                                        scratch_.workers[static_cast<std::size_t>(index)]);
               });
}

void ProductRun::pack_biases_and_weights() {
  for (std::size_t i = 0; i < p_.terms.size(); ++i) {
    const Term& term = p_.terms[i];
    const std::int64_t padded = plan_.terms[i].column_panels * kernels_.width;
    for (std::int64_t j = 0; term.bias != nullptr && j < padded; ++j) {
      scratch_.terms[i].bias[j] =
          j < term.n ? load_element(*term.bias, j * term.bias->stride(0)) : 0.0f;
    }
    if (plan_.terms[i].packs_weight) {
      const Source view = Source::of(term.weight->view());
      const Source w = p_.direction == Direction::kForward ? view : view.transposed();
      pack_panels(context_, kernels_, w.at(0, term.weight_k), term.n, term.k,
                  scratch_.terms[i].weight);
    }
  }
}

// The first tasks pack each S, a group of columns at a time, and each E, a range of panels at a
// time; the others pack rows of x until they need them.
void ProductRun::pack_pairs(std::int64_t task) {
  std::size_t i = 0;
  while (task >= plan_.terms[i].shrink_tasks + plan_.terms[i].expand_tasks) {
    task -= plan_.terms[i].shrink_tasks + plan_.terms[i].expand_tasks;
    ++i;
  }
  const Term& term = p_.terms[i];
  const TermPlan& plan = plan_.terms[i];
  if (task < plan.shrink_tasks) {
    const std::int64_t col = task * kernels_.wide_shrink_cols;
    const std::int64_t cols = std::min<std::int64_t>(kernels_.wide_shrink_cols, plan.rank - col);
    kernels_.pack_a(term.pair.shrink.at(0, col), term.k, cols,
                    scratch_.terms[i].shrink + kernels_.packed_a_size(term.k, col));
  } else {
    const std::int64_t range = task - plan.shrink_tasks;
    const std::int64_t last = plan.column_panels * (range + 1) / plan.expand_tasks;
    for (std::int64_t j = plan.column_panels * range / plan.expand_tasks; j < last; ++j) {
      pack_panel(kernels_, term.pair.expand.transposed(), term.n, plan.rank, j,
                 scratch_.terms[i].expand);
    }
  }
  pairs_packed_.done();
}

void ProductRun::task(const Partition::Task& task, const WorkerScratch& worker) {
  const auto [chunk, split] = task;
  for (const Input& input : plan_.inputs) pack_chunk(input, chunk, split == 0, worker);
  for (std::size_t i = 0; i < p_.terms.size(); ++i) {
    const TermPlan& plan = plan_.terms[i];
    if (plan.output_dropout == nullptr) continue;
    const DropoutElements elements = plan_.output_elements(i, chunk, split);
    elements.keep(kernels_, *plan.output_dropout, worker.kept + plan.kept_at);
  }
  if (split == 0) outer_products_.add(chunk, worker);
  for (std::size_t o = 0; o < plan_.outputs.size(); ++o) {
    if (p_.terms[plan_.outputs[o].first].y != nullptr) multiply(o, task, worker);
  }
}

// Packs the rows of a chunk, and while panels are hot, makes the h of every term that reads them.
void ProductRun::pack_chunk(const Input& input, std::int64_t chunk, bool write_h,
                            const WorkerScratch& worker) {
  const std::int64_t first = partition_.first_panel(chunk),
                     last = partition_.first_panel(chunk + 1);
  const Term& reader = p_.terms[input.first];
  std::uint32_t* const panels = worker.x_panels + input.panels_at;
  for (std::int64_t panel = first; panel < last; ++panel) {
    const int rows = partition_.panel_rows(panel);
    std::uint32_t* const x = panels + (panel - first) * input.panel_size;
    Source here = reader.x.at(partition_.panel_row(panel), 0);
    // The next panel's rows begin `rows` on: too few bytes a row for a prefetcher to find them.
    if (panel + 1 < last) here.ahead = rows * here.row_bytes();
    if (input.packs) kernels_.pack_rows(here, rows, reader.k, x);

    const int packed = static_cast<int>((panel - first) % input.shrink_panels) + 1;
    if (packed < input.shrink_panels && panel + 1 < last) continue;
    for (std::size_t i = input.first; i < input.last; ++i) {
      if (plan_.terms[i].rank == 0) continue;
      make_h(i, chunk, panel + 1 - packed, packed, x - (packed - 1) * input.panel_size, write_h,
             worker);
    }
  }
}

// The h of consecutive row panels, which lie packed at x: as low-rank panels, and as rows.
void ProductRun::make_h(std::size_t i, std::int64_t chunk, std::int64_t panel, int panels,
                        const std::uint32_t* x, bool write_h, const WorkerScratch& worker) {
  const Term& term = p_.terms[i];
  const TermPlan& plan = plan_.terms[i];
  const Operands& operands = operands_[i];
  const std::int64_t h_size = kernels_.h_panel_size(plan.rank);
  pairs_packed_.wait();
  if (plan.row_shrink) {
    for (int j = 0; j < panels; ++j) {
      kernels_.row_shrink(term.x.at(partition_.panel_row(panel + j), 0),
                          partition_.panel_rows(panel + j), term.k, operands.shrink, plan.rank,
                          worker.h + j * h_size);
    }
  } else {
    if (term.pair.input_dropout != nullptr) x = drop_panels(term, panel, panels, x, worker);
    kernels_.shrink(x, panels, term.k, operands.shrink, plan.rank, worker.h);
  }

  const std::int64_t size = kernels_.row_panel_size(plan.rank);
  const float scaling = term.pair.scaling * plan.input_scale * plan.output_scale;
  std::uint32_t* const h_panels = worker.h_panels + plan.h_panels_at;
  for (int j = 0; j < panels; ++j) {
    const float* const h = worker.h + j * h_size;
    kernels_.low_rank_panel(h, plan.rank, scaling,
                            h_panels + (panel + j - partition_.first_panel(chunk)) * size);
    if (operands.h != nullptr && write_h) {
      kernels_.transpose(h, kernels_.stride, plan.rank, partition_.panel_rows(panel + j),
                         plan.input_scale, operands.h + partition_.panel_row(panel + j) * plan.rank,
                         plan.rank);
    }
  }
}

const std::uint32_t* ProductRun::drop_panels(const Term& term, std::int64_t panel, int panels,
                                             const std::uint32_t* x,
                                             const WorkerScratch& worker) const {
  for (int j = 0; j < panels; ++j) {
    const std::int64_t at = j * kernels_.row_panel_size(term.k);
    const int rows = partition_.panel_rows(panel + j);
    const DropoutElements elements{partition_.panel_row(panel + j), rows, term.k, 0, term.k};
    const Kept kept = elements.keep(kernels_, *term.pair.input_dropout, worker.kept);
    kernels_.drop_panel(x + at, rows, term.k, kept, worker.dropped + at);
  }
  return worker.dropped;
}

// The tiles of a chunk: column panels outside, so that each is read from memory once a chunk. Terms
// of one y take turns at each.
void ProductRun::multiply(std::size_t o, const Partition::Task& task,
                          const WorkerScratch& worker) const {
  const Output& output = plan_.outputs[o];
  const std::int64_t first = std::max(output.first_column, partition_.split_panel(task.split));
  const std::int64_t end = partition_.split_panel(task.split + 1);
  const std::int64_t last = std::min(output.last_column, end);
  const std::int64_t at_once = output.last - output.first == 1 ? last - first : 1;
  for (std::int64_t column = first; column < last; column += at_once) {
    for (std::size_t i = output.first; i < output.last; ++i) {
      multiply_panels(o, i, task, column, column + at_once, end, worker);
    }
  }
}

// The panel of a weight that is read after column panel `column` of term i, null if that is the
// last before `end`.
const std::uint32_t* ProductRun::next_weight_panel(std::size_t o, std::size_t i,
                                                   std::int64_t column, std::int64_t end) const {
  const Output& output = plan_.outputs[o];
  if (i + 1 < output.last) return weight_panel(i + 1, column - output.first_column);
  if (column + 1 == end) return nullptr;
  if (column + 1 == output.last_column) return weight_panel(plan_.outputs[o + 1].first, 0);
  return weight_panel(output.first, column + 1 - output.first_column);
}

// One term's tiles of column panels [first, last), of the task's before `end`. Terms before an
// output's last leave their sum in scratch.
void ProductRun::multiply_panels(std::size_t o, std::size_t i, const Partition::Task& task,
                                 std::int64_t first, std::int64_t last, std::int64_t end,
                                 const WorkerScratch& worker) const {
  const Output& output = plan_.outputs[o];
  const Term& term = p_.terms[i];
  const TermPlan& plan = plan_.terms[i];
  const Operands& operands = operands_[i];
  const Input& input = plan_.inputs[plan_.input_of(i)];
  const std::int64_t first_row = partition_.first_panel(task.chunk);
  const std::int64_t last_row = partition_.first_panel(task.chunk + 1);
  const std::int64_t width = kernels_.width;
  const std::int64_t first_panel = first - output.first_column, first_col = first_panel * width;
  const std::uint32_t* const x_panels = worker.x_panels + input.panels_at;
  const std::uint32_t* const h_panels = worker.h_panels + plan.h_panels_at;
  const std::uint32_t* w = operands.weight;
  if (w != nullptr) w += first_panel * operands.weight_panel;
  const std::uint32_t* b = operands.expand + first_panel * operands.expand_panel;
  Kept kept;
  if (plan.output_dropout != nullptr) {
    const DropoutElements elements = plan_.output_elements(i, task.chunk, task.split);
    kept = elements.kept(worker.kept + plan.kept_at).at(0, first_col - elements.col);
  }
  const float* bias = term.bias != nullptr ? scratch_.terms[i].bias + first_col : nullptr;
  char* y_panel = static_cast<char*>(static_cast<void*>(worker.partial));
  std::int64_t y_step = 0;
  // Sums that are not y yet have zeros past its last column.
  std::int64_t cols = plan.column_panels * width - first_col;  // from here on
  if (operands.completes) {
    y_panel = static_cast<char*>(term.y->mutable_data()) +
              partition_.panel_row(first_row) * operands.y_row + first_col * operands.y_element;
    y_step = width * operands.y_element;
    cols = term.n - first_col;
  }

  TileArgs tile = operands.tile;
  for (std::int64_t column = first; column < last; ++column) {
    std::int64_t ahead = 0;  // bytes to the weight's panel that comes next
    if (w != nullptr) {
      const std::uint32_t* const next = next_weight_panel(o, i, column, end);
      if (next != nullptr) ahead = 4 * (next - w);
    }
    tile.cols = static_cast<int>(std::min(width, cols));
    tile.w = w;
    tile.b = b;
    if (kept.some()) tile.kept = kept;
    tile.bias = bias;
    const float* start = i > output.first ? worker.partial : nullptr;
    const std::uint32_t *x = x_panels, *h = h_panels;
    char* y = y_panel;
    for (std::int64_t panel = first_row; panel < last_row; ++panel) {
      tile.rows = partition_.panel_rows(panel);
      read_ahead(tile, ahead == 0, ahead, panel - first_row, last_row - first_row);
      tile.x = x;
      tile.h = h;
      tile.start = start;
      tile.y = y;
      kernels_.tile(tile);
      x += input.panel_size;
      h += operands.h_panel;
      y += tile.rows * operands.y_row;
      if (start != nullptr) start += tile.rows * width;
      if (kept.some()) tile.kept = tile.kept.at(tile.rows, 0);
    }
    if (w != nullptr) w += operands.weight_panel;
    b += operands.expand_panel;
    kept = kept.at(0, width);
    if (bias != nullptr) bias += width;
    y_panel += y_step;
    cols -= width;
  }
}

// A row panel of so long a K leaves room for a few others in a core's cache, and the weight would
// be read from memory for each few. So y is summed over slices of K, where it can hold the sums.
// 512 × 49152 → 576 in float32 takes 62 ms instead of 84.
std::int64_t slices_of(const Product& product) {
  constexpr std::int64_t kLongSteps = 4096, kSliceSteps = 2048;
  if (product.terms.size() != 1) return 1;
  const Term& term = product.terms.front();
  const bool sums_in_y = term.weight != nullptr && term.y != nullptr && term.pair.rank == 0 &&
                         term.y->dtype() == DType::kFloat32;
  if (!sums_in_y) return 1;
  const std::int64_t steps = kernels_for(product.multiply).steps(term.k);
  return steps > kLongSteps ? ceil_div(steps, kSliceSteps) : 1;
}

// Slice `index` of `count` of a product.
Product slice_of(const Product& product, std::int64_t index, std::int64_t count) {
  Product slice = product;
  Term& term = slice.terms.front();
  const std::int64_t k = term.k;
  const auto at = [k, count](std::int64_t i) { return i == count ? k : k * i / count / 2 * 2; };
  term.weight_k = at(index);
  term.k = at(index + 1) - at(index);
  term.x = term.x.at(0, term.weight_k);
  if (index > 0) {
    term.bias = nullptr;
    slice.accumulate = true;
  }
  return slice;
}

}  // namespace

void run(Context& context, const Product& product) {
  const std::int64_t slices = slices_of(product);
  if (slices == 1) return ProductRun(context, product)();
  for (std::int64_t i = 0; i < slices; ++i) ProductRun(context, slice_of(product, i, slices))();
}

std::size_t scratch_bytes(const Product& product, int threads) {
  const std::int64_t slices = slices_of(product);
  std::size_t most = 0;
  for (std::int64_t i = 0; i < slices; ++i) {
    const Product slice = slices == 1 ? product : slice_of(product, i, slices);
    const Plan plan(slice, threads);
    most = std::max(most, bytes_of([&plan](Scratch& scratch) { return plan.layout(scratch); }));
  }
  return most;
}

}  // namespace graft::cpu
