#include "graft/llm/model/llama_weights.h"

#include <fmt/format.h>

#include <cstdint>
#include <optional>
#include <utility>

#include "graft/llm/files/input_file.h"
#include "graft/llm/model/llama_tensors.h"
#include "graft/llm/user_error.h"
#include "graft/llm/weights/gguf_tensors.h"
#include "mlx/ops.h"

namespace graft::llm {
namespace {

// GGUF's 4-bit and 8-bit blocks of 32.
constexpr int kGroupSize = 32;

std::string shape_string(const mx::Shape& shape) {
  return fmt::format("({})", fmt::join(shape.begin(), shape.end(), ", "));
}

// Bits of one weight, from the words that hold a row and the groups in it.
int bits_of(const mx::array& words, const mx::array& scales) {
  return 32 * words.shape(-1) / (scales.shape(-1) * kGroupSize);
}

mx::array dequantize(const mx::array& words, const mx::array& scales, const mx::array& biases) {
  // Scales widened first: the products are then rounded to float32, not to float16.
  return mx::dequantize(words, mx::astype(scales, mx::float32), mx::astype(biases, mx::float32),
                        kGroupSize, bits_of(words, scales));
}

}  // namespace

Embedding::Embedding(mx::array rows) : rows_(std::move(rows)) {}

Embedding::Embedding(mx::array words, mx::array scales, mx::array biases)
    : rows_(std::move(words)), scales_(std::move(scales)), biases_(std::move(biases)) {}

mx::array Embedding::operator()(const mx::array& tokens) const {
  const mx::array rows = mx::take(rows_, tokens, 0);
  if (!scales_) return mx::astype(rows, mx::float32);
  return dequantize(rows, mx::take(*scales_, tokens, 0), mx::take(*biases_, tokens, 0));
}

mx::array Embedding::table() const {
  if (!scales_) return mx::astype(rows_, mx::float32);
  return dequantize(rows_, *scales_, *biases_);
}

mx::array rotary_rows_to_hugging_face(const mx::array& rows, int num_heads) {
  const int half = rows.shape(0) / num_heads / 2;
  const mx::array pairs = mx::reshape(rows, {num_heads, half, 2, rows.shape(1)});
  return mx::reshape(mx::swapaxes(pairs, 1, 2), rows.shape());
}

LlamaWeights::LlamaWeights(const GgufFile& file)
    : file_(file.name()), config_(read_llama_config(file)) {
  check_llama_tensors(file, config_);
  std::uint64_t bytes = 0;
  for (const GgufTensor& tensor : file.tensors()) bytes += tensor.bytes;
  check_fits_in_memory(bytes, file.name());
  tensors_ = read_gguf_tensors(file);
}

mx::array LlamaWeights::tensor(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw UserError(fmt::format("{}: tensor {} is missing", file_, name));
  }
  // Of quantized weights the scales and biases, in which alone a value can be other than finite.
  const mx::array& tensor = found->second;
  if (tensor.dtype() != mx::uint32 && !mx::all(mx::isfinite(tensor)).item<bool>()) {
    throw UserError(fmt::format(
        "{}: tensor {}: not all of its values are finite; is the file damaged?", file_, name));
  }
  return tensor;
}

mx::array LlamaWeights::matrix(const std::string& name, int rows, int columns,
                               int rotary_heads) const {
  const mx::array stored = tensor(name + ".weight");
  const mx::array weight = [&] {
    if (stored.dtype() != mx::uint32) return mx::astype(stored, mx::float32);
    return dequantize(stored, tensor(name + ".scales"), tensor(name + ".biases"));
  }();
  if (weight.shape() != mx::Shape{rows, columns}) {
    throw UserError(fmt::format("{}: tensor {}.weight: expected ({}, {}), got {}", file_, name,
                                rows, columns, shape_string(weight.shape())));
  }
  return rotary_heads ? rotary_rows_to_hugging_face(weight, rotary_heads) : weight;
}

mx::array LlamaWeights::vector(const std::string& name, int size) const {
  const mx::array weight = mx::astype(tensor(name + ".weight"), mx::float32);
  if (weight.shape() != mx::Shape{size}) {
    throw UserError(fmt::format("{}: tensor {}.weight: expected ({}), got {}", file_, name, size,
                                shape_string(weight.shape())));
  }
  return weight;
}

Embedding LlamaWeights::embedding() const {
  const mx::array rows = tensor("token_embd.weight");
  const bool quantized = rows.dtype() == mx::uint32;
  const Embedding embedding =
      quantized ? Embedding(rows, tensor("token_embd.scales"), tensor("token_embd.biases"))
                : Embedding(rows);
  const int width = embedding(mx::array({0})).shape(-1);
  if (width != config_.hidden_size) {
    throw UserError(fmt::format("{}: tensor token_embd.weight: rows of {} values, expected {}",
                                file_, width, config_.hidden_size));
  }
  return embedding;
}

bool LlamaWeights::head_is_tied() const { return !tensors_.contains("output.weight"); }

mx::array LlamaWeights::head() const {
  return matrix(head_is_tied() ? "token_embd" : "output", config_.vocab_size, config_.hidden_size);
}

mx::array LlamaWeights::final_norm() const { return vector("output_norm", config_.hidden_size); }

mx::array LlamaWeights::attention_norm(int layer) const {
  return vector(fmt::format("blk.{}.attn_norm", layer), config_.hidden_size);
}

mx::array LlamaWeights::mlp_norm(int layer) const {
  return vector(fmt::format("blk.{}.ffn_norm", layer), config_.hidden_size);
}

mx::array LlamaWeights::projection(int layer, Projection projection) const {
  const int rotary_heads = projection == Projection::kQ   ? config_.num_heads
                           : projection == Projection::kK ? config_.num_kv_heads
                                                          : 0;
  return matrix(fmt::format("blk.{}.{}", layer, gguf_name_of(projection)),
                config_.out_features(projection), config_.in_features(projection), rotary_heads);
}

}  // namespace graft::llm
