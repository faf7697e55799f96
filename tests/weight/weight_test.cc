#include "graft/weight.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "graft/error.h"
#include "support/errors.h"
#include "support/isas.h"
#include "support/tensor.h"

namespace graft {
namespace {

using test::error_of;
using test::Tensor;

Tensor random(const std::vector<std::int64_t>& shape, DType dtype = DType::kFloat32) {
  Tensor w(dtype, shape, {.offset = 1, .gap = 1, .order = {}});
  w.fill_random(5);
  return w;
}

TEST(Weight, UnpacksToWhatItWasRoundedTo) {
  test::on_each_isa([] {
    for (const DType type : {DType::kFloat32, DType::kBFloat16}) {
      Tensor w(DType::kFloat32, {67, 35}, {.offset = 1, .gap = 1, .order = {1, 0}});
      w.fill_random(5);
      const Weight packed = Weight::packed(w, type);
      Tensor back(DType::kFloat32, {67, 35});
      packed.unpack(back);
      EXPECT_EQ(back.values(), w.as(type).values());
      EXPECT_EQ(packed.dtype(), type);
    }
  });
}

TEST(Weight, SaysWhatItWouldHold) {
  test::on_each_isa([] {
    for (const DType type : {DType::kFloat32, DType::kBFloat16}) {
      for (const Packing directions : {Packing::kForward, Packing::kForwardAndBackward}) {
        const std::size_t bytes = Weight::packed_nbytes(67, 35, type, directions);
        EXPECT_EQ(bytes, Weight::packed(random({67, 35}), type, directions).nbytes());
        const std::size_t ways = directions == Packing::kForward ? 1 : 2;
        EXPECT_GE(bytes, ways * 67 * 35 * size_of(type));
      }
    }
  });
  EXPECT_EQ(error_of([] { Weight::packed_nbytes(67, 35, DType::kFloat16); }),
            "[weight] multiply: expected float32 or bfloat16, got float16");
  EXPECT_EQ(error_of([] { Weight::packed_nbytes(-1, 35); }),
            "[weight] features: expected at least 0");
}

TEST(Weight, SaysWhatItHolds) {
  const Tensor w = random({67, 35});
  EXPECT_FALSE(Weight().present());
  const Weight plain = w.view();
  const Weight both = Weight::packed(w);
  const Weight forward = Weight::packed(w, DType::kFloat32, Packing::kForward);
  for (const Weight& weight : {plain, both, forward}) {
    EXPECT_TRUE(weight.present());
    EXPECT_EQ(weight.out_features(), 67);
    EXPECT_EQ(weight.in_features(), 35);
    EXPECT_EQ(weight.dtype(), DType::kFloat32);
    EXPECT_EQ(weight.format(), WeightFormat::kDense);
    EXPECT_EQ(weight.device(), Device{});
    EXPECT_TRUE(weight.serves(Direction::kForward));
  }
  EXPECT_TRUE(plain.serves(Direction::kBackward));
  EXPECT_TRUE(both.serves(Direction::kBackward));
  EXPECT_FALSE(forward.serves(Direction::kBackward));
  EXPECT_FALSE(plain.is_packed());
  EXPECT_TRUE(both.is_packed());
  EXPECT_EQ(plain.nbytes(), 0u);
  EXPECT_LT(forward.nbytes(), both.nbytes());
}

TEST(Weight, CopiesShareWhatIsPacked) {
  const Tensor w = random({8, 4});
  const Weight packed = Weight::packed(w), copy = packed;
  EXPECT_EQ(copy, packed);
  EXPECT_EQ(copy.storage(), packed.storage());
  EXPECT_NE(Weight::packed(w), packed);
  EXPECT_EQ(Weight(w.view()), Weight(w.view()));
  EXPECT_NE(Weight(w.view()), packed);
}

TEST(Weight, OwnsWhatItIsGivenUntilTheLastCopyIsGone) {
  auto memory = std::make_shared<std::vector<float>>(6, 2.0f);
  const std::weak_ptr<std::vector<float>> alive = memory;
  Weight copy;
  {
    const ConstTensorView view(memory->data(), DType::kFloat32, {2, 3});
    const Weight weight = Weight::owning(view, std::move(memory));
    EXPECT_FALSE(weight.is_packed());
    EXPECT_EQ(weight.nbytes(), 24u);
    copy = weight;
  }
  ASSERT_FALSE(alive.expired());
  Tensor back(DType::kFloat32, {2, 3});
  copy.unpack(back);
  EXPECT_EQ(back.values(), std::vector<double>(6, 2.0));
  copy = {};
  EXPECT_TRUE(alive.expired());
}

TEST(Weight, RefusesWhatItCannotPack) {
  const Tensor w = random({8, 4}), row = random({8}), half = random({8, 4}, DType::kFloat16);
  EXPECT_EQ(error_of([&] { Weight::packed(row); }), "[weight] w: expected 2 dimensions, got (8)");
  EXPECT_EQ(error_of([&] { Weight::packed(half); }),
            "[weight] w: expected float32 or bfloat16, got float16");
  EXPECT_EQ(error_of([&] { Weight::packed(w, DType::kFloat16); }),
            "[weight] multiply: expected float32 or bfloat16, got float16");
  EXPECT_EQ(error_of([&] { Weight().unpack(w.view()); }),
            "[weight.unpack] weight: expected a packed or a plain weight, got none");
  const Device cuda{DeviceType::kCuda, 0};
  const ConstTensorView there(w.view().data(), DType::kFloat32, {8, 4}, cuda);
  EXPECT_EQ(error_of([&] { Weight::packed(there, DType::kFloat32, Packing::kForward, cuda); }),
            "[weight] this build has no CUDA kernels");
}

}  // namespace
}  // namespace graft
