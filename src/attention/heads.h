#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "backend/cpu/rotary_angles.h"
#include "backend/cpu/rows.h"
#include "checks.h"
#include "graft/attention.h"
#include "product/cpu/kernels.h"
#include "weight/cpu/panels.h"

// What forward, backward and decoding share: the shape, and how rows of one head are read and
// written through strides, in float32 and turned.

namespace graft::cpu {

/// What both directions ask of a head.
Support supports_heads(const ConstTensorView& q);

struct AttentionShape {
  std::int64_t batch, queries, keys, heads, kv_heads, d;
  AttentionOptions options;

  AttentionShape(const ConstTensorView& q, const ConstTensorView& k, const AttentionOptions& o)
      : batch(q.dim(0)),
        queries(q.dim(1)),
        keys(k.dim(1)),
        heads(q.dim(2)),
        kv_heads(k.dim(2)),
        d(q.dim(3)),
        options(o) {}

  std::int64_t kv_head_of(std::int64_t head) const { return head / (heads / kv_heads); }

  /// Keys that query `i` sees: [0, seen(i)).
  std::int64_t seen(std::int64_t i) const {
    return options.causal ? i + 1 + (keys - queries) : keys;
  }

  /// The first query that sees key `j`.
  std::int64_t first_query(std::int64_t j) const {
    return options.causal ? std::max<std::int64_t>(0, j - (keys - queries)) : 0;
  }
};

/// Reads and writes rows of one head; queries and keys are turned on the way.
class HeadRows {
 public:
  HeadRows(const AttentionShape& shape, const RowKernels& rows) : shape_(shape), rows_(rows) {
    if (shape.options.rotary.enabled) {
      angles_ = rotary_angles(shape.options.rotary, shape.d / 2, shape.keys);
    }
  }

  /// The first element of (b, t, head).
  static const std::byte* address(const ConstTensorView& x, std::int64_t b, std::int64_t t,
                                  std::int64_t head) {
    const std::int64_t offset = b * x.stride(0) + t * x.stride(1) + head * x.stride(2);
    return static_cast<const std::byte*>(x.data()) +
           offset * static_cast<std::int64_t>(size_of(x.dtype()));
  }

  /// Rows [t, t + count) of a head as dense float32 (count, d).
  void load(const ConstTensorView& x, std::int64_t b, std::int64_t t, std::int64_t count,
            std::int64_t head, float* to) const {
    for (std::int64_t i = 0; i < count; ++i) {
      rows_.load(address(x, b, t + i, head), x.dtype(), shape_.d, to + i * shape_.d);
    }
  }

  void load_queries(const ConstTensorView& q, std::int64_t b, std::int64_t t, std::int64_t count,
                    std::int64_t head, float* to) const {
    load(q, b, t, count, head, to);
    turn(to, count, t + shape_.keys - shape_.queries, 1.0f);
  }

  void load_keys(const ConstTensorView& k, std::int64_t b, std::int64_t t, std::int64_t count,
                 std::int64_t head, float* to) const {
    load(k, b, t, count, head, to);
    turn(to, count, t, 1.0f);
  }

  /// Turns gradients of turned rows back; `first` is where the first row stands among the keys.
  void turn_back(float* rows, std::int64_t count, std::int64_t first) const {
    turn(rows, count, first, -1.0f);
  }

  /// factor · row to (b, t, head).
  void store(const float* row, float factor, const TensorView& x, std::int64_t b, std::int64_t t,
             std::int64_t head) const {
    rows_.store(row, factor, shape_.d, const_cast<std::byte*>(address(x, b, t, head)), x.dtype());
  }

 private:
  void turn(float* rows, std::int64_t count, std::int64_t first, float sign) const {
    if (angles_ == nullptr) return;
    const Rotary& rotary = shape_.options.rotary;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t position = rotary.position + first + i;
      rows_.turn(rows + i * shape_.d, shape_.d / 2, angles_->cos_at(position),
                 angles_->sin_at(position), sign, rotary.interleaved);
    }
  }

  const AttentionShape& shape_;
  const RowKernels& rows_;
  std::shared_ptr<const RotaryAngles> angles_;
};

/// Column panels (kernels.h) of every key and value head, in the two roles that a matrix (keys, d)
/// can have as right factor: its rows as columns of the product (q·kᵀ), or its columns (p·v).
class KeyPanels {
 public:
  KeyPanels(const AttentionShape& shape, const Kernels& kernels)
      : shape_(shape), kernels_(kernels), key_panels_(ceil_div(shape.keys, kernels.width)) {}

  std::int64_t key_panels() const { return key_panels_; }
  std::int64_t tasks() const { return shape_.batch * shape_.kv_heads * key_panels_; }

  /// float32 elements for all heads, by rows and by columns.
  std::int64_t by_rows_size() const { return heads() * by_rows_stride(); }
  std::int64_t by_columns_size() const { return heads() * by_columns_stride(); }

  /// Panel `panel` of the keys of a head: products with each of its keys.
  const float* row_panel(const float* by_rows, std::int64_t b, std::int64_t kv_head,
                         std::int64_t panel) const {
    return by_rows + head(b, kv_head) * by_rows_stride() + panel * shape_.d * kernels_.width;
  }

  /// Panel `panel` of the d features of a head: a sum over all of its keys.
  const float* column_panel(const float* by_columns, std::int64_t b, std::int64_t kv_head,
                            std::int64_t panel) const {
    return by_columns + head(b, kv_head) * by_columns_stride() +
           panel * shape_.keys * kernels_.width;
  }

  /// Packs `count` dense rows of a head, those of key panel `panel`, into either role or both.
  void pack(const float* rows, std::int64_t count, std::int64_t b, std::int64_t kv_head,
            std::int64_t panel, float* by_rows, float* by_columns) const {
    const std::int64_t d = shape_.d, width = kernels_.width;
    if (by_rows != nullptr) {
      kernels_.pack_columns({rows, DType::kFloat32, d, 1}, static_cast<int>(count), d,
                            const_cast<float*>(row_panel(by_rows, b, kv_head, panel)));
    }
    if (by_columns == nullptr) return;
    for (std::int64_t j = 0; j * width < d; ++j) {
      kernels_.pack_columns(
          {rows + j * width, DType::kFloat32, 1, d},
          static_cast<int>(std::min<std::int64_t>(width, d - j * width)), count,
          const_cast<float*>(column_panel(by_columns, b, kv_head, j)) + panel * width * width);
    }
  }

 private:
  std::int64_t heads() const { return shape_.batch * shape_.kv_heads; }
  std::int64_t head(std::int64_t b, std::int64_t kv_head) const {
    return b * shape_.kv_heads + kv_head;
  }
  std::int64_t by_rows_stride() const { return key_panels_ * shape_.d * kernels_.width; }
  std::int64_t by_columns_stride() const {
    return ceil_div(shape_.d, kernels_.width) * shape_.keys * kernels_.width;
  }

  const AttentionShape& shape_;
  const Kernels& kernels_;
  const std::int64_t key_panels_;
};

}  // namespace graft::cpu
