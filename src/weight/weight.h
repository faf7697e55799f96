#pragma once

#include "checks.h"
#include "graft/weight.h"

namespace graft {

/// What a packed weight holds: a class for each format on each device.
class Weight::Storage {
 public:
  virtual ~Storage() = default;

  virtual std::int64_t out_features() const = 0;
  virtual std::int64_t in_features() const = 0;
  virtual DType dtype() const = 0;
  virtual WeightFormat format() const = 0;
  virtual Device device() const = 0;
  virtual bool serves(Direction direction) const = 0;
  virtual std::size_t nbytes() const = 0;
  /// Throws if the kernels in use can't read it.
  virtual void check_usable(const Check& check) const = 0;
  /// `w` has been checked.
  virtual void unpack(const TensorView& w) const = 0;
};

/// A weight is given, lies on `device`, and if packed, serves `direction` with the kernels in use.
void check_weight(const Check& check, const Weight& weight, Device device, Direction direction);

/// If there is a bias: one number for each row of `weight`, on `device`.
void check_bias(const Check& check, const ConstTensorView& bias, const Weight& weight,
                Device device);

/// Yes if CPU kernels take it, packed or plain.
Support weight_on_cpu(const Weight& weight);

}  // namespace graft
