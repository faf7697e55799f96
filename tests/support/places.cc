#include "support/places.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "graft/supports.h"

#if GRAFT_CUDA
#include <cuda_runtime_api.h>

#include "backend/cuda/device.h"
#endif

namespace graft::test {

namespace {

// The view of other memory that is laid out alike.
template <class View, class Pointer>
View same_view(const View& view, Pointer data, Device device) {
  std::vector<std::int64_t> shape, strides;
  for (int axis = 0; axis < view.rank(); ++axis) {
    shape.push_back(view.dim(axis)), strides.push_back(view.stride(axis));
  }
  return View(data, view.dtype(), shape, strides, device);
}

std::string_view device_name() {
  const char* name = std::getenv("GRAFT_TEST_DEVICE");
  return name == nullptr ? "" : name;
}

}  // namespace

bool testing_on_cuda() { return device_name().substr(0, 4) == "cuda"; }

std::string CudaDevice::missing() { return backend_available(DeviceType::kCuda).reason; }

void CudaDevice::note(ConstTensorView& view) {
  noted_.push_back({view, false, [&view](const ConstTensorView& there) { view = there; }});
}

void CudaDevice::note(TensorView& view) {
  noted_.push_back({view, true, [&view](const ConstTensorView& there) {
                      view = same_view(view, const_cast<void*>(there.data()), there.device());
                    }});
}

void CudaDevice::note(Weight& weight) {
  if (!weight.present()) return;
  ConstTensorView view = weight.view();
  if (weight.is_packed()) {
    unpacked_.emplace_back(weight.dtype(),
                           std::vector{weight.out_features(), weight.in_features()});
    weight.unpack(unpacked_.back());
    view = unpacked_.back().view();
  }
  noted_.push_back({view, false, [&weight](const ConstTensorView& there) { weight = there; }});
}

CudaDevice::Block& CudaDevice::block_of(const ConstTensorView& view) {
  const auto* data = static_cast<const std::byte*>(view.data());
  return *std::find_if(blocks_.begin(), blocks_.end(), [data](const Block& block) {
    return block.begin <= data && data < block.end;
  });
}

#if GRAFT_CUDA

namespace {

constexpr std::size_t kMargin = 4096;  // bytes around a copy
constexpr int kSentinel = 0xA5;

// The call's name is in the failure: a test can't go on after one.
void must(cudaError_t error, const char* doing) {
  if (error != cudaSuccess) {
    ADD_FAILURE() << doing << ": " << cudaGetErrorString(error);
    std::abort();  // every later call on this device would fail too
  }
}

void* allocate(void*, std::size_t bytes, void* stream) {
  void* memory = nullptr;
  must(cudaMallocAsync(&memory, bytes, static_cast<cudaStream_t>(stream)), "cudaMallocAsync");
  // What a kernel reads of its workspace it must have written first.
  must(cudaMemsetAsync(memory, 0xFF, bytes, static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
  return memory;
}

void release(void*, void* memory, void* stream) {
  must(cudaFreeAsync(memory, static_cast<cudaStream_t>(stream)), "cudaFreeAsync");
}

// What calls are planned for, if not for the device itself.
std::shared_ptr<void> planned_as() {
  cuda::DeviceFacts facts = cuda::facts_of(0);
  facts.major = 8;
  if (device_name() == "cuda:sm_80") {
    facts.minor = 0, facts.shared_bytes = 163 << 10;
  } else if (device_name() == "cuda:sm_86") {
    facts.minor = 6, facts.shared_bytes = 99 << 10;
  } else {
    return nullptr;
  }
  return std::make_shared<cuda::PlannedAs>(0, facts);
}

}  // namespace

CudaDevice::CudaDevice() : planned_as_(planned_as()) {
  cudaStream_t stream = nullptr;
  must(cudaStreamCreate(&stream), "cudaStreamCreate");
  stream_ = stream;
  context_ = Context({.device = 0, .stream = stream, .allocate = allocate, .free = release});
}

CudaDevice::~CudaDevice() { cudaStreamDestroy(static_cast<cudaStream_t>(stream_)); }

void CudaDevice::move_there() {
  for (const Noted& noted : noted_) {
    if (!noted.view.present() || noted.view.size() == 0) continue;
    std::int64_t low = 0, high = 0;
    for (int axis = 0; axis < noted.view.rank(); ++axis) {
      const std::int64_t reach = (noted.view.dim(axis) - 1) * noted.view.stride(axis);
      (reach < 0 ? low : high) += reach;
    }
    const auto size = static_cast<std::int64_t>(size_of(noted.view.dtype()));
    auto* data = static_cast<std::byte*>(const_cast<void*>(noted.view.data()));
    Block block{data + low * size, data + (high + 1) * size, noted.written};
    // One block for all views that see some of the same bytes.
    for (auto other = blocks_.begin(); other != blocks_.end();) {
      if (other->end <= block.begin || block.end <= other->begin) {
        ++other;
        continue;
      }
      block.begin = std::min(block.begin, other->begin),
      block.end = std::max(block.end, other->end);
      block.written |= other->written;
      other = blocks_.erase(other);
    }
    blocks_.push_back(block);
  }
  const auto stream = static_cast<cudaStream_t>(stream_);
  for (Block& block : blocks_) {
    const auto bytes = static_cast<std::size_t>(block.end - block.begin);
    void* memory = nullptr;
    must(cudaMallocAsync(&memory, bytes + 2 * kMargin + 16, stream), "cudaMallocAsync");
    must(cudaMemsetAsync(memory, kSentinel, bytes + 2 * kMargin + 16, stream), "cudaMemsetAsync");
    block.allocation = static_cast<std::byte*>(memory);
    block.copy = block.allocation + kMargin + reinterpret_cast<std::uintptr_t>(block.begin) % 16;
    must(cudaMemcpyAsync(block.copy, block.begin, bytes, cudaMemcpyHostToDevice, stream),
         "cudaMemcpyAsync");
  }
  for (const Noted& noted : noted_) {
    if (!noted.view.present()) continue;
    const void* data = noted.view.data();
    if (noted.view.size() > 0) {
      const Block& block = block_of(noted.view);
      data = block.copy + (static_cast<const std::byte*>(data) - block.begin);
    }
    noted.put(same_view(noted.view, data, {DeviceType::kCuda, 0}));
  }
  noted_.clear();
}

void CudaDevice::bring_back() {
  const auto stream = static_cast<cudaStream_t>(stream_);
  must(cudaStreamSynchronize(stream), "the call's kernels");
  for (const Block& block : blocks_) {
    const auto bytes = static_cast<std::size_t>(block.end - block.begin);
    std::vector<std::byte> all(bytes + 2 * kMargin + 16);
    must(cudaMemcpy(all.data(), block.allocation, all.size(), cudaMemcpyDeviceToHost),
         "cudaMemcpy");
    const auto first = static_cast<std::size_t>(block.copy - block.allocation);
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (i == first) i += bytes;
      if (all[i] != static_cast<std::byte>(kSentinel)) {
        ADD_FAILURE() << "written on the device " << static_cast<std::int64_t>(i - first)
                      << " bytes from the start of a tensor of " << bytes << " bytes";
        break;
      }
    }
    const std::byte* values = all.data() + first;
    if (block.written) {
      std::memcpy(block.begin, values, bytes);
    } else if (std::memcmp(block.begin, values, bytes) != 0) {
      ADD_FAILURE() << "an input was written on the device";
    }
    must(cudaFreeAsync(block.allocation, stream), "cudaFreeAsync");
  }
  blocks_.clear();
  unpacked_.clear();
}

#else  // nothing here can be asked for: missing() says so first

CudaDevice::CudaDevice() = default;
CudaDevice::~CudaDevice() = default;
void CudaDevice::move_there() {}
void CudaDevice::bring_back() {}

#endif

}  // namespace graft::test
