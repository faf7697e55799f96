#include "backend/cuda/call.h"

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "checks.h"
#include "graft/error.h"

namespace graft::cuda {
namespace {

// What a block has without being asked for it: 48 KB, of which a kernel's own variables take a
// part.
constexpr std::size_t kPlainSharedBytes = 40 * 1024;

// Blocks of a kernel may have all the shared memory there is on the current device.
cudaError_t raise_shared_limit(int device, const void* kernel) {
  cudaFuncAttributes own{};
  if (const cudaError_t error = cudaFuncGetAttributes(&own, kernel)) return error;
  int most = 0;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) {
    return error;
  }
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              most - static_cast<int>(own.sharedSizeBytes));
}

// The same once for a kernel and device, and not at each launch, of which it takes half a
// microsecond. Whoever comes at the same time says the same; a kernel that finds the table full is
// told every time.
cudaError_t allow_shared(int device, const void* kernel) {
  constexpr std::size_t kPlaces = 256;
  static std::array<std::array<std::atomic<const void*>, kPlaces>, kMostDevices> told;
  auto& places = told[static_cast<std::size_t>(device)];
  const std::size_t first = reinterpret_cast<std::uintptr_t>(kernel) / 16;
  std::atomic<const void*>* free = nullptr;
  for (std::size_t i = 0; i < kPlaces && free == nullptr; ++i) {
    std::atomic<const void*>& place = places[(first + i) % kPlaces];
    const void* const known = place.load(std::memory_order_acquire);
    if (known == kernel) return cudaSuccess;
    if (known == nullptr) free = &place;
  }
  const cudaError_t error = raise_shared_limit(device, kernel);
  const void* none = nullptr;
  if (error == cudaSuccess && free != nullptr) free->compare_exchange_strong(none, kernel);
  return error;
}

}  // namespace

Call::Call(const char* op, const Context& context) : op_(op), place_(context.cuda()) {
  if (const cudaError_t error = cudaGetDevice(&device_before_)) fail("cudaGetDevice", error);
  if (device_before_ == place_.device) return;
  if (const cudaError_t error = cudaSetDevice(place_.device)) fail("cudaSetDevice", error);
}

Call::~Call() {
  if (workspace_ != nullptr) place_.free(place_.state, workspace_, place_.stream);
  if (device_before_ != place_.device) cudaSetDevice(device_before_);
}

void Call::reaches(const char* tensor, const ConstTensorView& view) const {
  if (!view.present() || view.size() == 0) return;
  const Check check(op_);
  if (reinterpret_cast<std::uintptr_t>(view.data()) % size_of(view.dtype()) != 0) {
    check.fail(std::string(tensor) + ": expected memory aligned to its elements, " +
               std::to_string(size_of(view.dtype())) + " bytes");
  }
  if (place_.vouches) return;
  cudaPointerAttributes attributes{};
  if (const cudaError_t error = cudaPointerGetAttributes(&attributes, view.data())) {
    cudaGetLastError();
    fail("cudaPointerGetAttributes", error);
  }
  if (attributes.devicePointer == nullptr) {
    check.fail(std::string(tensor) + ": expected memory of cuda:" + std::to_string(place_.device) +
               ", got memory that it cannot reach");
  }
  if (attributes.type == cudaMemoryTypeDevice && attributes.device != place_.device) {
    check.fail(std::string(tensor) + ": expected memory of cuda:" + std::to_string(place_.device) +
               ", got that of cuda:" + std::to_string(attributes.device));
  }
}

std::byte* Call::workspace(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  workspace_ = place_.allocate(place_.state, bytes, place_.stream);
  if (workspace_ == nullptr) {
    throw Error(ErrorCode::kOutOfMemory,
                "[" + std::string(op_) + "] workspace: could not allocate " +
                    std::to_string(bytes) + " bytes on cuda:" + std::to_string(place_.device));
  }
  return static_cast<std::byte*>(workspace_);
}

void Call::launch(const Launch& how, const void* kernel, void** arguments) const {
  if (how.shared_bytes > kPlainSharedBytes) {
    const cudaError_t error = allow_shared(place_.device, kernel);
    if (error != cudaSuccess) fail("shared memory", error);
  }
  if (place_.launch != nullptr) return hand_over(how, kernel, arguments);
  cudaLaunchAttribute attributes[3];
  unsigned count = 0;
  if (how.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {static_cast<unsigned>(how.cluster), 1, 1};
  }
  if (how.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  if (how.overlaps) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = stream();
  config.attrs = attributes;
  config.numAttrs = count;
  if (const cudaError_t error = cudaLaunchKernelExC(&config, kernel, arguments)) {
    fail("launch", error);
  }
}

void Call::hand_over(const Launch& how, const void* kernel, void** arguments) const {
  cudaFunction_t function = nullptr;
  if (const cudaError_t error = cudaGetFuncBySymbol(&function, kernel)) {
    fail("cudaGetFuncBySymbol", error);
  }
  const CudaKernel ready{function,
                         {how.grid.x, how.grid.y, how.grid.z},
                         {how.block.x, how.block.y, how.block.z},
                         static_cast<unsigned>(how.cluster),
                         static_cast<unsigned>(how.shared_bytes),
                         how.cooperative,
                         arguments};
  if (!place_.launch(place_.state, ready)) fail("launch by the caller", cudaErrorLaunchFailure);
}

void Call::fail(const char* doing, cudaError_t error) const {
  cudaGetLastError();  // reported here, and not again by a later call
  throw Error(ErrorCode::kDevice, "[" + std::string(op_) +
                                      "] cuda:" + std::to_string(place_.device) + ": " + doing +
                                      ": " + cudaGetErrorString(error));
}

}  // namespace graft::cuda
