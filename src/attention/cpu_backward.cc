// Backward attention. For one query head and a block of its queries at a time, with s = q·kᵀ
// computed again and L = logsumexp as forward saved it (Dao, arXiv:2307.08691, algorithm 2):
//
//     p = exp(scale·s − L)      dp = dy·vᵀ      δ_i = Σ dy_i ∘ y_i
//     ds = scale·p ∘ (dp − δ)   dq = ds·k       dk += dsᵀ·q       dv += pᵀ·dy
//
// One task is one query head, so its dk and dv need no other thread; the query heads that share a
// key head are added afterwards, in order. 10·d FLOPs for each query and key that it sees.

#include <algorithm>
#include <vector>

#include "attention/heads.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/softmax.h"
#include "backend/cpu/threads.h"

namespace graft::cpu {
namespace {

// Row panels of a block of queries: each turn reads and writes all of dk and dv once, and the
// block's scores stay in a core's cache up to some thousand keys.
constexpr std::int64_t kBlockPanels = 5;

class BackwardRun {
 public:
  explicit BackwardRun(const AttentionBackward& params)
      : p_(params),
        shape_(params.q, params.k, params.options),
        kernels_(kernels_for(DType::kFloat32)),
        softmax_(softmax_kernels()),
        rows_(row_kernels()),
        head_rows_(shape_, rows_),
        packed_(shape_, kernels_),
        ld_(packed_.key_panels() * kernels_.width + kernels_.stride),
        block_rows_(kBlockPanels * kernels_.rows) {}

  void operator()(Context& context);
  std::size_t scratch_bytes(int threads) const {
    return bytes_of([&](Scratch& scratch) { return layout(scratch, threads); });
  }

 private:
  struct Worker {
    float* q;           // [row of the block][d], turned; also rows of a key panel
    float* dy;          // [row][d]
    float* q_columns;   // column panels of q and dy: products that sum over queries
    float* dy_columns;  // [panel of d][row][width]
    float* scores;      // [row][ld_], then p
    float* dp;          // [row][ld_], then ds
    float* x_panel;     // a row panel of whatever is multiplied
    float* dq;          // [row][d] of a row panel; also a row of y
  };

  struct Parts {
    float* k_by_rows;
    float* k_by_columns;
    float* v_by_rows;
    float* dk;  // (B, heads, keys, d), before heads are added
    float* dv;
    std::vector<Worker> workers;
  };

  struct Block {
    std::int64_t b, head, first, count;
    std::int64_t seen;  // by the block's last query
  };

  Parts layout(Scratch& scratch, int threads) const;
  void pack(std::int64_t task, float* rows) const;
  void head(std::int64_t b, std::int64_t head, const Worker& worker) const;
  void block(const Block& block, std::int64_t panels, const Worker& worker) const;
  void scores_of_panel(const Block& block, std::int64_t row, std::int64_t count,
                       const Worker& worker) const;
  void key_gradient(const Block& block, const float* factors, const float* columns, float* sum,
                    const Worker& worker) const;
  void products(const float* x_panel, std::int64_t count, const float* by_columns,
                std::int64_t panel_stride, std::int64_t steps, float* y, bool accumulate) const;
  void sum_heads(std::int64_t b, std::int64_t kv_head, std::int64_t first,
                 std::int64_t count) const;

  bool keys_wanted() const { return p_.dk.present() || p_.dv.present(); }
  std::int64_t head_offset(std::int64_t b, std::int64_t head) const {
    return (b * shape_.heads + head) * shape_.keys * shape_.d;
  }

