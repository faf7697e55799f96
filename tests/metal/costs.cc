// Counts what Graft's kernels move and compute on Metal, as the stand-in sees it, beside what the
// same takes at the least in steps of their own; all float32. scripts/metal_costs.sh puts it into
// documents.
//
// usage: metal_costs [--csv FILE]
#include <mlx/version.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <exception>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "graft/version.h"
#include "metal/measure.h"
#include "metal/memory.h"
#include "metal/operations.h"
#include "metal/unfused.h"

namespace graft::standin {
namespace {

constexpr int kFeatures = 512;

// The plan's ranks; with dropout one is enough, and most operations have none.
std::vector<int> ranks_of(const Operation& operation) {
  if (operation.name == "lora_delta" || operation.name == "lora_linear") return {4, 8, 16, 32};
  return {operation.name == "lora_linear_dropout" ? 8 : 0};
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
}

// The plan's batches and sequences. To a kernel (4, 128) is (1, 512): rows.
void print_plan(std::FILE* file, const Operation& operation, int rank) {
  std::map<int, Costs> by_rows;
  for (const int batch : {1, 4, 16}) {
    for (const int sequence : {32, 128, 512}) {
      const Problem p{batch, sequence, kFeatures, kFeatures, rank};
      if (by_rows.count(p.rows()) == 0) by_rows[p.rows()] = measure(operation, p, true);
      const Costs& costs = by_rows.at(p.rows());
      print(file, operation, "forward", p, costs.forward, operation.unfused(p));
      print(file, operation, "backward", p, costs.backward, operation.unfused_backward(p));
    }
  }
}

// One token at a time.
void print_decode(std::FILE* file, const Operation& operation) {
  for (const auto& [in, out] : {std::pair{512, 512}, std::pair{576, 1536}}) {
    for (const int rank : {8, 16}) {
      const Problem p{1, 1, in, out, rank};
      print(file, operation, "forward", p, measure(operation, p, false).forward,
            operation.unfused(p));
    }
  }
}

using Task = std::function<void(std::FILE*)>;

std::vector<Task> tasks() {
  std::vector<Task> all;
  for (const Operation& one : operations()) {
    for (const int rank : ranks_of(one)) {
      all.push_back([&one, rank](std::FILE* file) { print_plan(file, one, rank); });
    }
  }
  for (const char* name : {"lora_delta", "lora_linear"}) {
    all.push_back([name](std::FILE* file) { print_decode(file, operation(name)); });
  }
  return all;
}

// Starts a process that writes what the task prints to `file`.
void start(const Task& task, std::FILE* file) {
  const pid_t process = fork();
  if (process < 0) throw std::runtime_error("cannot start a process");
  if (process > 0) return;
  int status = 1;
  try {
    task(file);
    status = std::fflush(file) == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "metal_costs: %s\n", error.what());
  }
  _exit(status);
}

void wait_for_one() {
  int status = 0;
  if (wait(&status) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    throw std::runtime_error("a part was not counted");
  }
}

// What the task has printed.
void append(std::FILE* to, std::FILE* from) {
  std::rewind(from);
  for (int c = std::getc(from); c != EOF; c = std::getc(from)) std::putc(c, to);
}

// A shader runs on one core, so each core has a process, from before MLX has threads.
void print_all(std::FILE* file) {
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::FILE*> parts;
  unsigned running = 0;
  for (const Task& task : tasks()) {
    if (running == cores) wait_for_one(), --running;
    parts.push_back(std::tmpfile());
    if (parts.back() == nullptr) throw std::runtime_error("cannot write a temporary file");
    start(task, parts.back()), ++running;
  }
  for (; running > 0; --running) wait_for_one();
  const std::time_t now = std::time(nullptr);
  char date[32];
  std::strftime(date, sizeof(date), "%Y-%m-%d %H:%M UTC", std::gmtime(&now));
  std::fprintf(file,
               "# device: none; a stand-in for Metal's compiler and GPU counts\n"
               "# versions: graft %s, MLX %s\n# date: %s\n"
               "# command: scripts/metal_costs.sh\n# dtype: float32\n",
               kVersion, ::mlx::core::version(), date);
  std::fprintf(file,
               "op,direction,batch,sequence,in,out,rank,launches,kernels,unfused_launches,bytes,"
               "unfused_bytes,asked_bytes,flops,least_flops,threadgroup_bytes\n");
  for (std::FILE* const part : parts) append(file, part);
}

void run(const std::vector<std::string>& arguments) {
  Memory::only_count();  // whether kernels are right is for tests to say
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
