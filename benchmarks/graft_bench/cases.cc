#include "benchmarks/graft_bench/cases.h"

#include <fmt/format.h>

#include <algorithm>

namespace graft::bench {
namespace {

struct Shape {
  const char* set;
  std::int64_t batch, sequence, in, out;
  std::vector<std::int64_t> ranks;  // none: the base product only
  bool dropout = false;             // rows with dropout too
};

std::vector<Shape> all_shapes() {
  std::vector<Shape> shapes = {{"plan", 1, 128, 512, 512, {8}, true}};
  for (const std::int64_t batch : {1, 4, 16}) {
    for (const std::int64_t sequence : {32, 128, 512}) {
      shapes.push_back({"grid", batch, sequence, 512, 512, {4, 8, 16, 32}});
    }
  }
  // SmolLM2-135M's projections at a batch of 4 × 128 tokens, and its output head.
  for (const auto& [in, out] : {std::pair{576, 576}, {576, 192}, {576, 1536}, {1536, 576}}) {
    shapes.push_back({"model", 4, 128, in, out, {8, 16}, true});
  }
  shapes.push_back({"model", 4, 128, 576, 49152, {}});
  // Wider layers and more rows, where the arithmetic floor is lowest.
  shapes.push_back({"wide", 4, 512, 512, 512, {8}, true});
  shapes.push_back({"wide", 4, 128, 2048, 2048, {16}, true});
  return shapes;
}

std::vector<Shape> quick_shapes() {
  return {{"plan", 1, 128, 512, 512, {8}, true}, {"model", 1, 32, 576, 192, {16}}};
}

}  // namespace

const char* name_of(Op op) {
  switch (op) {
    case Op::kLinear:
      return "linear";
    case Op::kLoraDelta:
      return "lora_delta";
    case Op::kLoraLinear:
      break;
  }
  return "lora_linear";
}

const char* name_of(Pass pass) { return pass == Pass::kForward ? "forward" : "forward+backward"; }

std::string shape_of(const Case& item) {
  return fmt::format("{}x{}x{}>{}", item.batch, item.sequence, item.in, item.out);
}

std::string label_of(const Case& item) {
  return fmt::format("{} {} {} {} r{} {} dropout{}", item.set, name_of(item.op), name_of(item.pass),
                     shape_of(item), item.rank, item.bf16 ? "bf16" : "f32", item.dropout);
}

std::vector<Case> all_cases(const CaseOptions& options) {
  std::vector<Case> cases;
  const auto add = [&](const Shape& shape, Op op, std::int64_t rank, float dropout) {
    for (const Pass pass : {Pass::kForward, Pass::kForwardBackward}) {
      const Case item{shape.set, op,        pass, shape.batch,  shape.sequence,
                      shape.in,  shape.out, rank, options.bf16, dropout};
      // Words are compared whole: "forward" must not find "forward+backward", nor "r1" "r16".
      const std::string padded = " " + label_of(item) + " ";
      const auto has = [&padded](const std::string& word) {
        return padded.find(" " + word + " ") != std::string::npos;
      };
      const bool wanted = std::all_of(options.filter.begin(), options.filter.end(), has) &&
                          std::none_of(options.without.begin(), options.without.end(), has);
      if (wanted) cases.push_back(item);
    }
  };
  for (const Shape& shape : options.quick ? quick_shapes() : all_shapes()) {
    add(shape, Op::kLinear, 0, 0.0f);
    for (const std::int64_t rank : shape.ranks) {
      add(shape, Op::kLoraDelta, rank, 0.0f);
      add(shape, Op::kLoraLinear, rank, 0.0f);
      if (shape.dropout && options.dropout > 0.0f) {
        add(shape, Op::kLoraLinear, rank, options.dropout);
      }
    }
  }
  return cases;
}

}  // namespace graft::bench
