// Another of MLX's kernels on the stand-in, one that has simdgroup matrices loaded from memory and
// also fills them by lane: only one layout makes both agree.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <string>
#include <vector>

#include "hosts/mlx/truth.h"
#include "metal/layouts.h"
#include "metal/mlx_text.h"
#include "metal/shader.h"

namespace graft::standin {
namespace {

namespace mx = ::mlx::core;
using mlx::testing::Matrix;
using mlx::testing::matrix;
using mlx::testing::normal;

// One head of the gated delta rule over one chunk of the kernel's eight steps, or less. For each
// step with its row of q, k, v and its decay and beta:
//   state = decay · state;   state += k · beta · (v − k · state);   y = q · state
constexpr int kChunk = 8, kKeys = 16, kValues = 32;

struct Head {
  mx::array q, k, v, state, decay, beta;  // state is kept transposed
};

Head head_of(int steps) {
  const auto between = [&](float low, std::uint32_t seed) {
    return mx::add(mx::multiply(mx::sigmoid(normal({steps, 1}, seed)), mx::array(1 - low)),
                   mx::array(low));
  };
  return {normal({steps, kKeys}, 1, 0.3f),
          normal({steps, kKeys}, 2, 0.3f),
          normal({steps, kValues}, 3),
          normal({kValues, kKeys}, 4),
          between(0.8f, 5),
          between(0.0f, 6)};
}

struct Truth {
  Matrix y, state;
};

Truth truth_of(const Head& head, int steps) {
  const Matrix q = matrix(head.q), k = matrix(head.k), v = matrix(head.v);
  const Matrix decay = matrix(head.decay), beta = matrix(head.beta);
  Truth truth{Matrix(v.rows, v.cols), matrix(head.state)};
  for (std::size_t t = 0; t < static_cast<std::size_t>(steps); ++t) {
    for (std::size_t value = 0; value < kValues; ++value) {
      double* const state = &truth.state.at(value, 0);
      double remembered = 0;
      for (std::size_t i = 0; i < kKeys; ++i) {
        state[i] *= decay.at(t, 0);
        remembered += state[i] * k.at(t, i);
      }
      for (std::size_t i = 0; i < kKeys; ++i) {
        state[i] += k.at(t, i) * beta.at(t, 0) * (v.at(t, value) - remembered);
        truth.y.at(t, value) += state[i] * q.at(t, i);
      }
    }
  }
  return truth;
}

std::string gated_delta_text() {
  return "#include <metal_simdgroup_matrix>\n#define MLX_MTL_PRAGMA_UNROLL\n" +
         mlx_kernel_text("gated_delta_update.h", {{"save_state", false}}) +
         instantiate("gated_delta_fused_chunk<float, " + std::to_string(kKeys) + ", " +
                     std::to_string(kValues) + ", 1, 1, " + std::to_string(kChunk) + ">");
}

struct Result {
  mx::array y, state;
  std::string fault;
};

Result run_gated_delta(const Head& head, int steps, const std::string& before = "") {
  Result result{mx::zeros({steps, kValues}), mx::zeros({kValues, kKeys}), ""};
  std::vector<Buffer> buffers;
  for (mx::array array :
       {head.q, head.k, head.v, head.state, head.decay, head.beta, result.y, result.state}) {
    array.eval();
    buffers.push_back({array.data<char>(), array.nbytes(), buffers.size() < 6});
  }
  buffers.push_back({&steps, sizeof(steps)});
  Machine machine;
  result.fault = Shader(before + gated_delta_text(), GRAFT_SHADER_CACHE)
                     .launch(machine, buffers, {{32, kValues / 8, 1}}, {{32, 4, 1}});
  return result;
}

class GatedDelta : public testing::Test {
 protected:
  void SetUp() override {
    try {
      gated_delta_text();
    } catch (const MissingText& missing) {
      GTEST_SKIP() << missing.what();
    }
  }
};

TEST_F(GatedDelta, IsRight) {
  for (const int steps : {kChunk, kChunk - 3}) {
    SCOPED_TRACE(steps);
    const Head head = head_of(steps);
    const Result result = run_gated_delta(head, steps);
    const Truth truth = truth_of(head, steps);
    EXPECT_EQ(result.fault, "");
    mlx::testing::expect_rounded(result.y, truth.y.data, kKeys + kChunk);
    mlx::testing::expect_rounded(result.state, truth.state.data, kKeys + kChunk);
  }
}

TEST_F(GatedDelta, IsWrongWithAnotherLayout) {
  const Head head = head_of(kChunk);
  const Truth truth = truth_of(head, kChunk);
  for (const char* layout : {kTransposed, kRowsSwapped, kRenumbered}) {
    SCOPED_TRACE(layout);
    const Result result = run_gated_delta(head, kChunk, layout);
    EXPECT_EQ(result.fault, "");
    EXPECT_GT(mlx::testing::rms_error(result.y, truth.y.data),
              0.1 * mlx::testing::root_mean_square(truth.y.data));
  }
}

}  // namespace
}  // namespace graft::standin
