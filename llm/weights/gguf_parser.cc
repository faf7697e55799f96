// The pass over the bytes. The format: ggml, docs/gguf.md.

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <istream>
#include <limits>
#include <unordered_set>
#include <utility>

#include "graft/llm/files/printable.h"
#include "graft/llm/user_error.h"
#include "graft/llm/weights/gguf_file.h"

namespace graft::llm {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF fields are read as they lie");

// Far above any real header (a vocabulary of 256k tokens with its merges takes 12 MB); it bounds
// the memory that a hostile file can ask for.
constexpr std::uint64_t kMaxHeaderBytes = std::uint64_t{64} << 20;
constexpr std::uint64_t kMaxEntries = std::uint64_t{1} << 16;  // Of metadata or of tensors.
constexpr std::uint64_t kMaxKeyBytes = 65535;
constexpr std::uint64_t kMaxTensorNameBytes = 64;
constexpr std::uint32_t kMaxDims = 4;
constexpr std::uint64_t kDefaultAlignment = 32;
constexpr std::uint64_t kMaxAlignment = 65536;

// Value types, in the file's numbering.
enum class ValueType : std::uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// Names are quoted in messages only once they have passed this, so that a message stays one line.
bool is_printable(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
}

bool multiply(std::uint64_t a, std::uint64_t b, std::uint64_t& product) {
  if (b != 0 && a > std::numeric_limits<std::uint64_t>::max() / b) return false;
  product = a * b;
  return true;
}

}  // namespace

class GgufParser {
 public:
  GgufParser(std::istream& in, std::uint64_t size, std::string name) : in_(in), size_(size) {
    file_.name_ = std::move(name);
  }

