// Forward attention, for one row panel of queries (14 with AVX-512) at a time:
//
//     s (rows, keys) = q·kᵀ   →   p = exp(scale·s − max)   →   y = p·v / Σ p
//
// All keys that the panel sees are in s at once, so no sum needs rescaling. k and v are packed once
// for every key head; products run on the register tiles of the library. 4·d FLOPs for each pair of
// a query and a key that it sees, plus at most a panel's triangle.

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "attention/heads.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/softmax.h"
#include "backend/cpu/threads.h"

namespace graft::cpu {
namespace {

// Row panels of a task. More share nothing; fewer cost more hand-outs.
constexpr std::int64_t kTaskPanels = 4;
// Up to this many queries (decoding), keys are read as they lie: packing them would cost more than
// the products.
constexpr std::int64_t kFewQueries = 2;

class ForwardRun {
 public:
  explicit ForwardRun(const AttentionForward& params)
      : p_(params),
        shape_(params.q, params.k, params.options),
        kernels_(kernels_for(DType::kFloat32)),
        softmax_(softmax_kernels()),
        rows_(row_kernels()),
        head_rows_(shape_, rows_),
        packed_(shape_, kernels_),
        ld_(packed_.key_panels() * kernels_.width) {}

  void operator()(Context& context);
  std::size_t scratch_bytes(int threads) const {
    return bytes_of([&](Scratch& scratch) { return layout(scratch, threads); });
  }

 private:
  struct Worker {
    float* rows;     // of q or of a key panel
    float* q_panel;  // row panel of q; of few queries, their rows
    float* scores;   // [row][ld_]
    float* p_panel;  // row panel of p
    float* y;        // [row][d]
  };

  struct Parts {
    float* k_by_rows;
    float* v_by_columns;
    std::vector<Worker> workers;
  };

  // Keys are read as they lie, and nothing is packed.
  bool few_queries() const { return shape_.queries <= kFewQueries; }
  Parts layout(Scratch& scratch, int threads) const;
  void decode(std::int64_t b, std::int64_t kv_head, const Worker& worker) const;
  void pack(std::int64_t task, const Worker& worker) const;
  void panel(std::int64_t b, std::int64_t head, std::int64_t first, std::int64_t count,
             const Worker& worker) const;
  float softmax(float* scores, std::int64_t b, std::int64_t head, std::int64_t query) const;

