#include "graft/llm/weights/safetensors.h"

#include <fmt/format.h>

#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "graft/llm/files/input_file.h"
#include "graft/llm/files/json_text.h"
#include "graft/llm/user_error.h"
#include "graft/llm/weights/safetensors_header.h"
#include "mlx/io.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace graft::llm {
namespace {

using nlohmann::ordered_json;

constexpr std::size_t kLengthBytes = 8;

void check_header(const std::string& path) {
  std::ifstream in = open_input(path);
  std::error_code error;
  const std::uint64_t size = std::filesystem::file_size(path, error);
  if (error) throw UserError(fmt::format("{}: cannot be read: {}", path, error.message()));
  check_safetensors_header(in, size, path);
  check_fits_in_memory(size, path);
}

Safetensors load(const std::string& path) {
  try {
    auto [tensors, metadata] = mx::load_safetensors(path);
    return {std::move(tensors), std::move(metadata)};
  } catch (const std::exception& error) {
    throw UserError(fmt::format("{}: MLX cannot read it: {}", path, error.what()));
  }
}

}  // namespace

std::string to_safetensors(const std::vector<std::pair<std::string, mx::array>>& tensors,
                           const std::map<std::string, std::string>& metadata) {
  ordered_json header;
  for (const auto& [key, value] : metadata) header["__metadata__"][key] = value;
  header["__metadata__"]["format"] = "pt";  // PEFT and transformers ask for it
  std::vector<mx::array> dense;
  std::uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    dense.push_back(mx::contiguous(mx::astype(tensor, mx::float32)));
    const std::uint64_t end = offset + dense.back().nbytes();
    const mx::Shape& shape = dense.back().shape();
    header[name] = {{"dtype", "F32"},
                    {"shape", std::vector<std::int64_t>(shape.begin(), shape.end())},
                    {"data_offsets", {offset, end}}};
    offset = end;
  }
  mx::eval(dense);

  std::string text = lossy_json_text(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // data starts aligned
  std::string bytes;
  bytes.reserve(kLengthBytes + text.size() + offset);
  for (std::size_t i = 0; i < kLengthBytes; ++i) {
    bytes += static_cast<char>(text.size() >> (8 * i) & 0xFF);
  }
  bytes += text;
  for (const mx::array& tensor : dense) bytes.append(tensor.data<char>(), tensor.nbytes());
  return bytes;
}

Safetensors read_safetensors(const std::string& path) {
  check_header(path);
  Safetensors file = load(path);
  for (auto& [name, tensor] : file.tensors) {
    tensor = mx::astype(tensor, mx::float32);
    mx::eval(tensor);
  }
  return file;
}

}  // namespace graft::llm
