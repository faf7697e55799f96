// Counts what Graft's kernels move and compute on Metal, as the stand-in sees it, beside what the
// same takes at the least in steps of their own; all float32. scripts/metal_costs.sh puts it into
// documents.
//
// usage: metal_costs [--csv FILE]
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "metal/measure.h"
#include "metal/operations.h"
#include "metal/unfused.h"

namespace graft::standin {
namespace {

constexpr int kFeatures = 512;

// The shapes of the plan, with the ranks that make sense for the operation.
std::vector<Problem> plan_of(const Operation& operation) {
  const bool pair = operation.name == "lora_delta" || operation.name == "lora_linear";
  const std::vector<int> ranks = pair ? std::vector{4, 8, 16, 32}
                                 : operation.name == "lora_linear_dropout" ? std::vector{8}
                                                                           : std::vector{0};
  std::vector<Problem> problems;
  for (const int batch : {1, 4, 16}) {
    for (const int sequence : {32, 128, 512}) {
      for (const int rank : ranks) {
        problems.push_back({batch, sequence, kFeatures, kFeatures, rank});
      }
    }
  }
  return problems;
}

// One token at a time.
std::vector<Problem> decode_problems() {
  return {{1, 1, 512, 512, 8}, {1, 1, 512, 512, 16}, {1, 1, 576, 1536, 8}, {1, 1, 576, 1536, 16}};
}

// A line, if there are kernels for that direction.
void print(std::FILE* file, const Operation& operation, const char* direction, const Problem& p,
           const Cost& cost, const Sequence& unfused) {
  if (cost.kernels == 0) return;
  std::fprintf(file, "%s,%s,%d,%d,%d,%d,%d,%zu,%zu,%zu,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f\n",
               operation.name.c_str(), direction, p.batch, p.sequence, p.in, p.out, p.rank,
               cost.launches, cost.kernels, unfused.launches(), static_cast<double>(cost.bytes),
               unfused.bytes(), static_cast<double>(cost.asked_bytes),
               static_cast<double>(cost.flops), unfused.least_flops,
               static_cast<double>(cost.threadgroup_bytes));
  std::fflush(file);
}

void print_all(std::FILE* file) {
  std::fprintf(file, "# command: scripts/metal_costs.sh\n# dtype: float32\n");
  std::fprintf(file,
               "op,direction,batch,sequence,in,out,rank,launches,kernels,unfused_launches,bytes,"
               "unfused_bytes,asked_bytes,flops,least_flops,threadgroup_bytes\n");
  for (const Operation& one : operations()) {
    for (const Problem& p : plan_of(one)) {
      const Costs costs = measure(one, p, true);
      print(file, one, "forward", p, costs.forward, one.unfused(p));
      print(file, one, "backward", p, costs.backward, one.unfused_backward(p));
    }
  }
  for (const char* name : {"lora_delta", "lora_linear"}) {
    const Operation& one = operation(name);
    for (const Problem& p : decode_problems()) {
      print(file, one, "forward", p, measure(one, p, false).forward, one.unfused(p));
    }
  }
}

void run(const std::vector<std::string>& arguments) {
  if (arguments.empty()) return print_all(stdout);
  if (arguments.size() != 2 || arguments[0] != "--csv") {
    throw std::invalid_argument("usage: metal_costs [--csv FILE]");
  }
  std::FILE* const file = std::fopen(arguments[1].c_str(), "w");
  if (file == nullptr) throw std::runtime_error("cannot write " + arguments[1]);
  print_all(file);
  if (std::fclose(file) != 0) throw std::runtime_error("cannot write " + arguments[1]);
}

}  // namespace
}  // namespace graft::standin

int main(int argc, char** argv) {
  try {
    graft::standin::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "metal_costs: %s\n", error.what());
    return 1;
  }
}
