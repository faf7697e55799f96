#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "mlx/array.h"

namespace graft::llm::testing {

namespace mx = ::mlx::core;

/// A random Llama of a few thousand weights, with a tokenizer of single bytes and ChatML, that a
/// test writes as a GGUF file.
struct TinyModel {
  int num_layers = 2;
  int hidden_size = 32;
  int intermediate_size = 48;
  int num_heads = 4;
  int num_kv_heads = 2;
  int context_length = 128;
  float rope_theta = 10000.0f;
  float rope_scaling_factor = 1.0f;  ///< Written as a factor without a type, if not 1.
  float rms_norm_eps = 1e-5f;
  std::uint64_t seed = 1;
  std::vector<std::string> merges = {"a b"};  ///< Each makes a token more.

  int head_dim() const { return hidden_size / num_heads; }
  int vocab_size() const;

  /// The tensors under their names in the file, float32, rows in the file's order.
  std::unordered_map<std::string, mx::array> tensors() const;

  void write(const std::string& path) const;
};

/// A folder of its own below the system's temporary one, removed with everything in it.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

void write_text(const std::string& path, const std::string& text);
std::string read_text(const std::string& path);

}  // namespace graft::llm::testing
