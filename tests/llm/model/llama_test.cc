// The model against a plain one in double, and its ways of running against each other.

#include "graft/llm/model/llama.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "graft/llm/generate/generator.h"
#include "graft/llm/train/trainer.h"
#include "graft/llm/weights/gguf_file.h"
#include "mlx/ops.h"
#include "mlx/random.h"
#include "mlx/transforms.h"
#include "tests/support/tiny_model.h"

namespace graft::llm {
namespace {

using testing::TemporaryFolder;
using testing::TinyModel;

using Matrix = std::vector<std::vector<double>>;

/// Llama as the papers have it, in double, on the file's own tensors: the file keeps q and k in
/// rotary order, so pairs here are neighbours (2i, 2i + 1), with no rows moved. An adapter's
/// product is added to the weight itself, in Hugging Face's order.
class PlainLlama {
 public:
  explicit PlainLlama(const TinyModel& model) : model_(model) {
    for (const auto& [name, tensor] : model.tensors()) {
      const int columns = tensor.ndim() == 2 ? tensor.shape(1) : tensor.shape(0);
      const std::size_t rows = tensor.size() / static_cast<std::size_t>(columns);
      Matrix& matrix = weights_[name];
      const float* value = tensor.data<float>();
      for (std::size_t row = 0; row < rows; ++row, value += columns) {
        matrix.emplace_back(value, value + columns);
      }
    }
  }

  Matrix& weight(const std::string& name) { return weights_.at(name + ".weight"); }

  Matrix logits(const std::vector<int>& tokens) {
    Matrix x;
    for (const int token : tokens)
      x.push_back(weight("token_embd")[static_cast<std::size_t>(token)]);
    for (int layer = 0; layer < model_.num_layers; ++layer) {
      const std::string prefix = "blk." + std::to_string(layer) + ".";
      add(x, attention(normed(x, prefix + "attn_norm"), prefix));
      const Matrix h = normed(x, prefix + "ffn_norm");
      Matrix gate = times(h, prefix + "ffn_gate");
      const Matrix up = times(h, prefix + "ffn_up");
      for (std::size_t t = 0; t < gate.size(); ++t) {
        for (std::size_t i = 0; i < gate[t].size(); ++i) {
          gate[t][i] *= up[t][i] / (1.0 + std::exp(-gate[t][i]));
        }
      }
      add(x, times(gate, prefix + "ffn_down"));
    }
    return times(normed(x, "output_norm"), "token_embd");
  }

 private:
  static void add(Matrix& x, const Matrix& y) {
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::size_t i = 0; i < x[t].size(); ++i) x[t][i] += y[t][i];
    }
  }

  Matrix normed(const Matrix& x, const std::string& name) {
    Matrix y = x;
    for (auto& row : y) {
      const double squares = std::inner_product(row.begin(), row.end(), row.begin(), 0.0);
      const double root = std::sqrt(squares / static_cast<double>(row.size()) +
                                    static_cast<double>(model_.rms_norm_eps));
      for (std::size_t i = 0; i < row.size(); ++i) row[i] *= weight(name)[0][i] / root;
    }
    return y;
  }

  Matrix times(const Matrix& x, const std::string& name) {
    Matrix y;
    for (const auto& row : x) {
      y.emplace_back();
      for (const auto& w : weight(name)) {
        y.back().push_back(std::inner_product(row.begin(), row.end(), w.begin(), 0.0));
      }
    }
    return y;
  }

