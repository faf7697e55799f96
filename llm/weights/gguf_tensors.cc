// The layouts of blocks are those of ggml (ggml-common.h): "d" is a block's scale.

#include "graft/llm/weights/gguf_tensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "graft/llm/user_error.h"
#include "mlx/allocator.h"
#include "mlx/types/half_types.h"

namespace graft::llm {
namespace {

using Tensors = std::unordered_map<std::string, mx::array>;

/// Reads at places of a file, and may be told lies about its length.
class Source {
 public:
  explicit Source(const std::string& path)
      : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) fail(fmt::format("cannot be read: {}", std::strerror(errno)));
  }
  ~Source() { ::close(fd_); }
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  void read(std::uint64_t offset, std::uint64_t bytes, std::uint8_t* to) const {
    while (bytes > 0) {
      const ssize_t count = ::pread(fd_, to, bytes, static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail(fmt::format("reading failed: {}", std::strerror(errno)));
      if (count == 0) fail("became shorter while it was read");
      offset += static_cast<std::uint64_t>(count);
      bytes -= static_cast<std::uint64_t>(count);
      to += count;
    }
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw UserError(fmt::format("{}: {}", path_, what));
  }

  const std::string& path_;
  int fd_;
};

/// An array whose elements are written through a pointer before anyone reads them.
struct Written {
  Written(mx::Shape shape, mx::Dtype dtype) : array(allocate(std::move(shape), dtype)) {}

  std::uint8_t* bytes() { return array.data<std::uint8_t>(); }
  mx::float16_t* halves() { return array.data<mx::float16_t>(); }

  mx::array array;

