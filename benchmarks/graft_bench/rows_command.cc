#include "benchmarks/graft_bench/rows_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "apps/graft/commands/common.h"
#include "graft/context.h"
#include "graft/layer_norm.h"
#include "graft/rms_norm.h"
#include "graft/softmax.h"

namespace graft::bench {
namespace {

struct Free {
  void operator()(void* block) const { std::free(block); }
};

// A tensor on a cache line's boundary.
struct Tensor {
  std::unique_ptr<void, Free> memory;
  TensorView view;

  Tensor(DType dtype, std::initializer_list<std::int64_t> shape) {
    view = TensorView(nullptr, dtype, shape);
    const std::size_t bytes = (bytes_of(view) + 63) / 64 * 64;
    memory.reset(std::aligned_alloc(64, std::max<std::size_t>(64, bytes)));
    if (memory == nullptr) throw std::bad_alloc();
    std::memset(memory.get(), 0, bytes);
    view = TensorView(memory.get(), dtype, shape);
  }

  static std::size_t bytes_of(const TensorView& view) {
    return static_cast<std::size_t>(view.size()) * size_of(view.dtype());
  }

  // Between −2 and 2.
  Tensor& fill(std::uint32_t seed) {
    for (std::int64_t i = 0; i < view.size(); ++i) {
      seed = seed * 1664525u + 1013904223u;
      const float value = static_cast<float>(seed >> 8) * 0x1p-22f - 2.0f;
      if (view.dtype() == DType::kFloat32) {
        view.mutable_data_as<float>()[i] = value;
      } else {
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        view.mutable_data_as<std::uint16_t>()[i] = static_cast<std::uint16_t>(bits >> 16);
      }
    }
    return *this;
  }
};

struct Set {
  Tensor x, y, dy, dx, weight, bias, dweight, dbias, mean, rstd;

  Set(DType dtype, std::int64_t rows, std::int64_t features)
      : x(dtype, {rows, features}),
        y(dtype, {rows, features}),
        dy(dtype, {rows, features}),
        dx(dtype, {rows, features}),
        weight(dtype, {features}),
        bias(dtype, {features}),
        dweight(DType::kFloat32, {features}),
        dbias(DType::kFloat32, {features}),
        mean(DType::kFloat32, {rows}),
        rstd(DType::kFloat32, {rows}) {
    x.fill(1), y.fill(2), dy.fill(3), weight.fill(4), bias.fill(5), rstd.fill(6);
  }
};

struct Operation {
  std::string name, direction;
  std::function<void(Set&)> run;
};

std::vector<Operation> operations(Context& context) {
  const auto softmax = [&context](Set& s) {
    graft::softmax_forward(context, {s.x.view, 1.0f, s.y.view});
  };
  const auto softmax_backward = [&context](Set& s) {
    graft::softmax_backward(context, {s.dy.view, s.y.view, 1.0f, s.dx.view});
  };
  const auto layer_norm = [&context](Set& s) {
    layer_norm_forward(
        context, {s.x.view, s.weight.view, s.bias.view, 1e-5f, s.y.view, s.mean.view, s.rstd.view});
  };
  const auto layer_norm_backward = [&context](Set& s) {
    graft::layer_norm_backward(context, {s.dy.view, s.x.view, s.weight.view, 1e-5f, s.mean.view,
                                         s.rstd.view, s.dx.view, s.dweight.view, s.dbias.view});
  };
  const auto rms_norm = [&context](Set& s) {
    RmsNormForward p;
    p.x = s.x.view, p.weight = s.weight.view, p.y = s.y.view, p.rstd = s.rstd.view;
    graft::rms_norm_forward(context, p);
  };
  const auto rms_norm_backward = [&context](Set& s) {
    RmsNormBackward p;
    p.dy = s.dy.view, p.s = s.x.view, p.weight = s.weight.view, p.rstd = s.rstd.view;
    p.ds = s.dx.view, p.dweight = s.dweight.view;
    graft::rms_norm_backward(context, p);
  };
  return {{"softmax", "forward", softmax},       {"softmax", "backward", softmax_backward},
          {"layer_norm", "forward", layer_norm}, {"layer_norm", "backward", layer_norm_backward},
          {"rms_norm", "forward", rms_norm},     {"rms_norm", "backward", rms_norm_backward}};
}

// Copies x to y on two threads, as many bytes as a forward pass moves: with memcpy, which may write
// past the caches, or with stores that do not.
class Copier {
 public:
  explicit Copier(bool plain) : plain_(plain), helper_([this] { help(); }) {}
  ~Copier() {
    state_.store(kStop, std::memory_order_release);
    helper_.join();
  }

  void operator()(Set& set) {
    set_ = &set;
    state_.store(kWork, std::memory_order_release);
    copy(0);
    while (state_.load(std::memory_order_acquire) == kWork) {
    }
  }

 private:
  enum State { kIdle, kWork, kStop };

  void help() {
    for (;;) {
      State state;
      while ((state = state_.load(std::memory_order_acquire)) == kIdle) {
      }
      if (state == kStop) return;
      copy(1);
      state_.store(kIdle, std::memory_order_release);
    }
  }

  void copy(std::size_t half) {
    const std::size_t count = Tensor::bytes_of(set_->x.view) / sizeof(float) / 2;
    const float* const from = set_->x.view.data_as<float>() + half * count;
    float* const to = set_->y.view.mutable_data_as<float>() + half * count;
    if (!plain_) {
      std::memcpy(to, from, count * sizeof(float));
      return;
    }
    // A product, as compilers make a memcpy of a loop that only copies.
    for (std::size_t i = 0; i < count; ++i) to[i] = 2.0f * from[i];
  }

  bool plain_;
  Set* set_ = nullptr;
  std::atomic<State> state_{kIdle};
  std::thread helper_;
};

double since_us(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
      .count();
}

}  // namespace

void run_rows(const RowsFlags& flags) {
  app::use_threads(flags.threads);
  const DType dtype = flags.dtype == "f32" ? DType::kFloat32 : DType::kBFloat16;
  std::vector<Set> sets;
  const double set_bytes =
      4.0 * static_cast<double>(flags.rows * flags.features) * static_cast<double>(size_of(dtype));
  do {
    sets.emplace_back(dtype, flags.rows, flags.features);
  } while (static_cast<double>(sets.size()) * set_bytes < flags.rotate_mb * 1e6);

  const auto measure = [&](const Operation& op) {
    std::vector<double> times;
    for (int warm = 0; warm < 3; ++warm) op.run(sets[0]);
    const auto start = std::chrono::steady_clock::now();
    while (since_us(start) < flags.milliseconds * 1e3 || times.size() < 9) {
      Set& set = sets[times.size() % sets.size()];
      const auto call = std::chrono::steady_clock::now();
      op.run(set);
      times.push_back(since_us(call));
    }
    std::sort(times.begin(), times.end());
    const auto at = [&](double part) {
      return times[static_cast<std::size_t>(part * static_cast<double>(times.size() - 1))];
    };
    fmt::print("{},{},{},{},{},{:.1f},{:.1f},{:.1f}\n", op.name, op.direction, flags.dtype,
               flags.rows, flags.features, at(0.5), at(0.1), at(0.9));
  };
  Context context;
  for (const Operation& op : operations(context)) measure(op);
  for (const bool plain : {true, false}) {
    Copier copier(plain);
    measure({plain ? "copy" : "memcpy", "forward", [&copier](Set& set) { copier(set); }});
  }
}

}  // namespace graft::bench
