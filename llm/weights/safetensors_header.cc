#include "graft/llm/weights/safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <istream>
#include <limits>
#include <string_view>
#include <vector>

#include "graft/llm/files/json_text.h"
#include "graft/llm/files/printable.h"
#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

using nlohmann::json;

constexpr std::size_t kLengthBytes = 8;
// The format allows 100 MB, which as JSON would take gigabytes; an adapter of a model with hundreds
// of layers has less than 1 MB.
constexpr std::uint64_t kMaxJsonBytes = std::uint64_t{16} << 20;

struct Extent {
  std::uint64_t begin;
  std::uint64_t end;
  std::string name;
};

std::uint64_t read_length(std::istream& in, std::uint64_t size, const std::string& path) {
  char bytes[kLengthBytes];
  if (size < kLengthBytes || !in.read(bytes, sizeof bytes)) {
    throw UserError(fmt::format("{}: too short to be a safetensors file", path));
  }
  std::uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;) {
    length = length << 8 | static_cast<std::uint8_t>(bytes[i]);
  }
  if (length > kMaxJsonBytes || length > size - kLengthBytes) {
    throw UserError(fmt::format("{}: the header claims {} bytes of a file of {}; is it cut off?",
                                path, length, size));
  }
  return length;
}

std::uint64_t element_bytes(const std::string& dtype) {
  if (dtype == "F32") return 4;
  if (dtype == "F16" || dtype == "BF16") return 2;
  return 0;
}

bool is_unsigned_list(const json& value, std::size_t longest) {
  return value.is_array() && value.size() <= longest &&
         std::all_of(value.begin(), value.end(),
                     [](const json& item) { return item.is_number_unsigned(); });
}

// MLX takes for granted that they are strings.
void check_metadata(const json& entry, const std::string& path) {
  const bool fine = entry.is_object() && std::all_of(entry.begin(), entry.end(),
                                                     [](const json& v) { return v.is_string(); });
  if (!fine) throw UserError(path + ": __metadata__: expected an object of strings");
}

Extent check_tensor(const json& entry, const std::string& name, std::uint64_t data_bytes,
                    const std::string& path) {
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
  if (bytes == 0) {
    fail(fmt::format("type {} is not supported; expected F32, F16 or BF16", printable(dtype)));
  }
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
  return {begin, end, name};
}

void check_apart(std::vector<Extent> extents, const std::string& path) {
  std::ranges::sort(extents, [](const Extent& a, const Extent& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  for (std::size_t i = 1; i < extents.size(); ++i) {
    if (extents[i - 1].end > extents[i].begin) {
      throw UserError(fmt::format("{}: tensor {} overlaps tensor {}", path, extents[i].name,
                                  extents[i - 1].name));
    }
  }
}

}  // namespace

void check_safetensors_header(std::istream& in, std::uint64_t size, const std::string& path) {
  const std::uint64_t length = read_length(in, size, path);
  std::string text(length, '\0');
  if (!in.read(text.data(), static_cast<std::streamsize>(length))) {
    throw UserError(fmt::format("{}: the header cannot be read", path));
  }
  const json header = parse_json_object(text, path + ": header");
  const std::uint64_t data_bytes = size - kLengthBytes - length;
  std::vector<Extent> extents;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      check_metadata(entry, path);
    } else {
      extents.push_back(check_tensor(entry, printable(name, 160), data_bytes, path));
    }
  }
  check_apart(std::move(extents), path);
}

}  // namespace graft::llm
