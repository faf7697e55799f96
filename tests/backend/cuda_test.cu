#include <cuda.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "graft/error.h"
#include "graft/linear.h"
#include "graft/lora.h"
#include "support/cuda_place.h"
#include "support/errors.h"
#include "support/places.h"
#include "support/tensor.h"

// What CUDA adds to a call: streams, graphs, and other work on the device.

namespace graft {
namespace {

using test::must;
using test::Tensor;

// Ends the test program if a test does not end: a kernel that waits for ever can't be taken back.
class Watchdog {
 public:
  explicit Watchdog(int seconds)
      : thread_([this, seconds] {
          for (int tenth = 0; tenth < 10 * seconds; ++tenth) {
            if (done_) return;
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
          }
          std::fprintf(stderr, "a call hangs on the device\n");
          std::_Exit(1);
        }) {}
  ~Watchdog() {
    done_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> done_{false};
  std::thread thread_;
};

class Stream {
 public:
  Stream() { cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }  // NOLINT: it is one
  Context context() const { return Context(test::cuda_place(stream_)); }
  void wait() const { must(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

// A LoRA layer in device memory, forward and backward.
class Layer {
 public:
  Layer(DType dtype, std::int64_t m, std::int64_t k, std::int64_t n, std::int64_t rank)
      : x(copy(Tensor(dtype, {m, k}).fill_random(1))),
        w(copy(Tensor(dtype, {n, k}).fill_random(2, 0.1))),
        a(copy(Tensor(DType::kFloat32, {k, rank}).fill_random(3, 0.1))),
        b(copy(Tensor(DType::kFloat32, {rank, n}).fill_random(4))),
        dy(copy(Tensor(dtype, {m, n}).fill_random(5))),
        y(copy(Tensor(dtype, {m, n}))),
        h(copy(Tensor(DType::kFloat32, {m, rank}))),
        dx(copy(Tensor(dtype, {m, k}))),
        da(copy(Tensor(DType::kFloat32, {k, rank}))),
        db(copy(Tensor(DType::kFloat32, {rank, n}))) {}
  ~Layer() {
    for (void* block : blocks_) cudaFree(block);
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  void forward(Context& context) const {
    lora_linear_forward(context, {x, w, {}, {a, b, 2.0f}, dropout, y, h});
  }
  void backward(Context& context) const {
    lora_linear_backward(context, {dy, x, h, w, {a, b, 2.0f}, dropout, dx, da, db});
  }
  void both(Context& context) const {
    forward(context);
    backward(context);
  }

  void clear(cudaStream_t stream) const {
    for (const TensorView& t : {y, h, dx, da, db}) {
      must(cudaMemsetAsync(t.mutable_data(), 0xFF, bytes_of(t), stream));
    }
  }

  // Of y, dx, dA and dB, one after another.
  std::vector<std::byte> results() const {
    std::vector<std::byte> all;
    for (const TensorView& t : {y, h, dx, da, db}) {
      const std::size_t before = all.size();
      all.resize(before + bytes_of(t));
      must(cudaMemcpy(all.data() + before, t.data(), bytes_of(t), cudaMemcpyDeviceToHost));
    }
    return all;
  }

 private:
  static std::size_t bytes_of(const TensorView& t) {
    return static_cast<std::size_t>(t.size()) * size_of(t.dtype());
  }

  TensorView copy(const Tensor& tensor) {
    const TensorView view = tensor;
    void* block = nullptr;
    must(cudaMalloc(&block, bytes_of(view)));
    must(cudaMemcpy(block, view.data(), bytes_of(view), cudaMemcpyHostToDevice));
    blocks_.push_back(block);
    return {block, view.dtype(), {view.dim(0), view.dim(1)}, {DeviceType::kCuda, 0}};
  }

  std::vector<void*> blocks_;

 public:
  TensorView x, w, a, b, dy, y, h, dx, da, db;
  Dropout dropout;
};

class Cuda : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = test::CudaDevice::missing(); !why.empty()) GTEST_SKIP() << why;
  }
};

// Layers for each way that calls are run: few rows, many rows, types, a shape without alignment.
std::vector<std::unique_ptr<Layer>> layers() {
  std::vector<std::unique_ptr<Layer>> all;
  const auto add = [&](auto... arguments) {
    all.push_back(std::make_unique<Layer>(arguments...));
    all.back()->dropout = {0.1f, 7, 11};
  };
  add(DType::kBFloat16, 1024, 1024, 1024, 16);
  add(DType::kBFloat16, 300, 520, 264, 13);
  add(DType::kBFloat16, 520, 1032, 768, 40);
  add(DType::kFloat16, 16, 512, 768, 8);
  add(DType::kBFloat16, 1, 512, 512, 8);
  add(DType::kFloat32, 257, 129, 131, 5);
  add(DType::kBFloat16, 100, 99, 101, 64);
  return all;
}

TEST_F(Cuda, SameBitsEveryTime) {
  const Watchdog watchdog(120);
  const Stream stream;
  Context context = stream.context();
  for (const auto& layer : layers()) {
    layer->both(context);
    stream.wait();
    const auto first = layer->results();
    for (int round = 0; round < 100; ++round) {
      layer->clear(stream);
      layer->both(context);
      stream.wait();
      ASSERT_TRUE(layer->results() == first) << "round " << round;
    }
  }
}

TEST_F(Cuda, StreamsDoNotDisturbEachOther) {
  const Watchdog watchdog(120);
  auto mine = layers(), theirs = layers();
  std::vector<std::vector<std::byte>> expected;
  {
    const Stream stream;
    Context context = stream.context();
    for (const auto& layer : mine) layer->both(context);
    stream.wait();
    for (const auto& layer : mine) expected.push_back(layer->results());
  }
  const auto run = [](const std::vector<std::unique_ptr<Layer>>& all, int rounds) {
    const Stream stream;
    Context context = stream.context();
    for (int round = 0; round < rounds; ++round) {
      for (const auto& layer : all) {
        layer->clear(stream);
        layer->both(context);
      }
    }
    stream.wait();
  };
  std::thread other(run, std::cref(theirs), 100);
  run(mine, 100);
  other.join();
  for (std::size_t i = 0; i < mine.size(); ++i) {
    EXPECT_TRUE(mine[i]->results() == expected[i]) << i;
    EXPECT_TRUE(theirs[i]->results() == expected[i]) << i;
  }
}

TEST_F(Cuda, AGraphReplaysWhileTheStreamItWasCapturedOnGoesOn) {
  const Watchdog watchdog(120);
  const Stream captured, replayed;
  Context context = captured.context();
  const auto mine = layers(), theirs = layers();
  for (const auto& layer : mine) layer->both(context);
  captured.wait();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  must(cudaStreamBeginCapture(captured, cudaStreamCaptureModeThreadLocal));
  for (const auto& layer : theirs) layer->both(context);
  must(cudaStreamEndCapture(captured, &graph));
  must(cudaGraphInstantiate(&ready, graph, 0));
  for (int round = 0; round < 50; ++round) {
    for (const auto& layer : theirs) layer->clear(replayed);
    must(cudaGraphLaunch(ready, replayed));
    for (const auto& layer : mine) layer->both(context);
  }
  captured.wait(), replayed.wait();
  for (std::size_t i = 0; i < mine.size(); ++i) {
    EXPECT_TRUE(mine[i]->results() == theirs[i]->results()) << i;
  }
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
}

__global__ void spin(const volatile int* stop) {
  while (*stop == 0) __nanosleep(1000);
}

// Another kernel holds all multiprocessors but a few for a while: calls wait or crowd together, and
// are right in the end.
TEST_F(Cuda, CallsEndBesideAKernelThatHoldsMostOfTheDevice) {
  const Watchdog watchdog(120);
  const Stream stream, other;
  Context context = stream.context();
  const auto all = layers();
  std::vector<std::vector<std::byte>> expected;
  for (const auto& layer : all) {
    layer->both(context);
    stream.wait();
    expected.push_back(layer->results());
    layer->clear(stream);
  }
  int* stop = nullptr;
  must(cudaMallocHost(&stop, sizeof(int)));
  cudaDeviceProp device{};
  must(cudaGetDeviceProperties(&device, 0));
  const int shared = static_cast<int>(device.sharedMemPerBlockOptin);
  must(cudaFuncSetAttribute(spin, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  for (const int left : {1, 4, 32}) {
    *stop = 0;
    spin<<<device.multiProcessorCount - left, 32, device.sharedMemPerBlockOptin, other>>>(stop);
    for (const auto& layer : all) layer->both(context);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    *stop = 1;
    stream.wait(), other.wait();
    for (std::size_t i = 0; i < all.size(); ++i) {
      EXPECT_TRUE(all[i]->results() == expected[i]) << i << " beside " << left;
      all[i]->clear(stream);
    }
  }
  cudaFreeHost(stop);
}

TEST_F(Cuda, RefusesForeignAndMisplacedMemory) {
  const Stream stream;
  Context context = stream.context();
  const Layer layer(DType::kFloat32, 8, 8, 8, 2);
  std::vector<float> on_the_cpu(64);
  const Device device{DeviceType::kCuda, 0};
  const TensorView foreign(on_the_cpu.data(), DType::kFloat32, {8, 8}, device);
  const auto error_of = [&](const LoraLinearForward& params) {
    return test::error_of([&] { lora_linear_forward(context, params); });
  };
  const Adapter adapter{layer.a, layer.b, 1.0f};
  const std::string unreachable = ": expected memory of cuda:0, got memory that it cannot reach";
  EXPECT_EQ(error_of({foreign, layer.w, {}, adapter, {}, layer.y, {}}),
            "[lora_linear] x" + unreachable);
  EXPECT_EQ(error_of({layer.x, ConstTensorView(foreign), {}, adapter, {}, layer.y, {}}),
            "[lora_linear] weight" + unreachable);
  EXPECT_EQ(error_of({layer.x, layer.w, {}, adapter, {}, foreign, {}}),
            "[lora_linear] y" + unreachable);
  const std::vector<std::int64_t> shape{8, 7}, strides{8, 1};
  const TensorView crooked(static_cast<char*>(layer.x.mutable_data()) + 2, DType::kFloat32, shape,
                           strides, device);
  const TensorView narrow(layer.w.mutable_data(), DType::kFloat32, shape, strides, device);
  const TensorView low(layer.a.mutable_data(), DType::kFloat32, {7, 2}, device);
  EXPECT_EQ(error_of({crooked, narrow, {}, {low, layer.b, 1.0f}, {}, layer.y, {}}),
            "[lora_linear] x: expected memory aligned to its elements, 4 bytes");
  // The context serves the next call.
  layer.both(context);
  stream.wait();
}

TEST_F(Cuda, SaysWhenThereIsNoMemory) {
  const Stream stream;
  CudaPlace place = test::cuda_place(stream);
  place.allocate = [](void*, std::size_t, void*) -> void* { return nullptr; };
  Context context(place);
  const Layer layer(DType::kBFloat16, 300, 520, 264, 13);
  try {
    layer.backward(context);
    FAIL() << "there was no workspace";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    EXPECT_NE(
        std::string(error.what()).find("[lora_linear_backward] workspace: could not allocate"),
        std::string::npos);
  }
}

// A launch that CUDA refuses, here because the stream's capture has been spoilt.
TEST_F(Cuda, ReportsAFailedLaunchOnce) {
  const Stream stream;
  Context context = stream.context();
  const Layer layer(DType::kFloat32, 128, 512, 512, 8);
  const auto delta = [&] {
    lora_delta_forward(context, {layer.x, {layer.a, layer.b, 2.0f}, {}, false, layer.y, layer.h});
  };
  layer.clear(stream);
  delta();
  stream.wait();
  const auto expected = layer.results();
  layer.clear(stream);
  stream.wait();
  cudaGraph_t graph = nullptr;
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  EXPECT_NE(cudaStreamSynchronize(stream), cudaSuccess);
  cudaGetLastError();
  try {
    delta();
    ADD_FAILURE() << "there was no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kDevice);
    EXPECT_NE(std::string(error.what()).find("[lora_delta] cuda:0: launch: "), std::string::npos)
        << error.what();
  }
  EXPECT_NE(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  cudaGetLastError();
  delta();
  stream.wait();
  EXPECT_TRUE(layer.results() == expected);
}

// Kernels that are handed over run as those that calls launch themselves: here on the same stream,
// through the driver.
TEST_F(Cuda, HandsKernelsToACallerThatLaunchesThem) {
  const Watchdog watchdog(120);
  const Stream stream;
  Context context = stream.context();
  struct Driver {
    decltype(&cuLaunchKernelEx) launch = nullptr;
    cudaStream_t stream = nullptr;
    int launches = 0;
    bool works = true;
  } driver;
  driver.stream = stream;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  must(cudaGetDriverEntryPointByVersion("cuLaunchKernelEx", &function, 12000, cudaEnableDefault,
                                        &found));
  driver.launch = reinterpret_cast<decltype(driver.launch)>(function);
  CudaPlace place = test::cuda_place(stream);
  place.state = &driver;
  place.launch = [](void* state, const CudaKernel& kernel) {
    auto& to = *static_cast<Driver*>(state);
    ++to.launches;
    CUlaunchAttribute attributes[2] = {};
    attributes[0].id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
    attributes[0].value.cooperative = kernel.cooperative ? 1 : 0;
    attributes[1].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attributes[1].value.clusterDim = {kernel.cluster, 1, 1};
    CUlaunchConfig config{};
    config.gridDimX = kernel.grid[0], config.gridDimY = kernel.grid[1];
    config.gridDimZ = kernel.grid[2];
    config.blockDimX = kernel.block[0], config.blockDimY = kernel.block[1];
    config.blockDimZ = kernel.block[2];
    config.sharedMemBytes = kernel.shared_bytes;
    config.hStream = to.stream;
    config.attrs = attributes, config.numAttrs = 2;
    return to.works && to.launch(&config, static_cast<CUfunction>(kernel.function),
                                 kernel.arguments, nullptr) == CUDA_SUCCESS;
  };
  Context handing(place);
  for (const auto& layer : layers()) {
    layer->both(context);
    stream.wait();
    const auto expected = layer->results();
    layer->clear(stream);
    layer->both(handing);
    stream.wait();
    EXPECT_TRUE(layer->results() == expected) << driver.launches;
  }
  EXPECT_GE(driver.launches, 12);
  driver.works = false;
  const Layer layer(DType::kFloat32, 8, 8, 8, 2);
  const std::string error = test::error_of([&] { layer.forward(handing); });
  EXPECT_NE(error.find("launch by the caller"), std::string::npos) << error;
}

void expect_new_masks(const Stream& stream, Context& context, Layer& layer) {
  std::uint64_t* state = nullptr;
  must(cudaMalloc(&state, 3 * sizeof(std::uint64_t)));
  const Dropout beside{0.5f, 0, 0, state}, apart{0.5f, 0, 0, state, state + 2};
  layer.dropout = beside;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  layer.both(context);
  must(cudaStreamEndCapture(stream, &graph));
  must(cudaGraphInstantiate(&ready, graph, 0));
  for (const std::uint64_t offset : {0, 1000, 2000}) {
    const std::uint64_t values[] = {42, offset, offset + 5};
    must(cudaMemcpyAsync(state, values, sizeof values, cudaMemcpyHostToDevice, stream));
    must(cudaGraphLaunch(ready, stream));
    stream.wait();
    const auto replayed = layer.results();
    layer.dropout = {0.5f, 42, offset};
    layer.both(context);
    stream.wait();
    EXPECT_TRUE(layer.results() == replayed) << offset;
    layer.dropout = {0.5f, 42, offset + 5};
    layer.both(context);
    stream.wait();
    const auto by_value = layer.results();
    layer.dropout = apart;
    layer.both(context);
    stream.wait();
    EXPECT_TRUE(layer.results() == by_value) << offset;
  }
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
  cudaFree(state);
}

// Seed and offset are read when a kernel runs: a graph draws a new mask at each replay.
TEST_F(Cuda, AReplayedGraphDrawsNewMasks) {
  const Stream stream;
  Context context = stream.context();
  Layer few(DType::kBFloat16, 64, 64, 64, 4);
  Layer many(DType::kBFloat16, 300, 520, 264, 13), wide(DType::kBFloat16, 300, 520, 264, 64);
  for (Layer* const layer : {&few, &many, &wide}) expect_new_masks(stream, context, *layer);
}

}  // namespace
}  // namespace graft