 private:
  static mx::array allocate(mx::Shape shape, mx::Dtype dtype) {
    std::size_t bytes = dtype.size();
    for (const auto dim : shape) bytes *= static_cast<std::size_t>(dim);
    return mx::array(mx::allocator::malloc(bytes), std::move(shape), dtype);
  }
};

float half_at(const std::uint8_t* from) {
  mx::float16_t value;
  std::memcpy(&value, from, sizeof value);
  return static_cast<float>(value);
}

// Calls use(blocks, first, count) for all blocks of a tensor, a part at a time.
template <class Use>
void for_blocks(const Source& source, const GgufTensor& tensor, Use&& use) {
  constexpr std::uint64_t kPart = 4096;
  const std::uint64_t block = info_of(tensor.type).block_bytes;
  const std::uint64_t all = tensor.bytes / block;
  std::vector<std::uint8_t> bytes(std::min(all, kPart) * block);
  for (std::uint64_t first = 0; first < all; first += kPart) {
    const std::uint64_t count = std::min(kPart, all - first);
    source.read(tensor.offset + first * block, count * block, bytes.data());
    use(bytes.data(), first, count);
  }
}

mx::Shape with_last(const GgufTensor& tensor, std::int64_t last) {
  mx::Shape shape(tensor.shape.begin(), tensor.shape.end());
  shape.back() = static_cast<mx::ShapeElem>(last);
  return shape;
}

// Elements j and 16 + j share byte j of a block; here 2j and 2j + 1 share one.
void spread_nibbles(const std::uint8_t* block, std::uint8_t* out) {
  for (int j = 0; j < 8; ++j) {
    const std::uint8_t even = block[2 * j], odd = block[2 * j + 1];
    out[j] = static_cast<std::uint8_t>((even & 0x0F) | (odd & 0x0F) << 4);
    out[8 + j] = static_cast<std::uint8_t>(even >> 4 | (odd & 0xF0));
  }
}

// Blocks of 32: d, with Q4_1 the bias, and the elements: of 4 bits, with Q4_0 8 too large, or int8.
void read_affine(const Source& source, const GgufTensor& tensor, Tensors& tensors) {
  const int bits = tensor.type == GgmlType::kQ8_0 ? 8 : 4;
  const bool has_bias = tensor.type == GgmlType::kQ4_1;
  const std::uint64_t block = info_of(tensor.type).block_bytes;
  const std::int64_t last = tensor.shape.back();
  Written words(with_last(tensor, last * bits / 32), mx::uint32);
  Written scales(with_last(tensor, last / 32), mx::float16);
  Written biases(with_last(tensor, last / 32), mx::float16);
  const std::uint64_t packed = static_cast<std::uint64_t>(bits) * 4;
  const float zero = bits == 8 ? 128.0f : 8.0f;
  for_blocks(source, tensor, [&](const std::uint8_t* from, std::uint64_t first, std::uint64_t n) {
    for (std::uint64_t i = 0; i < n; ++i, from += block) {
      const float scale = half_at(from);
      const float bias = has_bias ? half_at(from + 2) : -zero * scale;
      scales.halves()[first + i] = mx::float16_t(scale);
      biases.halves()[first + i] = mx::float16_t(bias);
      std::uint8_t* const out = words.bytes() + (first + i) * packed;
      const std::uint8_t* const elements = from + (has_bias ? 4 : 2);
      if (bits == 4) {
        spread_nibbles(elements, out);
      } else {
        for (int j = 0; j < 32; ++j) out[j] = elements[j] ^ 0x80;  // from int8 to 128 more
      }
    }
  });
  const std::string stem = tensor.name.substr(0, tensor.name.rfind('.'));
  tensors.emplace(tensor.name, words.array);
  tensors.emplace(stem + ".scales", scales.array);
  tensors.emplace(stem + ".biases", biases.array);
}

// 256 elements in eight groups: d, d of the minima, scale and minimum of each group in 6 bits, and
// elements of 4 bits, those of groups 2k and 2k + 1 in the low and high halves of the same bytes.
void decode_q4_k(const std::uint8_t* block, mx::float16_t* out) {
  const float d = half_at(block), d_minimum = half_at(block + 2);
  const std::uint8_t* const packed = block + 4;
  const std::uint8_t* const elements = block + 16;
  for (int group = 0; group < 8; ++group) {
    int scale = 0, minimum = 0;
    if (group < 4) {
      scale = packed[group] & 63;
      minimum = packed[group + 4] & 63;
    } else {  // Four bits of their own, and the two that the first four groups leave over.
      scale = (packed[group + 4] & 0x0F) | (packed[group - 4] >> 6) << 4;
      minimum = packed[group + 4] >> 4 | (packed[group] >> 6) << 4;
    }
    const float factor = d * static_cast<float>(scale);
    const float offset = d_minimum * static_cast<float>(minimum);
    for (int j = 0; j < 32; ++j) {
      const int byte = elements[group / 2 * 32 + j];
      const int element = group % 2 == 0 ? byte & 0x0F : byte >> 4;
      *out++ = mx::float16_t(factor * static_cast<float>(element) - offset);
    }
  }
}

// 256 elements, 32 too large, in sixteen groups: four low bits of each, two high bits, an int8
// scale for each group, and d. A half of them has 64 bytes of low bits, 32 of high bits, and 8
// scales.
void decode_q6_k(const std::uint8_t* block, mx::float16_t* out) {
  const std::uint8_t* const scales = block + 192;
  const float d = half_at(block + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, row = i % 128 / 32, j = i % 32;
    const int low_byte = block[64 * half + 32 * (row % 2) + j];
    const int low = row < 2 ? low_byte & 0x0F : low_byte >> 4;
    const int high = block[128 + 32 * half + j] >> (2 * row) & 3;
    const float scale = d * static_cast<float>(static_cast<std::int8_t>(scales[i / 16]));
    out[i] = mx::float16_t(scale * static_cast<float>((low | high << 4) - 32));
  }
}

mx::array read_k(const Source& source, const GgufTensor& tensor) {
  Written elements(with_last(tensor, tensor.shape.back()), mx::float16);
  const auto decode = tensor.type == GgmlType::kQ4_K ? decode_q4_k : decode_q6_k;
  const GgmlTypeInfo& info = info_of(tensor.type);
  for_blocks(source, tensor, [&](const std::uint8_t* from, std::uint64_t first, std::uint64_t n) {
    for (std::uint64_t i = 0; i < n; ++i) {
      decode(from + i * info.block_bytes, elements.halves() + (first + i) * info.block_elements);
    }
  });
  return elements.array;
}

mx::array read_plain(const Source& source, const GgufTensor& tensor, mx::Dtype dtype) {
  Written elements(with_last(tensor, tensor.shape.back()), dtype);
  source.read(tensor.offset, tensor.bytes, elements.bytes());
  return elements.array;
}

}  // namespace

Tensors read_gguf_tensors(const GgufFile& file) {
  const Source source(file.name());
  Tensors tensors;
  for (const GgufTensor& tensor : file.tensors()) {
    switch (tensor.type) {
      case GgmlType::kF32:
        tensors.emplace(tensor.name, read_plain(source, tensor, mx::float32));
        break;
      case GgmlType::kF16:
        tensors.emplace(tensor.name, read_plain(source, tensor, mx::float16));
        break;
      case GgmlType::kBF16:
        tensors.emplace(tensor.name, read_plain(source, tensor, mx::bfloat16));
        break;
      case GgmlType::kQ4_0:
      case GgmlType::kQ4_1:
      case GgmlType::kQ8_0:
        read_affine(source, tensor, tensors);
        break;
      case GgmlType::kQ4_K:
      case GgmlType::kQ6_K:
        tensors.emplace(tensor.name, read_k(source, tensor));
        break;
      default:
        throw UserError(fmt::format("{}: tensor {}: type {} is not supported", file.name(),
                                    tensor.name, info_of(tensor.type).name));
    }
  }
  return tensors;
}

}  // namespace graft::llm
