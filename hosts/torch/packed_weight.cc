#include "packed_weight.h"

#include <pthread.h>

#include <array>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>

#include "graft/error.h"

namespace graft::pytorch {
namespace {

constexpr std::int64_t kSamples = 32;

struct Packed {
  ConstTensorView view;  // where it was read from, for comparison alone
  std::int64_t version = 0;
  std::array<std::uint32_t, kSamples> samples{};
  Weight weight;
};

// Never destroyed: torch's threads may outlive static objects.
std::mutex& mutex() {
  static std::mutex* instance = [] {
    // A child that is forked while another thread packs would wait for that thread for ever.
    pthread_atfork([] { mutex().lock(); }, [] { mutex().unlock(); }, [] { mutex().unlock(); });
    return new std::mutex;
  }();
  return *instance;
}

// By the first element's address.
std::unordered_map<const void*, Packed>& copies() {
  static auto* instance = new std::unordered_map<const void*, Packed>;
  return *instance;
}

// How often the tensor was written through torch; 0 for a tensor that does not count.
std::int64_t version_of(const Tensor& tensor) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(tensor)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::is_inference", "", stack.data(), TORCH_ABI_VERSION));
  if (torch::stable::detail::to<bool>(stack[0])) return 0;
  stack[0] = torch::stable::detail::from(tensor);
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::_version", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<std::int64_t>(stack[0]);
}

// The bits of values spread over the matrix; the golden ratio keeps them off any one column.
std::array<std::uint32_t, kSamples> samples_of(const ConstTensorView& view) {
  std::array<std::uint32_t, kSamples> samples{};
  const std::int64_t rows = view.dim(0);
  const std::int64_t columns = view.dim(1);
  if (view.size() == 0) return samples;
  const std::size_t bytes = size_of(view.dtype());
  for (std::int64_t i = 0; i < kSamples; ++i) {
    const std::int64_t row = rows * i / kSamples;
    const std::int64_t column = static_cast<std::int64_t>(
        static_cast<double>(columns) *
        (0.6180339887 * static_cast<double>(i + 1) -
         static_cast<double>(static_cast<int>(0.6180339887 * static_cast<double>(i + 1)))));
    const std::int64_t at = row * view.stride(0) + column * view.stride(1);
    std::memcpy(&samples[static_cast<std::size_t>(i)],
                view.data_as<std::byte>() + at * static_cast<std::int64_t>(bytes), bytes);
  }
  return samples;
}

}  // namespace

Weight packed_weight(const Tensor& weight, DType multiply, bool backward) {
  const ConstTensorView view = view_of(weight, "weight");
  if (view.rank() != 2) {
    throw Error(ErrorCode::kInvalidArgument,
                "weight: expected (out_features, in_features), got " + view.shape_string());
  }
  const std::int64_t version = version_of(weight);
  const std::array<std::uint32_t, kSamples> samples = samples_of(view);
  Weight made;
  {
    const std::lock_guard lock(mutex());
    Packed& packed = copies()[view.data()];
    const bool serves = packed.weight.present() && packed.weight.dtype() == multiply &&
                        (!backward || packed.weight.serves(Direction::kBackward));
    if (serves && packed.view == view && packed.version == version && packed.samples == samples) {
      return packed.weight;
    }
    try {
      packed.weight = {};  // first, so that there are never two
      made = Weight::packed(view, multiply,
                            backward ? Packing::kForwardAndBackward : Packing::kForward);
      packed = {view, version, samples, made};
    } catch (...) {
      copies().erase(view.data());
      throw;
    }
  }
  // Python's part, which sees the end of the memory. Not under the lock: it waits for Python's own.
  std::array<StableIValue, 1> stack{torch::stable::detail::from(weight)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("graft::watch_weight", "", stack.data(), TORCH_ABI_VERSION));
  return made;
}

void forget_weight(const void* data) {
  const std::lock_guard lock(mutex());
  copies().erase(data);
}

std::size_t packed_bytes() {
  const std::lock_guard lock(mutex());
  std::size_t bytes = 0;
  for (const auto& [data, packed] : copies()) bytes += packed.weight.nbytes();
  return bytes;
}

}  // namespace graft::pytorch
