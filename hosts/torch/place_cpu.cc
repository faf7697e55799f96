#include <algorithm>

#include "graft/error.h"
#include "packed_weight.h"
#include "place.h"

namespace graft::pytorch {
namespace {

// Torch's own threads: two pools that wait for each other by spinning cost milliseconds.
class TorchThreads final : public Executor {
 public:
  int threads() const override {
    return static_cast<int>(std::clamp<std::uint32_t>(torch::stable::get_num_threads(), 1, 1024));
  }

  void run(int workers, void (*work)(void* state, int worker), void* state) override {
    torch::stable::parallel_for(0, workers, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t worker = begin; worker < end; ++worker) {
        work(state, static_cast<int>(worker));
      }
    });
  }
};

}  // namespace

Context& context_of(const Tensor&) {
  static TorchThreads threads;
  thread_local Context context(threads);
  return context;
}

Weight weight_of(const Tensor& weight, DType multiply, bool pack, bool backward) {
  const bool packs = pack && (multiply == DType::kFloat32 || multiply == DType::kBFloat16);
  if (packs) return packed_weight(weight, multiply, backward);
  return plain_weight(weight, multiply);
}

Dropout dropout_of(double p, const std::optional<Tensor>& rng, const Tensor& x) {
  Dropout dropout{.p = static_cast<float>(p)};
  if (const std::uint64_t* numbers = random_numbers(p, rng, x)) {
    dropout.seed = numbers[0];
    dropout.offset = numbers[1];
  }
  return dropout;
}

}  // namespace graft::pytorch
