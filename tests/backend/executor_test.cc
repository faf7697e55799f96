// A context with a host's executor: every operation gives the pool's bits for the same number of
// threads, and ends, whatever schedule the host has.

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <typeinfo>
#include <utility>
#include <vector>

#include "graft/attention.h"
#include "graft/error.h"
#include "graft/linear_cross_entropy.h"
#include "graft/lora.h"
#include "graft/rms_norm.h"
#include "graft/rope.h"
#include "graft/swiglu.h"
#include "support/isas.h"
#include "support/tensor.h"

namespace graft {
namespace {

using test::Tensor;

using Work = void (*)(void* state, int worker);

class TestExecutor : public Executor {
 public:
  explicit TestExecutor(int threads) : threads_(threads) {}
  int threads() const override { return threads_; }
  int runs() const { return runs_; }

  void run(int workers, Work work, void* state) override {
    ++runs_;
    EXPECT_LE(workers, threads_);
    run_workers(workers, work, state);
  }

 private:
  virtual void run_workers(int workers, Work work, void* state) = 0;

  const int threads_;
  int runs_ = 0;
};

// A thread for each worker.
class FreshThreads : public TestExecutor {
  using TestExecutor::TestExecutor;
  void run_workers(int workers, Work work, void* state) override {
    std::vector<std::thread> threads;
    for (int i = 0; i < workers; ++i) threads.emplace_back(work, state, i);
    for (std::thread& thread : threads) thread.join();
  }
};

// One after another on the calling thread, the last one first.
class Backwards : public TestExecutor {
  using TestExecutor::TestExecutor;
  void run_workers(int workers, Work work, void* state) override {
    for (int i = workers - 1; i >= 0; --i) work(state, i);
  }
};

// Ranges of workers, dealt to two threads before any begins.
class TwoRanges : public TestExecutor {
  using TestExecutor::TestExecutor;
  void run_workers(int workers, Work work, void* state) override {
    const auto range = [&](int first, int last) {
      for (int i = first; i < last; ++i) work(state, i);
    };
    std::thread other(range, workers / 2, workers);
    range(0, workers / 2);
    other.join();
  }
};

// Only the last worker, on another thread.
class Fewer : public TestExecutor {
  using TestExecutor::TestExecutor;
  void run_workers(int workers, Work work, void* state) override {
    std::thread(work, state, workers - 1).join();
  }
};

// None: all is left to the caller.
class Idle : public TestExecutor {
  using TestExecutor::TestExecutor;
  void run_workers(int, Work, void*) override {}
};

std::vector<std::unique_ptr<TestExecutor>> executors(int threads) {
  std::vector<std::unique_ptr<TestExecutor>> all;
  all.push_back(std::make_unique<FreshThreads>(threads));
  all.push_back(std::make_unique<Backwards>(threads));
  all.push_back(std::make_unique<TwoRanges>(threads));
  all.push_back(std::make_unique<Fewer>(threads));
  all.push_back(std::make_unique<Idle>(threads));
  return all;
}

// Results of an operation, sentinels included.
using Bytes = std::vector<std::vector<std::byte>>;

Tensor random(DType dtype, std::vector<std::int64_t> shape, std::uint32_t seed) {
  Tensor tensor(dtype, std::move(shape));
  tensor.fill_random(seed);
  return tensor;
}

Bytes lora(Context& context, DType dtype, std::int64_t rows, float p) {
  constexpr std::int64_t in = 70, out = 101, rank = 12;
  const Tensor x = random(dtype, {rows, in}, 1), w = random(dtype, {out, in}, 2);
  const Tensor a = random(dtype, {in, rank}, 3), b = random(dtype, {rank, out}, 4);
  const Tensor dy = random(dtype, {rows, out}, 5);
  const Adapter adapter{a, b, 2.0f};
  const Dropout dropout{p, 7, 8};
  const Tensor y(dtype, {rows, out}), h(DType::kFloat32, {rows, rank}), dx(dtype, {rows, in}),
      da(DType::kFloat32, {in, rank}), db(DType::kFloat32, {rank, out}), delta(dtype, {rows, out});
  lora_linear_forward(context, {.x = x,
                                .weight = ConstTensorView(w),
                                .bias = {},
                                .adapter = adapter,
                                .dropout = dropout,
                                .y = y,
                                .h = h});
  lora_linear_backward(context, {.dy = dy,
                                 .x = x,
                                 .h = h,
                                 .weight = ConstTensorView(w),
                                 .adapter = adapter,
                                 .dropout = dropout,
                                 .dx = dx,
                                 .da = da,
                                 .db = db});
  lora_delta_forward(
      context,
      {.x = x, .adapter = adapter, .dropout = dropout, .accumulate = false, .y = delta, .h = {}});
  return {y.bytes(), h.bytes(), dx.bytes(), da.bytes(), db.bytes(), delta.bytes()};
}

Bytes attention(Context& context, DType dtype, std::int64_t queries) {
  constexpr std::int64_t batch = 2, keys = 45, heads = 4, kv_heads = 2, d = 16;
  const Tensor q = random(dtype, {batch, queries, heads, d}, 1);
  const Tensor k = random(dtype, {batch, keys, kv_heads, d}, 2);
  const Tensor v = random(dtype, {batch, keys, kv_heads, d}, 3);
  const Tensor dy = random(dtype, {batch, queries, heads, d}, 4);
  AttentionOptions options;
  options.scale = 0.25f;
  options.rotary.enabled = true;
  const Tensor y(dtype, {batch, queries, heads, d}), lse(DType::kFloat32, {batch, heads, queries}),
      dq(dtype, {batch, queries, heads, d}), dk(dtype, {batch, keys, kv_heads, d}),
      dv(dtype, {batch, keys, kv_heads, d});
  attention_forward(context,
                    {.q = q, .k = k, .v = v, .options = options, .y = y, .logsumexp = lse});
  attention_backward(context, {.dy = dy,
                               .q = q,
                               .k = k,
                               .v = v,
                               .y = y,
                               .logsumexp = lse,
                               .options = options,
                               .dq = dq,
                               .dk = dk,
                               .dv = dv});
  return {y.bytes(), lse.bytes(), dq.bytes(), dk.bytes(), dv.bytes()};
}

Bytes cross_entropy(Context& context, DType dtype) {
  constexpr std::int64_t rows = 150, in = 33, vocabulary = 1000;
  const Tensor x = random(dtype, {rows, in}, 1), w = random(dtype, {vocabulary, in}, 2);
  std::vector<std::int32_t> targets;
  for (std::int32_t row = 0; row < rows; ++row) targets.push_back(row % 9 == 0 ? -100 : row * 6);
  const Tensor losses(DType::kFloat32, {rows}), dx(dtype, {rows, in});
  linear_cross_entropy(context, {.x = x,
                                 .weight = ConstTensorView(w),
                                 .targets = {targets.data(), DType::kInt32, {rows}},
                                 .losses = losses,
                                 .dx = dx});
  return {losses.bytes(), dx.bytes()};
}

Bytes rows_of_their_own(Context& context, DType dtype) {
  constexpr std::int64_t rows = 100, features = 600;
  const Tensor x = random(dtype, {rows, features}, 1), dy = random(dtype, {rows, features}, 2);
  const Tensor weight = random(DType::kFloat32, {features}, 3);
  const Tensor y(dtype, {rows, features}), rstd(DType::kFloat32, {rows}),
      ds(dtype, {rows, features}), dweight(DType::kFloat32, {features}),
      product(dtype, {rows, features}), dgate(dtype, {rows, features}),
      dup(dtype, {rows, features});
  rms_norm_forward(
      context,
      {.x = x, .residual = {}, .weight = weight, .eps = 1e-5f, .y = y, .sum = {}, .rstd = rstd});
  rms_norm_backward(context, {.dy = dy,
                              .s = x,
                              .weight = weight,
                              .eps = 1e-5f,
                              .rstd = rstd,
                              .dsum = {},
                              .ds = ds,
                              .dweight = dweight});
  swiglu_forward(context, {.gate = x, .up = dy, .y = product});
  swiglu_backward(context, {.dy = dy, .gate = x, .up = y, .dgate = dgate, .dup = dup});
  const Tensor heads = random(dtype, {2, 25, 4, 16}, 4), turned(dtype, {2, 25, 4, 16});
  rope(context, {.x = heads, .rotary = {.enabled = true}, .y = turned});
  return {y.bytes(),       rstd.bytes(),  ds.bytes(),  dweight.bytes(),
          product.bytes(), dgate.bytes(), dup.bytes(), turned.bytes()};
}

// `results` of a context: those of the pool first, then those of each executor. The pool is of one
// thread when an executor's turn comes, so that what it divides work for shows.
template <class Results>
void same_bits(const Results& results) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const int threads : {1, 2, 3, 8}) {
      Bytes wanted;
      test::with_threads(threads, [&] {
        Context context;
        wanted = results(context, dtype);
      });
      test::with_threads(1, [&] {
        for (const auto& executor : executors(threads)) {
          SCOPED_TRACE(std::string(typeid(*executor).name()) + " of " + std::to_string(threads));
          Context context(*executor);
          const Bytes got = results(context, dtype);
          ASSERT_EQ(got.size(), wanted.size());
          for (std::size_t i = 0; i < got.size(); ++i)
            EXPECT_EQ(got[i], wanted[i]) << "result " << i;
          EXPECT_EQ(executor->runs() > 0, threads > 1);
        }
      });
    }
  }
}

