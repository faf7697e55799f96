#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "weight/cpu/panels.h"
#include "weight/weight.h"

namespace graft::cpu {

/// A dense weight as column panels, once for each direction it serves.
class DensePanels final : public Weight::Storage {
 public:
  /// `w` is a matrix on the CPU; its dtype and `multiply` are checked here.
  DensePanels(const Check& check, const ConstTensorView& w, DType multiply, Packing directions);

  std::int64_t out_features() const override { return out_features_; }
  std::int64_t in_features() const override { return in_features_; }
  DType dtype() const override { return dtype_; }
  WeightFormat format() const override { return WeightFormat::kDense; }
  Device device() const override { return {}; }
  bool serves(Direction direction) const override { return panels(direction) != nullptr; }
  std::size_t nbytes() const override { return nbytes_; }
  void check_usable(const Check& check) const override;
  void unpack(const TensorView& w) const override;

  /// What pack_panels wrote, columns being out_features forward and in_features backward. Null if
  /// it was not packed that way.
  const std::uint32_t* panels(Direction direction) const {
    return (direction == Direction::kForward ? forward_ : backward_).get();
  }

 private:
  struct Free {
    void operator()(std::uint32_t* panels) const { std::free(panels); }
  };
  using Block = std::unique_ptr<std::uint32_t, Free>;

  Block allocate(const Check& check, std::int64_t elements);

  std::int64_t out_features_ = 0;
  std::int64_t in_features_ = 0;
  DType dtype_ = DType::kFloat32;
  PanelFormat format_;
  std::size_t nbytes_ = 0;
  Block forward_;
  Block backward_;
};

/// The column panels of a packed weight; null if it is plain.
const std::uint32_t* packed_panels(const Weight& weight, Direction direction);

}  // namespace graft::cpu
