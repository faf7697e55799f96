// Writes the logits of a model with an adapter, for another program to compare:
//
//   graft_logits MODEL.gguf ADAPTER_FOLDER TOKENS OUT
//
// TOKENS is a text file with one sequence of token numbers a line; OUT gets the logits
// (length, vocabulary) of one after the other, as raw float32.

#include <cstdio>
#include <exception>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "graft/llm/language_model.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace mx = ::mlx::core;

namespace {

void write_logits(const graft::llm::LanguageModel& model, const graft::llm::ModelAdapter* adapter,
                  const std::vector<int>& tokens, std::ofstream& out) {
  const mx::array row(tokens.data(), {1, static_cast<int>(tokens.size())}, mx::int32);
  mx::array logits = mx::contiguous(mx::astype(model.llama.logits(row, adapter), mx::float32));
  mx::eval(logits);
  out.write(reinterpret_cast<const char*>(logits.data<float>()),
            static_cast<std::streamsize>(logits.nbytes()));
}

void run(char** arguments) {
  graft::llm::LanguageModel model(arguments[1]);
  if (*arguments[2]) model.attach(arguments[2]);
  std::ifstream in(arguments[3]);
  std::ofstream out(arguments[4], std::ios::binary);
  for (std::string line; std::getline(in, line);) {
    std::istringstream numbers(line);
    std::vector<int> tokens;
    for (int token; numbers >> token;) tokens.push_back(token);
    write_logits(model, model.llama.adapter(), tokens, out);
  }
  if (!out.flush()) throw std::runtime_error(std::string(arguments[4]) + ": cannot be written");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: graft_logits MODEL.gguf ADAPTER_FOLDER TOKENS OUT\n");
    return 2;
  }
  try {
    run(argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "graft_logits: %s\n", error.what());
    return 1;
  }
  return 0;
}