  GgufFile parse() {
    context_ = "header";
    char magic[4];
    read_bytes(magic, sizeof(magic));
    if (std::memcmp(magic, "GGUF", sizeof(magic)) != 0) {
      context_.clear();
      fail("not a GGUF file");
    }
    file_.version_ = number<std::uint32_t>();
    if (file_.version_ != 2 && file_.version_ != 3) {
      const bool swapped = file_.version_ == 0x02000000 || file_.version_ == 0x03000000;
      fail(swapped ? "big-endian files are not supported"
                   : fmt::format("version {} is not supported, only 2 and 3", file_.version_));
    }
    const auto tensor_count = number<std::uint64_t>();
    const auto metadata_count = number<std::uint64_t>();
    parse_metadata(metadata_count);
    parse_tensors(tensor_count);
    return std::move(file_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw UserError(context_.empty() ? fmt::format("{}: {}", file_.name_, what)
                                     : fmt::format("{}: {}: {}", file_.name_, context_, what));
  }

  std::uint64_t remaining() const { return size_ - offset_; }

  void read_bytes(char* to, std::uint64_t count) {
    if (count > remaining()) {
      fail(fmt::format("the file ends early: {} bytes wanted at byte {} of {}", count, offset_,
                       size_));
    }
    if (count > kMaxHeaderBytes - std::min(offset_, kMaxHeaderBytes)) {
      fail(fmt::format("the header is larger than {} MiB", kMaxHeaderBytes >> 20));
    }
    if (!in_.read(to, static_cast<std::streamsize>(count))) {
      fail(fmt::format("reading failed at byte {}", offset_));
    }
    offset_ += count;
  }

  template <class T>
  T number() {
    char bytes[sizeof(T)];
    read_bytes(bytes, sizeof(T));
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
  }

  bool boolean() {
    const auto byte = number<std::uint8_t>();
    if (byte > 1) fail(fmt::format("a boolean is {}, expected 0 or 1", byte));
    return byte == 1;
  }

  // A count of things that take at least `min_bytes` bytes each in the header.
  void check_count(std::uint64_t count, std::uint64_t min_bytes, std::string_view what) const {
    if (count > std::min(remaining(), kMaxHeaderBytes) / min_bytes) {
      fail(fmt::format("{} {} do not fit in the {} bytes that are left", count, what, remaining()));
    }
  }

  // What is kept of an entry takes several times the bytes that it takes in the file.
  void check_entries(std::uint64_t count) const {
    if (count > kMaxEntries)
      fail(fmt::format("{} entries, expected at most {}", count, kMaxEntries));
  }

  std::string string(std::uint64_t max_bytes = kMaxHeaderBytes) {
    const auto length = number<std::uint64_t>();
    check_count(length, 1, "bytes of text");
    if (length > max_bytes)
      fail(fmt::format("{} bytes of text, expected at most {}", length, max_bytes));
    std::string text(length, '\0');
    read_bytes(text.data(), length);
    return text;
  }

  template <class T>
  std::vector<T> numbers(std::uint64_t count) {
    check_count(count, sizeof(T), "array elements");
    std::vector<T> values(count);
    read_bytes(reinterpret_cast<char*>(values.data()), count * sizeof(T));
    return values;
  }

  std::vector<bool> booleans(std::uint64_t count) {
    check_count(count, 1, "array elements");
    std::vector<bool> values(count);
    for (std::uint64_t i = 0; i < count; ++i) values[i] = boolean();
    return values;
  }

  std::vector<std::string> strings(std::uint64_t count) {
    check_count(count, sizeof(std::uint64_t), "array elements");
    std::vector<std::string> values;
    values.reserve(count);
    for (std::uint64_t i = 0; i < count; ++i) values.push_back(string());
    return values;
  }

  GgufArray array() {
    const auto type = number<std::uint32_t>();
    const auto count = number<std::uint64_t>();
    switch (static_cast<ValueType>(type)) {
      case ValueType::kUint8:
        return numbers<std::uint8_t>(count);
      case ValueType::kInt8:
        return numbers<std::int8_t>(count);
      case ValueType::kUint16:
        return numbers<std::uint16_t>(count);
      case ValueType::kInt16:
        return numbers<std::int16_t>(count);
      case ValueType::kUint32:
        return numbers<std::uint32_t>(count);
      case ValueType::kInt32:
        return numbers<std::int32_t>(count);
      case ValueType::kUint64:
        return numbers<std::uint64_t>(count);
      case ValueType::kInt64:
        return numbers<std::int64_t>(count);
      case ValueType::kFloat32:
        return numbers<float>(count);
      case ValueType::kFloat64:
        return numbers<double>(count);
      case ValueType::kBool:
        return booleans(count);
      case ValueType::kString:
        return strings(count);
      case ValueType::kArray:
        fail("arrays of arrays are not supported");
    }
    fail(fmt::format("unknown type {} of array elements", type));
  }

  GgufValue value(std::uint32_t type) {
    switch (static_cast<ValueType>(type)) {
      case ValueType::kUint8:
        return number<std::uint8_t>();
      case ValueType::kInt8:
        return number<std::int8_t>();
      case ValueType::kUint16:
        return number<std::uint16_t>();
      case ValueType::kInt16:
        return number<std::int16_t>();
      case ValueType::kUint32:
        return number<std::uint32_t>();
      case ValueType::kInt32:
        return number<std::int32_t>();
      case ValueType::kUint64:
        return number<std::uint64_t>();
      case ValueType::kInt64:
        return number<std::int64_t>();
      case ValueType::kFloat32:
        return number<float>();
      case ValueType::kFloat64:
        return number<double>();
      case ValueType::kBool:
        return boolean();
      case ValueType::kString:
        return string();
      case ValueType::kArray:
        return array();
    }
    fail(fmt::format("unknown value type {}", type));
  }

  void parse_metadata(std::uint64_t count) {
    // A key's length, one letter, a type and a value of one byte.
    check_count(count, 8 + 1 + 4 + 1, "metadata entries");
    check_entries(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      context_ = fmt::format("metadata entry {} of {}", i + 1, count);
      std::string key = string(kMaxKeyBytes);
      if (!is_printable(key)) fail("the key is empty or not printable ASCII");
      context_ = fmt::format("metadata '{}'", printable(key));
      const auto type = number<std::uint32_t>();
      GgufValue held = value(type);
      if (!file_.metadata_.emplace(std::move(key), std::move(held)).second) fail("given twice");
    }
  }

  std::uint64_t alignment() {
    const auto found = file_.metadata_.find("general.alignment");
    if (found == file_.metadata_.end()) return kDefaultAlignment;
    context_ = "metadata 'general.alignment'";
    const auto* held = std::get_if<std::uint32_t>(&found->second);
    if (!held) fail("expected a uint32");
    if (*held < 8 || *held > kMaxAlignment || !std::has_single_bit(*held)) {
      fail(fmt::format("{} is not a power of two from 8 to {}", *held, kMaxAlignment));
    }
    return *held;
  }

  void parse_tensors(std::uint64_t count) {
    const std::uint64_t align = alignment();
    context_ = "header";
    // A name's length, one letter, the number of dimensions, one of them, a type and an offset.
    check_count(count, 8 + 1 + 4 + 8 + 4 + 8, "tensors");
    check_entries(count);
    std::unordered_set<std::string> names;
    file_.tensors_.reserve(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      context_ = fmt::format("tensor {} of {}", i + 1, count);
      file_.tensors_.push_back(tensor(align));
      if (!names.insert(file_.tensors_.back().name).second) fail("given twice");
    }
    place(align);
  }

  // One entry of the list; the offset is still relative to the data.
  GgufTensor tensor(std::uint64_t align) {
    GgufTensor tensor;
    tensor.name = string(kMaxTensorNameBytes);
    if (!is_printable(tensor.name)) fail("the name is empty or not printable ASCII");
    context_ = fmt::format("tensor '{}'", tensor.name);

    const auto num_dims = number<std::uint32_t>();
    if (num_dims < 1 || num_dims > kMaxDims) {
      fail(fmt::format("{} dimensions, expected 1 to {}", num_dims, kMaxDims));
    }
    std::uint64_t elements = 1;
    for (std::uint32_t i = 0; i < num_dims; ++i) {
      const auto dim = number<std::uint64_t>();
      if (dim < 1 || dim > std::numeric_limits<std::int32_t>::max()) {
        fail(fmt::format("a dimension of {}, expected 1 to 2^31 - 1", dim));
      }
      if (!multiply(elements, dim, elements)) fail("the number of elements exceeds 2^64");
      tensor.shape.push_back(static_cast<std::int64_t>(dim));
    }
    const std::uint64_t row = static_cast<std::uint64_t>(tensor.shape.front());
    std::reverse(tensor.shape.begin(), tensor.shape.end());

    const auto type = number<std::uint32_t>();
    const GgmlTypeInfo* info = find_ggml_type(type);
    if (!info) fail(fmt::format("unknown type {}", type));
    tensor.type = info->type;
    if (row % info->block_elements != 0) {
      fail(fmt::format("rows of {} elements, expected a multiple of {} for type {}", row,
                       info->block_elements, info->name));
    }
    if (!multiply(elements / info->block_elements, info->block_bytes, tensor.bytes)) {
      fail("its size exceeds 2^64 bytes");
    }
    tensor.offset = number<std::uint64_t>();
    if (tensor.offset % align != 0) {
      fail(fmt::format("offset {} is not a multiple of the alignment, {}", tensor.offset, align));
    }
    return tensor;
  }

  // Makes offsets absolute, and checks that each tensor lies in the file, apart from the others.
  void place(std::uint64_t align) {
    const std::uint64_t data = (offset_ + align - 1) / align * align;
    std::vector<const GgufTensor*> order;
    for (GgufTensor& tensor : file_.tensors_) {
      context_ = fmt::format("tensor '{}'", tensor.name);
      if (data > size_ || tensor.offset > size_ - data ||
          tensor.bytes > size_ - data - tensor.offset) {
        fail(fmt::format("{} bytes at offset {} reach past the end of the file ({} bytes)",
                         tensor.bytes, tensor.offset, size_));
      }
      tensor.offset += data;
      order.push_back(&tensor);
    }
    std::sort(order.begin(), order.end(),
              [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
    for (std::size_t i = 1; i < order.size(); ++i) {
      if (order[i - 1]->offset + order[i - 1]->bytes > order[i]->offset) {
        context_ = fmt::format("tensor '{}'", order[i]->name);
        fail(fmt::format("overlaps tensor '{}'", order[i - 1]->name));
      }
    }
  }

  std::istream& in_;
  const std::uint64_t size_;
  std::uint64_t offset_ = 0;
  std::string context_;  // What is being read, for messages.
  GgufFile file_;
};

GgufFile GgufFile::read(std::istream& in, std::uint64_t size, std::string name) {
  return GgufParser(in, size, std::move(name)).parse();
}

}  // namespace graft::llm
