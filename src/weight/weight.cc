#include "weight/weight.h"

#include <memory>
#include <string>
#include <utility>

#include "backend/element.h"
#include "graft/error.h"
#include "weight/cpu/dense.h"

namespace graft {

Weight Weight::owning(const ConstTensorView& view, std::any owner) {
  Weight weight(view);
  weight.owner_ = std::make_shared<const std::any>(std::move(owner));
  return weight;
}

Weight Weight::packed(const ConstTensorView& w, DType multiply, Packing directions, Device device) {
  const Check check("weight");
  check.rank("w", w, 2);
  check.device("w", w, device);
  if (device.type != DeviceType::kCpu) {
    const Support available = backend_available(device.type);
    require("weight", available ? Support::no(std::string("weights are not packed for ") +
                                              name_of(device.type) + "; give a plain one")
                                : available);
  }
  Weight weight;
  weight.storage_ = std::make_shared<const cpu::DensePanels>(check, w, multiply, directions);
  return weight;
}

const std::any& Weight::owner() const {
  static const std::any nobody;
  return owner_ ? *owner_ : nobody;
}

std::int64_t Weight::out_features() const {
  return storage_ ? storage_->out_features() : view_.dim(0);
}
std::int64_t Weight::in_features() const {
  return storage_ ? storage_->in_features() : view_.dim(1);
}
DType Weight::dtype() const { return storage_ ? storage_->dtype() : view_.dtype(); }
WeightFormat Weight::format() const { return storage_ ? storage_->format() : WeightFormat::kDense; }
Device Weight::device() const { return storage_ ? storage_->device() : view_.device(); }
bool Weight::serves(Direction direction) const { return !storage_ || storage_->serves(direction); }

std::size_t Weight::nbytes() const {
  if (storage_) return storage_->nbytes();
  return owner_ ? static_cast<std::size_t>(view_.size()) * size_of(view_.dtype()) : 0;
}

void Weight::unpack(const TensorView& w) const {
  const Check check("weight.unpack");
  check.that(present(), "weight: expected a packed or a plain weight, got none");
  check.shape("w", w, {out_features(), in_features()});
  check.floating("w", w);
  check.writable("w", w);
  if (storage_) return storage_->unpack(w);
  check.floating("weight", view_);
  for (std::int64_t n = 0; n < out_features(); ++n) {
    for (std::int64_t k = 0; k < in_features(); ++k) {
      store_element(w, n, k, load_element(view_, n, k));
    }
  }
}

void check_weight(const Check& check, const Weight& weight, Device device, Direction direction) {
  check.that(weight.present(), "weight: expected a packed or a plain weight, got none");
  if (!weight.is_packed()) {
    check.rank("weight", weight.view(), 2);
    check.device("weight", weight.view(), device);
    return;
  }
  if (weight.device() != device) {
    check.fail(std::string("weight: packed for ") + name_of(weight.device().type) +
               ", but the other tensors are elsewhere");
  }
  check.that(weight.serves(direction),
             "weight: packed for forward only; pack it for kForwardAndBackward");
  weight.storage()->check_usable(check);
}

void check_bias(const Check& check, const ConstTensorView& bias, const Weight& weight,
                Device device) {
  if (!bias.present()) return;
  check.shape("bias", bias, {weight.out_features()});
  check.device("bias", bias, device);
}

Support weight_on_cpu(const Weight& weight) {
  return weight.is_packed() ? Support{} : float_on_cpu("weight", weight.view());
}

}  // namespace graft
