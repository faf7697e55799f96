#include "graft/llm/model/llama_tensors.h"

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "graft/llm/model/projection.h"
#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

using Shape = std::vector<std::int64_t>;

// What read_gguf_tensors takes.
bool is_readable(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
    case GgmlType::kF16:
    case GgmlType::kBF16:
    case GgmlType::kQ4_0:
    case GgmlType::kQ4_1:
    case GgmlType::kQ8_0:
    case GgmlType::kQ4_K:
    case GgmlType::kQ6_K:
      return true;
    default:
      return false;
  }
}

// Takes tensors out of the file's list, one expected tensor at a time.
class TensorList {
 public:
  explicit TensorList(const GgufFile& file) : file_(file) {
    for (const GgufTensor& tensor : file.tensors()) left_.emplace(tensor.name, &tensor);
  }

  void take(const std::string& name, const Shape& shape) {
    const auto found = left_.find(name);
    if (found == left_.end()) fail(name, "is missing; is the file whole, and of a Llama model?");
    const GgufTensor& tensor = *found->second;
    const GgmlTypeInfo& info = info_of(tensor.type);
    if (!is_readable(tensor.type)) {
      fail(name, fmt::format("type {} is not supported; use a file of F32, F16, BF16, Q4_0, Q4_1, "
                             "Q8_0, Q4_K or Q6_K",
                             info.name));
    }
    if (tensor.shape != shape) {
      fail(name, fmt::format("expected ({}), got ({}); the file contradicts its own metadata",
                             fmt::join(shape, ", "), fmt::join(tensor.shape, ", ")));
    }
    if (info.block_elements > 1 && shape.size() == 1) {
      fail(name, fmt::format("type {} is not supported here", info.name));
    }
    left_.erase(found);
  }

  bool has(const std::string& name) const { return left_.contains(name); }

  void expect_empty() const {
    // The first of the file, so that the message is always the same.
    for (const GgufTensor& tensor : file_.tensors()) {
      if (has(tensor.name)) {
        fail(tensor.name, "is not part of a model that Graft runs: plain Llama, without biases");
      }
    }
  }

 private:
  [[noreturn]] void fail(const std::string& name, const std::string& what) const {
    throw UserError(fmt::format("{}: tensor {}: {}", file_.name(), name, what));
  }

  const GgufFile& file_;
  std::unordered_map<std::string_view, const GgufTensor*> left_;
};

}  // namespace

void check_llama_tensors(const GgufFile& file, const LlamaConfig& config) {
  TensorList list(file);
  list.take("token_embd.weight", {config.vocab_size, config.hidden_size});
  list.take("output_norm.weight", {config.hidden_size});
  if (list.has("output.weight")) {
    list.take("output.weight", {config.vocab_size, config.hidden_size});
  }
  for (int layer = 0; layer < config.num_layers; ++layer) {
    for (const char* norm : {"attn_norm", "ffn_norm"}) {
      list.take(fmt::format("blk.{}.{}.weight", layer, norm), {config.hidden_size});
    }
    for (const Projection projection : kAllProjections) {
      list.take(fmt::format("blk.{}.{}.weight", layer, gguf_name_of(projection)),
                {config.out_features(projection), config.in_features(projection)});
    }
  }
  list.expect_empty();
}

}  // namespace graft::llm