  void turn(Matrix& x) const {
    const auto d = static_cast<std::size_t>(model_.head_dim());
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::size_t i = 0; i < x[t].size(); i += 2) {
        const double exponent = -static_cast<double>(i % d) / static_cast<double>(d);
        const double angle = static_cast<double>(t) /
                             static_cast<double>(model_.rope_scaling_factor) *
                             std::pow(static_cast<double>(model_.rope_theta), exponent);
        const double first = x[t][i];
        const double second = x[t][i + 1];
        x[t][i] = first * std::cos(angle) - second * std::sin(angle);
        x[t][i + 1] = first * std::sin(angle) + second * std::cos(angle);
      }
    }
  }

  Matrix attention(const Matrix& x, const std::string& prefix) {
    Matrix q = times(x, prefix + "attn_q");
    Matrix k = times(x, prefix + "attn_k");
    const Matrix v = times(x, prefix + "attn_v");
    turn(q);
    turn(k);
    const auto d = static_cast<std::size_t>(model_.head_dim());
    const auto heads = static_cast<std::size_t>(model_.num_heads);
    const std::size_t shared = heads / static_cast<std::size_t>(model_.num_kv_heads);
    Matrix y(x.size(), std::vector<double>(heads * d, 0.0));
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::size_t head = 0; head < heads; ++head) {
        const std::size_t source = head / shared * d;
        std::vector<double> chance;
        for (std::size_t j = 0; j <= t; ++j) {
          double score = 0.0;
          for (std::size_t i = 0; i < d; ++i) score += q[t][head * d + i] * k[j][source + i];
          chance.push_back(std::exp(score / std::sqrt(static_cast<double>(d))));
        }
        const double total = std::accumulate(chance.begin(), chance.end(), 0.0);
        for (std::size_t j = 0; j <= t; ++j) {
          for (std::size_t i = 0; i < d; ++i) {
            y[t][head * d + i] += chance[j] / total * v[j][source + i];
          }
        }
      }
    }
    return times(y, prefix + "attn_output");
  }

  TinyModel model_;
  std::unordered_map<std::string, Matrix> weights_;
};

class LlamaTest : public ::testing::Test {
 protected:
  LlamaTest() {
    tiny_.write(folder_.file("tiny.gguf"));
    llama_.emplace(LlamaWeights(GgufFile::open(folder_.file("tiny.gguf"))),
                   LlamaOptions{.dtype = mx::float32, .training = true});
  }

  const Llama& llama() const { return *llama_; }

  // Tokens that look random, the same each time.
  std::vector<int> tokens(int count, int seed = 0) const {
    std::vector<int> list;
    for (int i = 0; i < count; ++i) list.push_back((i * 37 + seed * 101 + 5) % tiny_.vocab_size());
    return list;
  }

  static mx::array row_of(const std::vector<int>& list) {
    return mx::array(list.data(), {1, static_cast<int>(list.size())}, mx::int32);
  }

  static std::vector<LoraPair> random_pairs(const AdapterLayout& layout) {
    std::vector<LoraPair> pairs = layout.initial_pairs(3);
    mx::random::KeySequence keys(4);
    for (LoraPair& pair : pairs) {
      pair.b = mx::random::normal(pair.b.shape(), mx::float32, 0.0f, 0.05f, keys.next());
      mx::eval(pair.b);
    }
    return pairs;
  }

  static double largest_difference(const mx::array& x, const mx::array& y) {
    return static_cast<double>(mx::max(mx::abs(mx::subtract(x, y))).item<float>());
  }

  // Largest difference between float32 logits (1, T, vocab) and plain ones, over the largest logit.
  static double relative_error(mx::array logits, const Matrix& plain) {
    logits = mx::contiguous(logits);
    mx::eval(logits);
    const float* value = logits.data<float>();
    double worst = 0.0;
    double largest = 0.0;
    for (const auto& row : plain) {
      for (const double expected : row) {
        worst = std::max(worst, std::abs(static_cast<double>(*value++) - expected));
        largest = std::max(largest, std::abs(expected));
      }
    }
    return std::isfinite(worst) ? worst / largest : INFINITY;
  }

  const TinyModel tiny_;
  const TemporaryFolder folder_;
  std::optional<Llama> llama_;
};

// Thousands of float32 operations in a row; a wrong rotation or mask is off by 1e-1 and more.
constexpr double kTolerance = 2e-5;