  const AttentionBackward& p_;
  const AttentionShape shape_;
  const Kernels& kernels_;
  const SoftmaxKernels& softmax_;
  const RowKernels& rows_;
  HeadRows head_rows_;
  const KeyPanels packed_;
  const std::int64_t ld_, block_rows_;
  Parts parts_;
};

BackwardRun::Parts BackwardRun::layout(Scratch& scratch, int threads) const {
  const std::int64_t d = shape_.d, width = kernels_.width;
  const std::int64_t gradient_size =
      keys_wanted() ? shape_.batch * shape_.heads * shape_.keys * d : 0;
  const std::int64_t row_size = std::max(block_rows_, width) * d;
  const std::int64_t columns_size = ceil_div(d, width) * block_rows_ * width;
  const std::int64_t scores_size = block_rows_ * ld_;
  Parts parts;
  parts.k_by_rows = scratch.take<float>(packed_.by_rows_size());
  parts.k_by_columns = scratch.take<float>(packed_.by_columns_size());
  parts.v_by_rows = scratch.take<float>(packed_.by_rows_size());
  parts.dk = scratch.take<float>(gradient_size);
  parts.dv = scratch.take<float>(gradient_size);
  for (int i = 0; i < threads; ++i) {
    Worker worker;
    worker.q = scratch.take<float>(row_size);
    worker.dy = scratch.take<float>(row_size);
    worker.q_columns = scratch.take<float>(columns_size);
    worker.dy_columns = scratch.take<float>(columns_size);
    worker.scores = scratch.take<float>(scores_size);
    worker.dp = scratch.take<float>(scores_size);
    worker.x_panel = scratch.take<float>(kernels_.stride * std::max({d, ld_, block_rows_}));
    worker.dq = scratch.take<float>(kernels_.rows * d);
    parts.workers.push_back(worker);
  }
  return parts;
}

void BackwardRun::operator()(Context& context) {
  const int threads = context.threads();
  const std::int64_t width = kernels_.width;
  head_rows_.find_angles(context);
  parts_ = lay_out(context, [&](Scratch& scratch) { return layout(scratch, threads); });
  const auto on_workers = [&](std::int64_t count, const auto& task) {
    parallel_for(context, count, threads, [&](std::int64_t i, int worker) {
      task(i, parts_.workers[static_cast<std::size_t>(worker)]);
    });
  };
  on_workers(packed_.tasks(),
             [&](std::int64_t task, const Worker& worker) { pack(task, worker.q); });
  on_workers(shape_.batch * shape_.heads, [&](std::int64_t task, const Worker& worker) {
    head(task / shape_.heads, task % shape_.heads, worker);
  });
  if (!keys_wanted()) return;
  parallel_for(context, packed_.tasks(), [&](std::int64_t task) {
    const std::int64_t kv_head = task / packed_.key_panels() % shape_.kv_heads;
    const std::int64_t first = task % packed_.key_panels() * width;
    sum_heads(task / packed_.key_panels() / shape_.kv_heads, kv_head, first,
              std::min<std::int64_t>(width, shape_.keys - first));
  });
}

void BackwardRun::pack(std::int64_t task, float* rows) const {
  const std::int64_t panel = task % packed_.key_panels();
  const std::int64_t kv_head = task / packed_.key_panels() % shape_.kv_heads;
  const std::int64_t b = task / packed_.key_panels() / shape_.kv_heads;
  const std::int64_t first = panel * kernels_.width;
  const std::int64_t count = std::min<std::int64_t>(kernels_.width, shape_.keys - first);
  head_rows_.load_keys(p_.k, b, first, count, kv_head, rows);
  packed_.pack(rows, count, b, kv_head, panel, parts_.k_by_rows, parts_.k_by_columns);
  head_rows_.load(p_.v, b, first, count, kv_head, rows);
  packed_.pack(rows, count, b, kv_head, panel, parts_.v_by_rows, nullptr);
}

void BackwardRun::head(std::int64_t b, std::int64_t head, const Worker& worker) const {
  if (keys_wanted()) {
    std::fill_n(parts_.dk + head_offset(b, head), shape_.keys * shape_.d, 0.0f);
    std::fill_n(parts_.dv + head_offset(b, head), shape_.keys * shape_.d, 0.0f);
  }
  const std::int64_t panels = ceil_div(shape_.queries, kernels_.rows);
  const std::int64_t blocks = ceil_div(panels, kBlockPanels);
  for (std::int64_t i = 0; i < blocks; ++i) {
    const std::int64_t first_panel = panels * i / blocks, last_panel = panels * (i + 1) / blocks;
    const std::int64_t first = shape_.queries * first_panel / panels;
    const std::int64_t last = shape_.queries * last_panel / panels;
    block({b, head, first, last - first, shape_.seen(last - 1)}, last_panel - first_panel, worker);
  }
}

void BackwardRun::block(const Block& block, std::int64_t panels, const Worker& worker) const {
  const std::int64_t d = shape_.d, width = kernels_.width;
  const std::int64_t kv_head = shape_.kv_head_of(block.head);
  head_rows_.load_queries(p_.q, block.b, block.first, block.count, block.head, worker.q);
  head_rows_.load(p_.dy, block.b, block.first, block.count, block.head, worker.dy);

  for (std::int64_t i = 0; i < panels; ++i) {
    const std::int64_t row = block.count * i / panels;
    const std::int64_t count = block.count * (i + 1) / panels - row;
    scores_of_panel(block, row, count, worker);
    if (!p_.dq.present()) continue;
    const std::int64_t seen = shape_.seen(block.first + row + count - 1);
    kernels_.pack_rows({worker.dp + row * ld_, DType::kFloat32, ld_, 1}, static_cast<int>(count),
                       seen, worker.x_panel);
    products(worker.x_panel, count, packed_.column_panel(parts_.k_by_columns, block.b, kv_head, 0),
             shape_.keys * width, seen, worker.dq, false);
    const std::int64_t query = block.first + row;
    head_rows_.turn_back(worker.dq, count, query + shape_.keys - shape_.queries);
    for (std::int64_t r = 0; r < count; ++r) {
      head_rows_.store(worker.dq + r * d, 1.0f, p_.dq, block.b, query + r, block.head);
    }
  }
  if (!keys_wanted()) return;
  for (std::int64_t j = 0; j * width < d; ++j) {
    const int cols = static_cast<int>(std::min<std::int64_t>(width, d - j * width));
    const std::int64_t at = j * block_rows_ * width;
    kernels_.pack_columns({worker.q + j * width, DType::kFloat32, 1, d}, cols, block.count,
                          worker.q_columns + at);
    kernels_.pack_columns({worker.dy + j * width, DType::kFloat32, 1, d}, cols, block.count,
                          worker.dy_columns + at);
  }
  const std::int64_t at = head_offset(block.b, block.head);
  if (p_.dk.present()) key_gradient(block, worker.dp, worker.q_columns, parts_.dk + at, worker);
  if (p_.dv.present())
    key_gradient(block, worker.scores, worker.dy_columns, parts_.dv + at, worker);
}

// Rows [row, row + count) of p and ds, zero up to the last key that the block sees.
void BackwardRun::scores_of_panel(const Block& block, std::int64_t row, std::int64_t count,
                                  const Worker& worker) const {
  const std::int64_t d = shape_.d, width = kernels_.width;
  const std::int64_t kv_head = shape_.kv_head_of(block.head);
  const std::int64_t seen = shape_.seen(block.first + row + count - 1);
  TileArgs tile;
  tile.rows = static_cast<int>(count);
  tile.cols = static_cast<int>(width);  // past the last key: lanes that nobody reads
  tile.steps = d;
  tile.x = worker.x_panel;
  tile.y_stride = ld_;
  const auto multiply = [&](const float* rows, const float* by_rows, float* out) {
    kernels_.pack_rows({rows + row * d, DType::kFloat32, d, 1}, static_cast<int>(count), d,
                       worker.x_panel);
    for (std::int64_t j = 0; j * width < seen; ++j) {
      tile.w = packed_.row_panel(by_rows, block.b, kv_head, j);
      tile.y = out + row * ld_ + j * width;
      kernels_.tile(tile);
    }
  };
  multiply(worker.q, parts_.k_by_rows, worker.scores);
  multiply(worker.dy, parts_.v_by_rows, worker.dp);

  const float* const logsumexp =
      p_.logsumexp.data_as<float>() + (block.b * shape_.heads + block.head) * shape_.queries;
  for (std::int64_t i = row; i < row + count; ++i) {
    const std::int64_t query = block.first + i, keys = shape_.seen(query);
    float* const p = worker.scores + i * ld_;
    float* const ds = worker.dp + i * ld_;
    head_rows_.load(p_.y, block.b, query, 1, block.head, worker.dq);
    const float delta = rows_.dot(worker.dy + i * d, worker.dq, d);
    softmax_.backward(p, ds, keys, shape_.options.scale, logsumexp[query], delta);
    std::fill(p + keys, p + block.seen, 0.0f);
    std::fill(ds + keys, ds + block.seen, 0.0f);
  }
}

// sum (keys, d) += factorsᵀ · (the rows whose column panels are `columns`).
void BackwardRun::key_gradient(const Block& block, const float* factors, const float* columns,
                               float* sum, const Worker& worker) const {
  const std::int64_t d = shape_.d, width = kernels_.width;
  const std::int64_t panels = ceil_div(block.seen, kernels_.rows);
  for (std::int64_t i = 0; i < panels; ++i) {
    const std::int64_t key = block.seen * i / panels;
    const std::int64_t count = block.seen * (i + 1) / panels - key;
    // Earlier queries of the block see none of these keys.
    const std::int64_t skip = std::max<std::int64_t>(0, shape_.first_query(key) - block.first);
    const std::int64_t steps = block.count - skip;
    // A whole stride of keys packs by vectors; the lanes past `count` are not used.
    kernels_.pack_rows({factors + skip * ld_ + key, DType::kFloat32, 1, ld_}, kernels_.stride,
                       steps, worker.x_panel);
    products(worker.x_panel, count, columns + skip * width, block_rows_ * width, steps,
             sum + key * d, true);
  }
}

// y (count, d) = or += x · (column panels, `panel_stride` elements apart).
void BackwardRun::products(const float* x_panel, std::int64_t count, const float* by_columns,
                           std::int64_t panel_stride, std::int64_t steps, float* y,
                           bool accumulate) const {
  const std::int64_t d = shape_.d, width = kernels_.width;
  TileArgs tile;
  tile.rows = static_cast<int>(count);
  tile.x = x_panel;
  tile.steps = steps;
  tile.y_stride = d;
  tile.accumulate = accumulate;
  for (std::int64_t j = 0; j * width < d; ++j) {
    tile.cols = static_cast<int>(std::min<std::int64_t>(width, d - j * width));
    tile.w = by_columns + j * panel_stride;
    tile.y = y + j * width;
    kernels_.tile(tile);
  }
}

void BackwardRun::sum_heads(std::int64_t b, std::int64_t kv_head, std::int64_t first,
                            std::int64_t count) const {
  const std::int64_t d = shape_.d, group = shape_.heads / shape_.kv_heads;
  const auto sum = [&](float* partial, const TensorView& out, bool turned) {
    float* const rows = partial + head_offset(b, kv_head * group) + first * d;
    for (std::int64_t h = 1; h < group; ++h) {
      rows_.add(rows + h * shape_.keys * d, 1.0f, count * d, rows);
    }
    if (turned) head_rows_.turn_back(rows, count, first);
    for (std::int64_t i = 0; i < count; ++i) {
      head_rows_.store(rows + i * d, 1.0f, out, b, first + i, kv_head);
    }
  };
  if (p_.dk.present()) sum(parts_.dk, p_.dk, true);
  if (p_.dv.present()) sum(parts_.dv, p_.dv, false);
}

}  // namespace

Support supports(const AttentionBackward& params) { return supports_heads(params.q); }

void attention_backward(Context& context, const AttentionBackward& params) {
  BackwardRun run(params);
  run(context);
}

std::size_t scratch_bytes(const AttentionBackward& params, int threads) {
  return BackwardRun(params).scratch_bytes(threads);
}

}  // namespace graft::cpu
