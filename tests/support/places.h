#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "graft/context.h"
#include "support/isas.h"
#include "support/tensor.h"
#include "support/views.h"

namespace graft::test {

/// A CUDA device that runs calls whose tensors are in the CPU's memory: each call's are copied
/// there, as far from an address of 16 bytes as they were, with sentinels around, and back.
class CudaDevice {
 public:
  /// Empty if kernels run here; else why not.
  static std::string missing();

  CudaDevice();
  ~CudaDevice();
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  Context& context() { return context_; }

  /// @{
  /// Takes note of a view of the next call, which must stay where it is.
  void note(ConstTensorView& view);
  void note(TensorView& view);
  void note(Weight& weight);
  /// @}
  /// Copies what the noted views see to the device, and points the views there.
  void move_there();
  /// Waits for the device, copies back what calls may have written and frees the copies. A failure
  /// of the device or a broken sentinel fails the test.
  void bring_back();

 private:
  // A noted view, and how to put another in its place.
  struct Noted {
    ConstTensorView view;
    bool written;
    std::function<void(const ConstTensorView&)> put;
  };
  // Memory of the CPU that views see, and its copy.
  struct Block {
    std::byte *begin, *end;
    bool written;
    std::byte* allocation = nullptr;
    std::byte* copy = nullptr;
  };

  Block& block_of(const ConstTensorView& view);

  std::shared_ptr<void> planned_as_;
  void* stream_ = nullptr;
  Context context_;
  std::vector<Noted> noted_;
  std::vector<Block> blocks_;
  std::deque<Tensor> unpacked_;  // of packed weights
};

/// Where a test's calls run: the CPU, or a CUDA device.
class Place {
 public:
  explicit Place(CudaDevice* cuda = nullptr) : cuda_(cuda) {}

  bool is_cuda() const { return cuda_ != nullptr; }

  /// The types that row kernels take here.
  std::vector<DType> dtypes() const {
    if (!is_cuda()) return {DType::kFloat32, DType::kBFloat16};
    return {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  }

  /// Runs `function` of `params`, whose tensors are in the CPU's memory.
  template <class Params>
  void run(void (*function)(Context&, const Params&), Params params) const;

  /// The same of layers that share x.
  template <class Params>
  void run(void (*function)(Context&, const std::span<const Params>&),
           std::vector<Params> layers) const;

 private:
  CudaDevice* cuda_;
};

/// The device that tests run on, as GRAFT_TEST_DEVICE says: "cuda" or, if unset, the CPU. With
/// "cuda:sm_80" and "cuda:sm_86" calls are planned as for such a GPU, whose kernels a later one
/// runs too: all that the matrix units do is done by the path for compute capability 8.0, with as
/// much shared memory as there is on one.
bool testing_on_cuda();

/// Runs `body(place)` on every instruction set of the CPU; or, where tests are run on CUDA, there,
/// and skips the test if there is none. Suites named ...Everywhere consist of such tests.
template <class Body>
void on_each_place(Body&& body) {
  if (!testing_on_cuda()) return on_each_isa([&] { body(Place()); });
  if (const std::string why = CudaDevice::missing(); !why.empty()) GTEST_SKIP() << why;
  CudaDevice device;
  body(Place(&device));
}

template <class Params>
void Place::run(void (*function)(Context&, const Params&), Params params) const {
  if (!is_cuda()) {
    Context context;
    return function(context, params);
  }
  each_view(params, [&](auto& view) { cuda_->note(view); });
  cuda_->move_there();
  function(cuda_->context(), params);
  cuda_->bring_back();
}

template <class Params>
void Place::run(void (*function)(Context&, const std::span<const Params>&),
                std::vector<Params> layers) const {
  if (!is_cuda()) {
    Context context;
    return function(context, layers);
  }
  for (Params& params : layers) each_view(params, [&](auto& view) { cuda_->note(view); });
  cuda_->move_there();
  function(cuda_->context(), layers);
  cuda_->bring_back();
}

}  // namespace graft::test