TEST_F(LlamaTest, LogitsAreThoseOfAPlainModelInDouble) {
  const std::vector<int> list = tokens(23);
  EXPECT_LT(relative_error(llama().logits(row_of(list), nullptr), PlainLlama(tiny_).logits(list)),
            kTolerance);
}

TEST_F(LlamaTest, ScaledPositionsAreThoseOfAPlainModelInDouble) {
  TinyModel scaled = tiny_;
  scaled.rope_scaling_factor = 3.0f;
  scaled.write(folder_.file("scaled.gguf"));
  const Llama llama(LlamaWeights(GgufFile::open(folder_.file("scaled.gguf"))), LlamaOptions{});
  const std::vector<int> list = tokens(23);
  const Matrix truth = PlainLlama(scaled).logits(list);
  EXPECT_LT(relative_error(llama.logits(row_of(list), nullptr), truth), kTolerance);
  EXPECT_GT(relative_error(this->llama().logits(row_of(list), nullptr), truth), 0.01);

  // And token by token, with rows padded on the left or not.
  for (const int padding : {0, 2}) {
    KvCache cache(scaled.num_layers, padding ? std::vector<int>{padding} : std::vector<int>{});
    for (int t = 0; t < padding; ++t) llama.next_logits(row_of({0}), cache, nullptr);
    for (std::size_t t = 0; t < list.size(); ++t) {
      const mx::array logits = llama.next_logits(row_of({list[t]}), cache, nullptr);
      EXPECT_LT(relative_error(logits, {truth[t]}), kTolerance) << t;
    }
  }
}

TEST_F(LlamaTest, AdapterIsAddedToTheWeightsInHuggingFacesRowOrder) {
  AdapterOptions options{.rank = 3, .alpha = 6.0f};
  options.layers = {1};
  const AdapterLayout layout(llama().config(), options);
  const ModelAdapter adapter{&layout, random_pairs(layout), std::nullopt, {}};

  PlainLlama plain(tiny_);
  for (const AdaptedModule& module : layout.modules()) {
    const LoraPair& pair =
        adapter.pairs[static_cast<std::size_t>(layout.find(module.layer, module.projection))];
    Matrix& weight = plain.weight("blk.1." + std::string(gguf_name_of(module.projection)));
    const int heads = module.projection == Projection::kQ   ? tiny_.num_heads
                      : module.projection == Projection::kK ? tiny_.num_kv_heads
                                                            : 0;
    for (int row = 0; row < module.out_features; ++row) {
      // The file's row (head, i, half) is Hugging Face's row (head, half, i).
      int target = row;
      if (heads > 0) {
        const int d = tiny_.head_dim();
        const int in_head = row % d;
        target = row - in_head + in_head / 2 + (in_head % 2) * d / 2;
      }
      for (int column = 0; column < module.in_features; ++column) {
        double sum = 0.0;
        for (int r = 0; r < 3; ++r) {
          sum += static_cast<double>(pair.a.data<float>()[column * 3 + r]) *
                 static_cast<double>(pair.b.data<float>()[r * module.out_features + target]);
        }
        weight[static_cast<std::size_t>(row)][static_cast<std::size_t>(column)] += 2.0 * sum;
      }
    }
  }
  const std::vector<int> list = tokens(19);
  const mx::array with = llama().logits(row_of(list), &adapter);
  EXPECT_LT(relative_error(with, plain.logits(list)), kTolerance);
  EXPECT_GT(largest_difference(with, llama().logits(row_of(list), nullptr)), 0.01);
}

TEST_F(LlamaTest, RotaryRowsGoBackToHuggingFacesOrder) {
  // Two heads of four: pairs (0, 1), (2, 3) of each head become halves (0, 2), (1, 3).
  const mx::array rows = mx::reshape(mx::arange(0.0, 8.0, mx::float32), {8, 1});
  const mx::array expected = mx::array({0.0f, 2.0f, 1.0f, 3.0f, 4.0f, 6.0f, 5.0f, 7.0f}, {8, 1});
  EXPECT_TRUE(mx::array_equal(rotary_rows_to_hugging_face(rows, 2), expected).item<bool>());
}

