#include "apps/graft/model/fingerprint.h"

#include <fmt/format.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <vector>

#include "apps/graft/user_error.h"

namespace graft::app {
namespace {

// The finalizer of splitmix64: every bit of the result depends on every bit of the input.
std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace

std::string file_fingerprint(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw UserError(path + ": cannot be read");
  std::vector<char> block(std::size_t{1} << 20);
  std::uint64_t state = 0;
  std::uint64_t size = 0;
  do {
    in.read(block.data(), static_cast<std::streamsize>(block.size()));
    const auto count = static_cast<std::size_t>(in.gcount());
    std::memset(block.data() + count, 0, block.size() - count);
    for (std::size_t at = 0; at < count; at += sizeof(std::uint64_t)) {
      std::uint64_t word = 0;
      std::memcpy(&word, block.data() + at, sizeof word);
      state = mixed(state + word);
    }
    size += count;
  } while (in);
  if (in.bad()) throw UserError(path + ": reading failed");
  return fmt::format("{:016x}", mixed(state ^ size));
}

}  // namespace graft::app
