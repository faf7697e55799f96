#include "metal/evaluate.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <utility>

namespace graft::standin {
namespace {

// The lint and the syntax pass of tools/check_shaders.py, with address spaces; "" if nothing is
// wrong, or if there is no clang. Once for a text: what passed leaves a file in the cache.
std::string check_text(const std::string& text) {
  constexpr int kNoClang = 3;
  const std::filesystem::path passed = std::filesystem::path(GRAFT_SHADER_CACHE) /
                                       (std::to_string(std::hash<std::string>()(text)) + ".passed");
  if (std::filesystem::exists(passed)) return "";
  std::filesystem::create_directories(passed.parent_path());
  const std::string file = passed.string() + "." + std::to_string(getpid());
  std::ofstream(file) << text;
  const int status = std::system(("python3 " GRAFT_SOURCE_DIR "/tools/check_shaders.py --syntax " +
                                  file + " > " + file + ".log 2>&1")
                                     .c_str());
  std::ifstream log(file + ".log");
  const std::string said{std::istreambuf_iterator<char>(log), {}};
  std::filesystem::remove(file + ".log");
  std::filesystem::remove(file);
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNoClang) return "";
  if (status != 0) return "check_shaders: " + said;
  std::ofstream(passed).put('\n');
  return "";
}

template <class Size>
Extent extent_of(const Size& size) {
  const auto& [x, y, z] = size;
  return {{static_cast<std::uint32_t>(x), static_cast<std::uint32_t>(y),
           static_cast<std::uint32_t>(z)}};
}

// From the first element that lies in memory to the last, whatever the strides.
Buffer memory_of(const mx::array& array) {
  if (array.size() == 0) return {};
  std::int64_t first = 0, last = 0;
  for (std::size_t axis = 0; axis < array.ndim(); ++axis) {
    const std::int64_t reach = array.strides()[axis] * (array.shape()[axis] - 1);
    (reach < 0 ? first : last) += reach;
  }
  const auto size = static_cast<std::int64_t>(array.itemsize());
  return {const_cast<char*>(array.data<char>()) + first * size,
          static_cast<std::size_t>((last - first + 1) * size), true,
          static_cast<std::size_t>(-first * size)};
}

}  // namespace

void Standin::launch(const metal::Step& step, const Arrays& arrays) {
  const std::lock_guard lock(mutex_);
  std::vector<Buffer> buffers;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    buffers.push_back(memory_of(arrays[i]));
    buffers.back().initialized = i < step.reads.size();
  }
  if (!step.scalars.empty()) {
    buffers.push_back({const_cast<std::byte*>(step.scalars.data()), step.scalars.size()});
  }
  execute({step.kernel.name(),
           step.kernel.text(),
           extent_of(step.grid),
           extent_of(step.threadgroup),
           {}},
          buffers);
}

void Standin::copied(const mx::array& array) {
  const std::lock_guard lock(mutex_);
  copies_.push_back(array.nbytes());
}

void Standin::execute(Launched launched, const std::vector<Buffer>& buffers) {
  try {
    if (fault_.empty()) fault_ = check_text(launched.text);
    if (fault_.empty()) {
      fault_ = shader_of(launched.text).launch(machine_, buffers, launched.grid, launched.group);
      launched.traffic = machine_.traffic();
    }
  } catch (const std::exception& error) {  // nothing may leave the stream's thread
    fault_ = error.what();
  }
  launched_.push_back(std::move(launched));
}

const Shader& Standin::shader_of(const std::string& text) {
  std::unique_ptr<Shader>& shader = shaders_[text];
  if (shader == nullptr) shader = std::make_unique<Shader>(before_ + text, GRAFT_SHADER_CACHE);
  return *shader;
}

std::string Standin::take_fault() {
  const std::lock_guard lock(mutex_);
  return std::exchange(fault_, "");
}

Evaluated evaluate_on_metal(const std::function<Arrays(const Arrays&)>& function,
                            const Arrays& inputs, std::uint32_t seed, const std::string& before) {
  Standin standin(seed, before);
  mlx::detail::MetalStandin* const outer = mlx::detail::set_metal_standin(&standin);
  Evaluated result;
  try {
    result.outputs = function(inputs);
    mx::eval(result.outputs);
  } catch (...) {
    mlx::detail::set_metal_standin(outer);
    throw;
  }
  mlx::detail::set_metal_standin(outer);
  result.launched = standin.launched();
  result.copies = standin.copies();
  result.fault = standin.take_fault();
  return result;
}

}  // namespace graft::standin