TEST_F(LlamaTest, CachedDecodingEqualsTheTrainingForward) {
  const AdapterLayout layout(llama().config(), {.rank = 4});
  const ModelAdapter adapter{&layout, random_pairs(layout), std::nullopt, {}};
  const std::vector<int> list = tokens(100);
  const mx::array whole = llama().logits(row_of(list), &adapter);
  KvCache cache(tiny_.num_layers);
  int fed = 0;
  for (const int count : {7, 1, 1, 60, 1, 30}) {  // the cache holds 100 in the end
    const std::vector<int> part(list.begin() + fed, list.begin() + fed + count);
    const mx::array last = llama().next_logits(row_of(part), cache, &adapter);
    fed += count;
    const mx::array expected = mx::slice(whole, {0, fed - 1, 0}, {1, fed, tiny_.vocab_size()});
    ASSERT_LT(largest_difference(last, mx::reshape(expected, last.shape())), 1e-4) << fed;
  }
}

TEST_F(LlamaTest, CacheGrowsBeyondItsFirstBlock) {
  KvCache cache(1);
  std::vector<mx::array> parts;
  for (const int count : {100, 27, 1, 1, 200}) {
    parts.push_back(mx::random::normal({2, count, 3, 4}));
    const auto [keys, values] = cache.append(0, parts.back(), mx::negative(parts.back()));
    cache.advance(count);
    const mx::array expected = mx::concatenate(parts, 1);
    ASSERT_TRUE(mx::array_equal(keys, expected).item<bool>()) << count;
    ASSERT_TRUE(mx::array_equal(values, mx::negative(expected)).item<bool>()) << count;
  }
}

TEST_F(LlamaTest, BatchedDecodingEqualsSingle) {
  std::vector<std::vector<int>> prompts;
  for (const int length : {1, 9, 4, 17, 9, 2}) prompts.push_back(tokens(length, length));
  // Stop tokens that some rows meet early, so that rows leave the batch at different times.
  const StopTest stops = [](int token) { return token % 5 == 0; };
  const auto together = generate_greedy(llama(), nullptr, prompts, 24, stops);
  ASSERT_EQ(together.size(), prompts.size());
  std::size_t longest = 0;
  std::size_t shortest = 24;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    std::vector<int> alone;
    Sampler sampler({}, 0);
    Sequence sequence(llama());
    const Generated generated =
        generate(sequence, prompts[i], {.max_tokens = 24, .stops = stops}, sampler, [&](int token) {
          alone.push_back(token);
          return true;
        });
    EXPECT_EQ(generated.tokens, alone);
    EXPECT_EQ(together[i], alone) << "prompt " << i;
    longest = std::max(longest, alone.size());
    shortest = std::min(shortest, alone.size());
  }
  EXPECT_LT(shortest, longest);  // or nothing left the batch early, and the test shows less
}

TEST_F(LlamaTest, TrainingOverfitsAndGivesTheSameBitsAgain) {
  Batch batch;
  batch.batch_size = 2;
  batch.length = 12;
  batch.tokens = tokens(24);
  batch.targets = tokens(24, 1);
  std::fill_n(batch.targets.begin() + 20, 4, kIgnoreIndex);
  batch.num_targets = 20;
  batch.num_inputs = 24;
  const auto train = [&](float dropout) {
    const AdapterLayout layout(llama().config(), {.rank = 4, .dropout = dropout});
    Trainer trainer(llama(), layout, layout.initial_pairs(0),
                    {.schedule = {LrShape::kConstant, 2e-2, 0, 80}});
    std::vector<double> losses;
    for (int i = 0; i < 80; ++i) losses.push_back(trainer.step(batch).loss);
    losses.push_back(trainer.evaluate(std::vector<Batch>{batch}).value());
    return losses;
  };
  const std::vector<double> losses = train(0.0f);
  EXPECT_LT(losses.back(), 0.25 * losses.front());
  EXPECT_EQ(train(0.0f), losses);
  const std::vector<double> dropped = train(0.2f);
  EXPECT_LT(dropped.back(), 0.5 * dropped.front());
  EXPECT_NE(dropped[1], losses[1]);
  EXPECT_EQ(train(0.2f), dropped);
}