  const AttentionForward& p_;
  const AttentionShape shape_;
  const Kernels& kernels_;
  const SoftmaxKernels& softmax_;
  const RowKernels& rows_;
  HeadRows head_rows_;
  const KeyPanels packed_;
  const std::int64_t ld_;
  Parts parts_;
};

ForwardRun::Parts ForwardRun::layout(Scratch& scratch, int threads) const {
  const std::int64_t d = shape_.d;
  const bool few = few_queries();
  const std::int64_t rows = std::max<std::int64_t>(kernels_.width, few ? 0 : kernels_.stride);
  // Rows of scores: a row panel's, or every query of the heads that read one key head.
  const std::int64_t group = shape_.heads / shape_.kv_heads * shape_.queries;
  const std::int64_t score_rows = few ? group : kernels_.rows;
  Parts parts;
  parts.k_by_rows = scratch.take<float>(few ? 0 : packed_.by_rows_size());
  parts.v_by_columns = scratch.take<float>(few ? 0 : packed_.by_columns_size());
  for (int i = 0; i < threads; ++i) {
    Worker worker;
    worker.rows = scratch.take<float>(rows * d);
    worker.q_panel = scratch.take<float>((few ? group : kernels_.stride) * d);
    worker.scores = scratch.take<float>(score_rows * ld_);
    worker.p_panel = scratch.take<float>(few ? 0 : kernels_.stride * ld_);
    worker.y = scratch.take<float>(score_rows * d);
    parts.workers.push_back(worker);
  }
  return parts;
}

void ForwardRun::operator()(Context& context) {
  if (shape_.batch == 0 || shape_.heads == 0 || shape_.queries == 0) return;
  const int threads = context.threads();
  head_rows_.find_angles(context);
  parts_ = lay_out(context, [&](Scratch& scratch) { return layout(scratch, threads); });
  const auto on_workers = [&](std::int64_t count, const auto& task) {
    parallel_for(context, count, threads, [&](std::int64_t i, int worker) {
      task(i, parts_.workers[static_cast<std::size_t>(worker)]);
    });
  };
  if (few_queries()) {
    on_workers(shape_.batch * shape_.kv_heads, [&](std::int64_t task, const Worker& worker) {
      decode(task / shape_.kv_heads, task % shape_.kv_heads, worker);
    });
    return;
  }
  on_workers(packed_.tasks(), [&](std::int64_t task, const Worker& worker) { pack(task, worker); });
  const std::int64_t panels = ceil_div(shape_.queries, kernels_.rows);
  const std::int64_t blocks = ceil_div(panels, kTaskPanels);
  const std::int64_t each = shape_.batch * shape_.heads;
  on_workers(blocks * each, [&](std::int64_t task, const Worker& worker) {
    const std::int64_t block = blocks - 1 - task / each;  // the last ones see most keys
    const std::int64_t b = task % each / shape_.heads, head = task % each % shape_.heads;
    for (std::int64_t i = panels * block / blocks; i < panels * (block + 1) / blocks; ++i) {
      const std::int64_t first = shape_.queries * i / panels;
      panel(b, head, first, shape_.queries * (i + 1) / panels - first, worker);
    }
  });
}

void ForwardRun::pack(std::int64_t task, const Worker& worker) const {
  const std::int64_t panel = task % packed_.key_panels();
  const std::int64_t head = task / packed_.key_panels() % shape_.kv_heads;
  const std::int64_t b = task / packed_.key_panels() / shape_.kv_heads;
  const std::int64_t first = panel * kernels_.width;
  const std::int64_t count = std::min<std::int64_t>(kernels_.width, shape_.keys - first);
  head_rows_.load_keys(p_.k, b, first, count, head, worker.rows);
  packed_.pack(worker.rows, count, b, head, panel, parts_.k_by_rows, nullptr);
  head_rows_.load(p_.v, b, first, count, head, worker.rows);
  packed_.pack(worker.rows, count, b, head, panel, nullptr, parts_.v_by_columns);
}

// scores = p unnormalised; writes logsumexp and returns the factor that normalises.
float ForwardRun::softmax(float* scores, std::int64_t b, std::int64_t head,
                          std::int64_t query) const {
  const float scale = shape_.options.scale;
  const std::int64_t seen = shape_.seen(query);
  float logsumexp = -std::numeric_limits<float>::infinity(), factor = 0.0f;
  if (seen > 0) {
    const float max = softmax_.max(scores, seen) * scale;
    const float sum = softmax_.exp(scores, seen, scale, max);
    logsumexp = max + std::log(sum);
    factor = 1.0f / sum;
  }
  if (p_.logsumexp.present()) {
    p_.logsumexp.mutable_data_as<float>()[(b * shape_.heads + head) * shape_.queries + query] =
        logsumexp;
  }
  return factor;
}

void ForwardRun::panel(std::int64_t b, std::int64_t head, std::int64_t first, std::int64_t count,
                       const Worker& worker) const {
  const std::int64_t d = shape_.d, width = kernels_.width;
  const std::int64_t kv_head = shape_.kv_head_of(head);
  const std::int64_t seen = shape_.seen(first + count - 1);
  head_rows_.load_queries(p_.q, b, first, count, head, worker.rows);
  kernels_.pack_rows({worker.rows, DType::kFloat32, d, 1}, static_cast<int>(count), d,
                     worker.q_panel);
  TileArgs tile;
  tile.rows = static_cast<int>(count);
  tile.x = worker.q_panel;
  tile.steps = d;
  tile.y_stride = ld_;
  tile.cols = static_cast<int>(width);  // past the last key: lanes that nobody reads
  for (std::int64_t j = 0; j * width < seen; ++j) {
    tile.w = packed_.row_panel(parts_.k_by_rows, b, kv_head, j);
    tile.y = worker.scores + j * width;
    kernels_.tile(tile);
  }

  float factors[64];
  for (std::int64_t i = 0; i < count; ++i) {
    float* const scores = worker.scores + i * ld_;
    factors[i] = softmax(scores, b, head, first + i);
    std::fill(scores + std::max<std::int64_t>(0, shape_.seen(first + i)), scores + seen, 0.0f);
  }
  kernels_.pack_rows({worker.scores, DType::kFloat32, ld_, 1}, static_cast<int>(count), seen,
                     worker.p_panel);
  tile.x = worker.p_panel;
  tile.steps = seen;
  tile.y_stride = d;
  for (std::int64_t j = 0; j * width < d; ++j) {
    tile.cols = static_cast<int>(std::min<std::int64_t>(width, d - j * width));
    tile.w = packed_.column_panel(parts_.v_by_columns, b, kv_head, j);
    tile.y = worker.y + j * width;
    kernels_.tile(tile);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    head_rows_.store(worker.y + i * d, factors[i], p_.y, b, first + i, head);
  }
}

// All queries of the query heads that read one key head, against each of its keys in turn.
void ForwardRun::decode(std::int64_t b, std::int64_t kv_head, const Worker& worker) const {
  const std::int64_t d = shape_.d, width = kernels_.width, queries = shape_.queries;
  const std::int64_t heads = shape_.heads / shape_.kv_heads, first_head = kv_head * heads;
  for (std::int64_t h = 0; h < heads; ++h) {
    head_rows_.load_queries(p_.q, b, 0, queries, first_head + h, worker.q_panel + h * queries * d);
  }
  for (std::int64_t first = 0; first < shape_.keys; first += width) {
    const std::int64_t count = std::min<std::int64_t>(width, shape_.keys - first);
    head_rows_.load_keys(p_.k, b, first, count, kv_head, worker.rows);
    for (std::int64_t r = 0; r < heads * queries; ++r) {
      for (std::int64_t j = 0; j < count; ++j) {
        worker.scores[r * ld_ + first + j] =
            rows_.dot(worker.q_panel + r * d, worker.rows + j * d, d);
      }
    }
  }
  float* const factors = worker.q_panel;  // q is used up; one a row
  for (std::int64_t r = 0; r < heads * queries; ++r) {
    factors[r] = softmax(worker.scores + r * ld_, b, first_head + r / queries, r % queries);
  }
  std::fill_n(worker.y, heads * queries * d, 0.0f);
  for (std::int64_t first = 0; first < shape_.keys; first += width) {
    const std::int64_t count = std::min<std::int64_t>(width, shape_.keys - first);
    head_rows_.load(p_.v, b, first, count, kv_head, worker.rows);
    for (std::int64_t r = 0; r < heads * queries; ++r) {
      const std::int64_t last = std::min(count, shape_.seen(r % queries) - first);
      for (std::int64_t j = 0; j < last; ++j) {
        rows_.add(worker.rows + j * d, worker.scores[r * ld_ + first + j], d, worker.y + r * d);
      }
    }
  }
  for (std::int64_t r = 0; r < heads * queries; ++r) {
    head_rows_.store(worker.y + r * d, factors[r], p_.y, b, r % queries, first_head + r / queries);
  }
}

}  // namespace

Support supports_heads(const ConstTensorView& q) {
  if (q.rank() == 4 && (q.dim(3) % 8 != 0 || q.dim(3) == 0 || q.dim(3) > kMaxHeadDim)) {
    return Support::no("q: head dimension " + std::to_string(q.dim(3)) +
                       " has no kernel, multiples of 8 up to " + std::to_string(kMaxHeadDim) +
                       " do");
  }
  return float_on_cpu("q", q);
}

Support supports(const AttentionForward& params) { return supports_heads(params.q); }

void attention_forward(Context& context, const AttentionForward& params) {
  ForwardRun run(params);
  run(context);
}

std::size_t scratch_bytes(const AttentionForward& params, int threads) {
  return ForwardRun(params).scratch_bytes(threads);
}

}  // namespace graft::cpu
