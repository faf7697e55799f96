#include "graft/llm/data/fingerprint.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>

#include "graft/llm/user_error.h"

namespace graft::llm {

// FNV-1a on words of eight bytes, as a model is hundreds of megabytes. The shift carries a word's
// high bits down, where the multiplication alone would leave them at the top.
void Fingerprint::add(std::string_view bytes) {
  constexpr std::uint64_t kPrime = 0x100000001b3;
  const auto mix = [&](std::uint64_t word) {
    hash_ = (hash_ ^ word) * kPrime;
    hash_ ^= hash_ >> 32;
  };
  mix(bytes.size());
  while (!bytes.empty()) {
    const std::size_t count = std::min<std::size_t>(bytes.size(), 8);
    std::uint64_t word = 0;
    for (std::size_t i = 0; i < count; ++i) {
      word |= std::uint64_t{static_cast<std::uint8_t>(bytes[i])} << (8 * i);
    }
    mix(word);
    bytes.remove_prefix(count);
  }
}

std::string Fingerprint::text() const { return fmt::format("{:016x}", hash_); }

std::string fingerprint_of(std::string_view bytes) {
  Fingerprint fingerprint;
  fingerprint.add(bytes);
  return fingerprint.text();
}

std::string fingerprint_of(const std::vector<Sample>& samples) {
  Fingerprint fingerprint;
  std::string bytes;
  for (const Sample& sample : samples) {
    bytes.clear();
    for (std::size_t i = 0; i < sample.tokens.size(); ++i) {
      const auto token = static_cast<std::uint32_t>(sample.tokens[i]);
      for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(token >> shift & 0xFF);
      bytes += sample.is_target[i] ? '\1' : '\0';
    }
    fingerprint.add(bytes);
  }
  return fingerprint.text();
}

std::string fingerprint_of_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  Fingerprint fingerprint;
  std::string block(1 << 20, '\0');
  while (in.read(block.data(), static_cast<std::streamsize>(block.size())) || in.gcount() > 0) {
    fingerprint.add(std::string_view(block).substr(0, static_cast<std::size_t>(in.gcount())));
  }
  if (!in.eof()) throw UserError(fmt::format("{}: cannot be read", path));
  return fingerprint.text();
}

}  // namespace graft::llm