// Rows of a batch, the first `ignored` targets of each left out.
Batch batch_of(int rows, int length, const std::vector<int>& tokens,
               const std::vector<int>& ignored) {
  Batch batch;
  batch.batch_size = rows;
  batch.length = length;
  batch.tokens.assign(tokens.begin(), tokens.begin() + rows * length);
  batch.targets.assign(tokens.rbegin(), tokens.rbegin() + rows * length);
  for (int row = 0; row < rows; ++row) {
    const int out = ignored[static_cast<std::size_t>(row)];
    std::fill_n(batch.targets.begin() + row * length, out, kIgnoreIndex);
    batch.num_targets += length - out;
  }
  batch.num_inputs = rows * length;
  return batch;
}

TEST_F(LlamaTest, AccumulatedGradientsAreThoseOfOneBatchWithAllSamples) {
  constexpr int kLength = 10;
  const std::vector<int> ids = tokens(3 * kLength);
  // Targets that count differ much in number: each counts the same, not each batch.
  const std::vector<int> ignored = {9, 0, 3};
  const Batch whole = batch_of(3, kLength, ids, ignored);
  std::vector<Batch> parts;
  for (const auto& [first, rows] : {std::pair{0, 1}, std::pair{1, 2}}) {
    Batch part;
    part.batch_size = rows;
    part.length = kLength;
    const auto begin = first * kLength, end = (first + rows) * kLength;
    part.tokens.assign(whole.tokens.begin() + begin, whole.tokens.begin() + end);
    part.targets.assign(whole.targets.begin() + begin, whole.targets.begin() + end);
    part.num_targets = std::ranges::count_if(part.targets, [](int t) { return t != kIgnoreIndex; });
    part.num_inputs = rows * kLength;
    parts.push_back(std::move(part));
  }
  const AdapterLayout layout(llama().config(), {.rank = 3});
  const std::vector<LoraPair> initial = random_pairs(layout);
  // Plain descent with a large rate and no limit: what is compared is the gradient.
  const auto trainer_of = [&](int accumulation_steps) {
    return Trainer(llama(), layout, initial,
                   {.schedule = {LrShape::kConstant, 1.0, 0, 10},
                    .optimizer = {.kind = OptimizerKind::kSgd},
                    .accumulation_steps = accumulation_steps,
                    .max_grad_norm = 0});
  };
  Trainer once = trainer_of(1), accumulating = trainer_of(2);
  const StepResult expected = once.step(whole);
  const StepResult first = accumulating.step(parts[0]);
  EXPECT_FALSE(first.updated);
  EXPECT_EQ(accumulating.state().pending.iterations, 1);
  const StepResult second = accumulating.step(parts[1]);
  EXPECT_TRUE(second.updated);
  EXPECT_EQ(accumulating.state().pending.iterations, 0);
  EXPECT_NEAR(second.grad_norm, expected.grad_norm, 1e-5 * expected.grad_norm);
  EXPECT_NEAR((first.loss * 1 + second.loss * 17) / 18, expected.loss, 1e-5 * expected.loss);

  const std::vector<LoraPair> after = accumulating.pairs(), right = once.pairs();
  for (std::size_t i = 0; i < right.size(); ++i) {
    for (const auto& [got, want, start] : {std::tuple{after[i].a, right[i].a, initial[i].a},
                                           std::tuple{after[i].b, right[i].b, initial[i].b}}) {
      const float error = mx::max(mx::abs(got - want)).item<float>();
      const float moved = mx::max(mx::abs(want - start)).item<float>();
      EXPECT_GT(moved, 0.0f);
      EXPECT_LE(error, 1e-4f * moved + 1e-6f) << "pair " << i;
    }
  }
}