TEST(Executor, LoraGivesThePoolsBits) {
  for (const std::int64_t rows : {9, 417}) {  // shares of the columns, and chunks of rows
    for (const float p : {0.0f, 0.3f}) {
      SCOPED_TRACE(std::to_string(rows) + " rows, dropout " + std::to_string(p));
      same_bits([&](Context& context, DType dtype) { return lora(context, dtype, rows, p); });
    }
  }
}

TEST(Executor, AttentionGivesThePoolsBits) {
  for (const std::int64_t queries : {1, 45}) {
    same_bits([&](Context& context, DType dtype) { return attention(context, dtype, queries); });
  }
}

TEST(Executor, CrossEntropyGivesThePoolsBits) { same_bits(cross_entropy); }

TEST(Executor, NormsGatesAndRotationsGiveThePoolsBits) { same_bits(rows_of_their_own); }

TEST(Executor, MovesWithItsContext) {
  Backwards executor(2);
  Context context(executor);
  Context moved(std::move(context));
  EXPECT_EQ(moved.executor(), &executor);
  EXPECT_EQ(moved.threads(), 2);
  EXPECT_EQ(Context().executor(), nullptr);
  EXPECT_EQ(Context().threads(), num_threads());
}

TEST(Executor, NeedsAThread) {
  for (const int threads : {-1, 0, 1025}) {
    Idle executor(threads);
    Context context(executor);
    const Tensor x = random(DType::kFloat32, {4, 8}, 1), y(DType::kFloat32, {4, 8});
    try {
      swiglu_forward(context, {.gate = x, .up = x, .y = y});
      ADD_FAILURE() << "expected an error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      EXPECT_STREQ(error.what(), ("[context] executor: expected 1 to 1024 threads, got " +
                                  std::to_string(threads))
                                     .c_str());
    }
  }
}

// What a host's run() throws is the host's: it passes, and the next call finds all in order.
TEST(Executor, ErrorsOfTheHostPass) {
  class Failing : public TestExecutor {
    using TestExecutor::TestExecutor;
    void run_workers(int, Work, void*) override { throw std::runtime_error("no threads today"); }
  } failing(2);
  Context context(failing);
  EXPECT_THROW(cross_entropy(context, DType::kFloat32), std::runtime_error);
  FreshThreads executor(2);
  Context other(executor);
  cross_entropy(other, DType::kFloat32);
  EXPECT_GT(executor.runs(), 0);
}

}  // namespace
}  // namespace graft
