#include "metal/shader.h"

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <sstream>
#include <stdexcept>

#include "metal/source.h"

namespace graft::standin {
namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Output {
  int status;
  std::string text;
};

Output run(const std::string& command) {
  FILE* const pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("cannot run " + command);
  Output output;
  std::array<char, 4096> part;
  std::size_t count;
  while ((count = fread(part.data(), 1, part.size(), pipe)) > 0) {
    output.text.append(part.data(), count);
  }
  output.status = pclose(pipe);
  return output;
}

std::string hash_of(const std::string& text) {
  char name[32];
  std::snprintf(name, sizeof(name), "%016zx", std::hash<std::string>()(text));
  return name;
}

// Compiles with notes of memory accesses, and leaves out the runtime that usually takes them.
std::string compile(const Source& source, const fs::path& cache) {
  const fs::path root = GRAFT_TESTS_DIR;
  std::string key = source.cpp;
  for (const char* header : {"metal_stdlib", "metal_simdgroup", "metal_simdgroup_matrix"}) {
    key += read_file(root / "metal" / "msl" / header);
  }
  fs::create_directories(cache);
  const fs::path object = cache / (hash_of(key) + ".so");
  if (fs::exists(object)) return object;

  // Processes may compile the same text at a time: each in a folder of its own, the last one stays.
  const fs::path mine = cache / (hash_of(key) + "." + std::to_string(getpid()));
  fs::create_directories(mine);
  const std::string text = mine / "shader.metal", part = mine / "shader.o";
  const std::string whole = mine / "shader.so", compiler = GRAFT_TESTS_COMPILER;
  std::ofstream(text, std::ios::binary) << source.cpp;
  const std::string flags = " -std=c++20 -O1 -g1 -fPIC -w -ffp-contract=off -I" + root.string() +
                            " -I" + (root / "metal" / "msl").string();
  Output output = run(compiler + flags + " -fsanitize=thread -c -o " + part + " -x c++ " + text);
  if (output.status == 0) output = run(compiler + " -shared -o " + whole + " " + part);
  if (output.status == 0) fs::rename(whole, object);
  fs::remove_all(mine);
  if (output.status != 0) throw std::runtime_error(output.text);
  return object;
}

}  // namespace

Shader::Shader(const std::string& text, const std::string& cache) {
  const Source source = translate(text);
  for (const Parameter& p : source.parameters) {
    if (!p.is_buffer()) continue;
    names_.push_back(p.name);
    constant_.push_back(p.is_const());
  }
  object_ = compile(source, cache);
  library_ = dlopen(object_.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library_ == nullptr) throw std::runtime_error(dlerror());
  enter_ = reinterpret_cast<Enter>(dlsym(library_, "graft_enter"));
}

Shader::~Shader() {
  if (library_ != nullptr) dlclose(library_);
}

std::string Shader::launch(Machine& machine, const std::vector<Buffer>& buffers, const Extent& grid,
                           const Extent& group) const {
  if (buffers.size() != names_.size()) {
    return "the kernel has " + std::to_string(names_.size()) + " buffers, and " +
           std::to_string(buffers.size()) + " are given";
  }
  Memory& memory = machine.memory();
  memory.release(Memory::Kind::kDevice);
  std::vector<void*> copies, pointers;
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    copies.push_back(memory.allocate(Memory::Kind::kDevice, buffers[i].bytes, names_[i],
                                     buffers[i].initialized, constant_[i]));
    if (buffers[i].bytes > 0) std::memcpy(copies[i], buffers[i].data, buffers[i].bytes);
    pointers.push_back(static_cast<std::byte*>(copies[i]) + buffers[i].offset);
  }
  const std::string fault =
      machine.launch(grid, group, [&](const Thread& thread) { enter_(pointers.data(), thread); });
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    if (!constant_[i] && buffers[i].bytes > 0) {
      std::memcpy(buffers[i].data, copies[i], buffers[i].bytes);
    }
  }
  return with_line(fault);
}

// Replaces the place in the object file, "....so 0x12", which ends a fault, by the text's line.
std::string Shader::with_line(std::string fault) const {
  const std::size_t at = fault.find(object_ + " ");
  if (at == std::string::npos) return fault;
  const std::string offset = fault.substr(at + object_.size() + 1);
  std::istringstream lines(run("addr2line -i -e " + object_ + " " + offset).text);
  std::string line, where = "an unknown line";
  while (std::getline(lines, line)) {
    // The innermost place in the text itself, not in the stand-in's headers.
    if (const std::size_t name = line.find("shader.metal:"); name != std::string::npos) {
      where = "line " + line.substr(name + std::strlen("shader.metal:"));
      where = where.substr(0, where.find(' ', 5));
      break;
    }
  }
  return fault.substr(0, at) + where;
}

}  // namespace graft::standin