TEST_F(LlamaTest, LossIsTheMeanOverTargetsThatCount) {
  Batch batch;
  batch.batch_size = 1;
  batch.length = 6;
  batch.tokens = tokens(6);
  batch.targets = {kIgnoreIndex, 11, kIgnoreIndex, 22, 33, kIgnoreIndex};
  batch.num_targets = 3;
  const Matrix logits = PlainLlama(tiny_).logits(batch.tokens);
  double expected = 0.0;
  for (const std::size_t t : {std::size_t{1}, std::size_t{3}, std::size_t{4}}) {
    double sum = 0.0;
    for (const double logit : logits[t]) sum += std::exp(logit);
    expected += (std::log(sum) - logits[t][static_cast<std::size_t>(batch.targets[t])]) / 3.0;
  }
  const AdapterLayout layout(llama().config(), {.rank = 2});
  Trainer trainer(llama(), layout, layout.initial_pairs(0),
                  {.schedule = {LrShape::kConstant, 1e-3, 0, 1}});
  EXPECT_NEAR(trainer.evaluate(std::vector<Batch>{batch}).value(), expected, 1e-5 * expected);
  EXPECT_NEAR(trainer.step(batch).loss, expected, 1e-5 * expected);
}

TEST_F(LlamaTest, GradientsFollowFiniteDifferencesOfTheLoss) {
  AdapterOptions options{.rank = 3};
  options.layers = {0};
  options.targets = {Projection::kK, Projection::kO, Projection::kUp};
  const AdapterLayout layout(llama().config(), options);
  const std::vector<LoraPair> pairs = random_pairs(layout);
  const mx::array inputs = row_of(tokens(16));
  const mx::array targets = row_of(tokens(16, 2));
  const auto loss_at = [&](const std::vector<mx::array>& flat) {
    ModelAdapter adapter{&layout, {}, std::nullopt, {}};
    for (std::size_t i = 0; i < flat.size(); i += 2) {
      adapter.pairs.push_back({flat[i], flat[i + 1]});
    }
    return std::vector<mx::array>{llama().loss_sum(inputs, targets, &adapter)};
  };
  std::vector<mx::array> flat;
  for (const LoraPair& pair : pairs) {
    flat.push_back(pair.a);
    flat.push_back(pair.b);
  }
  const auto gradients = mx::value_and_grad(loss_at, {0, 1, 2, 3, 4, 5})(flat).second;
  for (std::size_t i = 0; i < flat.size(); ++i) {
    // Along the gradient itself the slope is its length.
    const double length =
        static_cast<double>(mx::sqrt(mx::sum(mx::square(gradients[i]))).item<float>());
    ASSERT_GT(length, 1e-3);
    const auto moved = [&](float by) {
      std::vector<mx::array> there = flat;
      there[i] =
          mx::add(flat[i], mx::multiply(gradients[i], mx::array(by / static_cast<float>(length))));
      return static_cast<double>(loss_at(there)[0].item<float>());
    };
    const auto difference = [&](float step) {
      return (moved(step) - moved(-step)) / (2.0 * static_cast<double>(step));
    };
    // Richardson's extrapolation takes the third derivative out; what is left is of fourth order,
    // and float32 losses of about 100 in differences of about 0.04.
    const double slope = (4.0 * difference(1e-2f) - difference(2e-2f)) / 3.0;
    EXPECT_NEAR(slope / length, 1.0, 5e-3) << "parameter " << i;
  }
}

}  // namespace
}  // namespace graft::llm
