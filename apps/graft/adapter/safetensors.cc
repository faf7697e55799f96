#include "apps/graft/adapter/safetensors.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>

#include "apps/graft/user_error.h"
#include "mlx/io.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace graft::app {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

struct Header {
  json entries;
  std::uint64_t data_bytes = 0;
};

Header read_header(const std::string& path) {
  std::error_code error;
  const std::uint64_t size = std::filesystem::file_size(path, error);
  std::ifstream in(path, std::ios::binary);
  if (error || !in) {
    throw UserError(fmt::format("{}: cannot be read: {}", path,
                                error ? error.message() : std::strerror(errno)));
  }
  std::uint64_t length = 0;
  char bytes[kLengthBytes];
  if (size < kLengthBytes || !in.read(bytes, sizeof bytes)) {
    throw UserError(fmt::format("{}: too short to be a safetensors file", path));
  }
  for (std::size_t i = kLengthBytes; i-- > 0;) {
    length = length << 8 | static_cast<std::uint8_t>(bytes[i]);
  }
  if (length > kMaxHeaderBytes || length > size - kLengthBytes) {
    throw UserError(
        fmt::format("{}: the header claims {} bytes of a file of {}", path, length, size));
  }
  std::string text(length, '\0');
  if (!in.read(text.data(), static_cast<std::streamsize>(length))) {
    throw UserError(fmt::format("{}: the header cannot be read", path));
  }
  Header header{json::parse(text, nullptr, false), size - kLengthBytes - length};
  if (!header.entries.is_object()) {
    throw UserError(fmt::format("{}: the header is not a JSON object", path));
  }
  return header;
}

std::uint64_t element_bytes(const std::string& dtype) {
  if (dtype == "F32") return 4;
  if (dtype == "F16" || dtype == "BF16") return 2;
  return 0;
}

bool is_unsigned_list(const json& value, std::size_t longest) {
  if (!value.is_array() || value.size() > longest) return false;
  for (const json& item : value) {
    if (!item.is_number_unsigned()) return false;
  }
  return true;
}

void check_tensor(const std::string& path, const std::string& name, const json& entry,
                  std::uint64_t data_bytes) {
  const auto fail = [&](const std::string& what) {
    throw UserError(fmt::format("{}: tensor {}: {}", path, name, what));
  };
  if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string() ||
      !entry.contains("shape") || !is_unsigned_list(entry["shape"], 8) ||
      !entry.contains("data_offsets") || !is_unsigned_list(entry["data_offsets"], 2) ||
      entry["data_offsets"].size() != 2) {
    fail("its entry in the header is malformed");
  }
  const std::string dtype = entry["dtype"];
  std::uint64_t bytes = element_bytes(dtype);
  if (bytes == 0) fail(fmt::format("type {} is not supported; expected F32, F16 or BF16", dtype));
  for (const json& item : entry["shape"]) {
    const auto dim = item.get<std::uint64_t>();
    if (dim > std::numeric_limits<std::int32_t>::max()) fail("its shape is too large");
    if (dim != 0 && bytes > data_bytes / dim) fail("its shape needs more data than the file has");
    bytes *= dim;
  }
  const auto begin = entry["data_offsets"][0].get<std::uint64_t>();
  const auto end = entry["data_offsets"][1].get<std::uint64_t>();
  if (begin > end || end > data_bytes || end - begin != bytes) {
    fail(fmt::format("offsets [{}, {}) do not fit its {} bytes in a file with {} bytes of data",
                     begin, end, bytes, data_bytes));
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

  std::string text = header.dump();
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

std::unordered_map<std::string, mx::array> read_safetensors(const std::string& path) {
  const Header header = read_header(path);
  for (const auto& [name, entry] : header.entries.items()) {
    if (name != "__metadata__") check_tensor(path, name, entry, header.data_bytes);
  }
  std::unordered_map<std::string, mx::array> tensors = mx::load_safetensors(path).first;
  for (auto& [name, tensor] : tensors) {
    tensor = mx::astype(tensor, mx::float32);
    mx::eval(tensor);
  }
  return tensors;
}

}  // namespace graft::app
