#include "graft/capabilities.h"

#include <array>
#include <initializer_list>

#include "backend/calls.h"

namespace graft {
namespace {

// Sizes that every kernel takes.
constexpr std::int64_t kRows = 16, kFeatures = 64, kRank = 8;

// Views of one element type on one device, without memory: `supports` looks at neither.
class Samples {
 public:
  Samples(DType dtype, Device device) : dtype_(dtype), device_(device) {}

  TensorView tensor(std::initializer_list<std::int64_t> shape) const {
    return {nullptr, dtype_, shape, device_};
  }
  TensorView floats(std::initializer_list<std::int64_t> shape) const {
    return {nullptr, DType::kFloat32, shape, device_};
  }
  TensorView rows() const { return tensor({kRows, kFeatures}); }
  TensorView row() const { return tensor({kFeatures}); }
  TensorView sums() const { return floats({kFeatures}); }
  TensorView row_sums() const { return floats({kRows}); }
  ConstTensorView weight() const { return tensor({kFeatures, kFeatures}); }
  TensorView heads() const { return tensor({1, kRows, 2, kFeatures}); }
  TensorView logsumexp() const { return floats({1, 2, kRows}); }
  TensorView h() const { return floats({kRows, kRank}); }
  TensorView da() const { return floats({kFeatures, kRank}); }
  TensorView db() const { return floats({kRank, kFeatures}); }
  Adapter adapter() const { return {tensor({kFeatures, kRank}), tensor({kRank, kFeatures}), 1.0f}; }
  ConstTensorView targets() const { return {nullptr, DType::kInt32, {kRows}, device_}; }

 private:
  DType dtype_;
  Device device_;
};

struct Question {
  const char* op;
  Direction direction;
  Support (*ask)(const Samples& s);
};

constexpr Direction kForward = Direction::kForward, kBackward = Direction::kBackward;

constexpr Question kQuestions[] = {
    {"linear", kForward,
     [](const Samples& s) {
       return supports(LinearForward{s.rows(), s.weight(), s.row(), s.rows()});
     }},
    {"linear", kBackward,
     [](const Samples& s) {
       return supports(LinearBackward{s.rows(), s.weight(), s.rows()});
     }},
    {"lora_delta", kForward,
     [](const Samples& s) {
       return supports(LoraDeltaForward{s.rows(), s.adapter(), {}, false, s.rows(), s.h()});
     }},
    {"lora_delta", kBackward,
     [](const Samples& s) {
       return supports(
           LoraDeltaBackward{s.rows(), s.rows(), s.h(), s.adapter(), {}, s.rows(), s.da(), s.db()});
     }},
    {"lora_linear", kForward,
     [](const Samples& s) {
       return supports(
           LoraLinearForward{s.rows(), s.weight(), s.row(), s.adapter(), {}, s.rows(), s.h()});
     }},
    {"lora_linear", kBackward,
     [](const Samples& s) {
       return supports(LoraLinearBackward{
           s.rows(), s.rows(), s.h(), s.weight(), s.adapter(), {}, s.rows(), s.da(), s.db()});
     }},
    {"lora_siblings", kForward,
     [](const Samples& s) {
       const LoraLinearForward layer{s.rows(), s.weight(), s.row(), s.adapter(),
                                     {},       s.rows(),   s.h()};
       const std::array layers{layer, layer};
       return supports(LoraSiblingsForward(layers));
     }},
    {"lora_siblings", kBackward,
     [](const Samples& s) {
       const LoraLinearBackward layer{s.rows(), s.rows(), s.h(),  s.weight(), s.adapter(),
                                      {},       s.rows(), s.da(), s.db()};
       const std::array layers{layer, layer};
       return supports(LoraSiblingsBackward(layers));
     }},
    {"softmax", kForward,
     [](const Samples& s) {
       return supports(SoftmaxForward{s.rows(), 1.0f, s.rows()});
     }},
    {"softmax", kBackward,
     [](const Samples& s) {
       return supports(SoftmaxBackward{s.rows(), s.rows(), 1.0f, s.rows()});
     }},
    {"rms_norm", kForward,
     [](const Samples& s) {
       return supports(
           RmsNormForward{s.rows(), s.rows(), s.row(), 1e-5f, s.rows(), s.rows(), s.row_sums()});
     }},
    {"rms_norm", kBackward,
     [](const Samples& s) {
       return supports(RmsNormBackward{s.rows(), s.rows(), s.row(), 1e-5f, s.row_sums(), s.rows(),
                                       s.rows(), s.sums()});
     }},
    {"layer_norm", kForward,
     [](const Samples& s) {
       return supports(LayerNormForward{s.rows(), s.row(), s.row(), 1e-5f, s.rows(), s.row_sums(),
                                        s.row_sums()});
     }},
    {"layer_norm", kBackward,
     [](const Samples& s) {
       return supports(LayerNormBackward{s.rows(), s.rows(), s.row(), 1e-5f, s.row_sums(),
                                         s.row_sums(), s.rows(), s.sums(), s.sums()});
     }},
    {"swiglu", kForward,
     [](const Samples& s) {
       return supports(SwigluForward{s.rows(), s.rows(), s.rows()});
     }},
    {"swiglu", kBackward,
     [](const Samples& s) {
       return supports(SwigluBackward{s.rows(), s.rows(), s.rows(), s.rows(), s.rows()});
     }},
    {"rope", kForward,
     [](const Samples& s) {
       return supports(Rope{s.heads(), {}, false, s.heads()});
     }},
    {"rope", kBackward,
     [](const Samples& s) {
       return supports(Rope{s.heads(), {}, true, s.heads()});
     }},
    {"attention", kForward,
     [](const Samples& s) {
       return supports(
           AttentionForward{s.heads(), s.heads(), s.heads(), {}, s.heads(), s.logsumexp()});
     }},
    {"attention", kBackward,
     [](const Samples& s) {
       return supports(AttentionBackward{s.heads(),
                                         s.heads(),
                                         s.heads(),
                                         s.heads(),
                                         s.heads(),
                                         s.logsumexp(),
                                         {},
                                         s.heads(),
                                         s.heads(),
                                         s.heads()});
     }},
    {"linear_cross_entropy", kForward,
     [](const Samples& s) {
       return supports(
           LinearCrossEntropy{s.rows(), s.weight(), s.targets(), -100, s.row_sums(), {}});
     }},
    {"linear_cross_entropy", kBackward,
     [](const Samples& s) {
       return supports(
           LinearCrossEntropy{s.rows(), s.weight(), s.targets(), -100, s.row_sums(), s.rows()});
     }},
};

}  // namespace

std::vector<Capability> capabilities(Device device) {
  std::vector<Capability> all;
  for (const Question& question : kQuestions) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      all.push_back({question.op, question.direction, dtype, question.ask(Samples(dtype, device))});
    }
  }
  return all;
}

}  // namespace graft
