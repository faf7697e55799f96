#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "graft/export.h"

namespace graft {

/// Element types. bfloat16 is the upper half of an IEEE float32; float16 is IEEE binary16.
enum class DType : std::uint8_t { kFloat32, kFloat16, kBFloat16, kInt32 };

/// Bytes of one element.
GRAFT_EXPORT std::size_t size_of(DType dtype);

/// "float32", "float16", "bfloat16" or "int32".
GRAFT_EXPORT const char* name_of(DType dtype);

/// Kinds of device that memory can live on.
enum class DeviceType : std::uint8_t { kCpu, kCuda, kMetal };

/// "cpu", "cuda" or "metal".
GRAFT_EXPORT const char* name_of(DeviceType type);

/// Where a tensor's memory lives. `index` counts devices of one type.
struct Device {
  DeviceType type = DeviceType::kCpu;              ///< Kind of device.
  int index = 0;                                   ///< Which one of its kind.
  bool operator==(const Device&) const = default;  ///< The same memory.
};

/// A tensor somebody else owns, for reading: a pointer, an element type, a shape and strides.
///
/// Strides are in elements, not bytes; they may be zero or negative. The memory must outlive every
/// call that is given the view. A default-constructed view has rank 0 and stands for "absent"
/// wherever an argument is optional; a present view may have no elements and then a null pointer.
class GRAFT_EXPORT ConstTensorView {
 public:
  static constexpr int kMaxRank = 8;  ///< Dimensions a view can have at most.

  ConstTensorView() = default;  ///< Absent.

  /// @{
  /// A dense row-major tensor. Throws Error if a dimension is negative or the rank exceeds
  /// kMaxRank.
  ConstTensorView(const void* data, DType dtype, std::initializer_list<std::int64_t> shape,
                  Device device = {});
  ConstTensorView(const void* data, DType dtype, std::span<const std::int64_t> shape,
                  Device device = {});
  /// @}

  /// A strided tensor; `strides` has one entry a dimension, in elements.
  ConstTensorView(const void* data, DType dtype, std::span<const std::int64_t> shape,
                  std::span<const std::int64_t> strides, Device device = {});

  /// False for a default-constructed view only.
  bool present() const { return rank_ > 0; }
  /// Number of dimensions.
  int rank() const { return rank_; }
  /// Size along `axis`, in [0, rank()).
  std::int64_t dim(int axis) const { return shape_[static_cast<std::size_t>(axis)]; }
  /// Elements from one index along `axis` to the next.
  std::int64_t stride(int axis) const { return strides_[static_cast<std::size_t>(axis)]; }
  /// Number of elements.
  std::int64_t size() const;
  /// Element type.
  DType dtype() const { return dtype_; }
  /// Where the memory lives.
  Device device() const { return device_; }
  /// The first element.
  const void* data() const { return data_; }

  /// The first element, as a T; dtype() is not looked at.
  template <class T>
  const T* data_as() const {
    return static_cast<const T*>(data_);
  }

  /// The same elements with the two axes of a matrix swapped: no copy.
  ConstTensorView transposed() const;

  /// "(2, 64, 512)".
  std::string shape_string() const;

  /// The same memory, read the same way.
  bool operator==(const ConstTensorView&) const = default;

 private:
  const void* data_ = nullptr;
  std::array<std::int64_t, kMaxRank> shape_{};
  std::array<std::int64_t, kMaxRank> strides_{};
  int rank_ = 0;
  DType dtype_ = DType::kFloat32;
  Device device_{};
};

/// A ConstTensorView whose elements may be written.
class TensorView : public ConstTensorView {
 public:
  TensorView() = default;  ///< Absent.

  /// @{
  /// As the constructor of ConstTensorView with the same arguments.
  TensorView(void* data, DType dtype, std::initializer_list<std::int64_t> shape, Device device = {})
      : ConstTensorView(data, dtype, shape, device) {}
  TensorView(void* data, DType dtype, std::span<const std::int64_t> shape, Device device = {})
      : ConstTensorView(data, dtype, shape, device) {}
  TensorView(void* data, DType dtype, std::span<const std::int64_t> shape,
             std::span<const std::int64_t> strides, Device device = {})
      : ConstTensorView(data, dtype, shape, strides, device) {}
  /// @}

  /// The first element, for writing.
  void* mutable_data() const { return const_cast<void*>(data()); }

  /// The first element, as a T, for writing; dtype() is not looked at.
  template <class T>
  T* mutable_data_as() const {
    return static_cast<T*>(mutable_data());
  }
};

}  // namespace graft
