#include "graft/llm/files/input_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <ios>
#include <istream>
#include <iterator>
#include <streambuf>
#include <system_error>

#include "graft/llm/user_error.h"

namespace graft::llm {

std::ifstream open_input(const std::string& path, InputKind kind) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) {
    throw UserError(path + ": no such file");
  }
  if (std::filesystem::is_directory(status)) {
    throw UserError(path + ": a folder, expected a file");
  }
  if (kind == InputKind::kFile && std::filesystem::is_other(status)) {
    throw UserError(path + ": not a regular file");
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) throw UserError(fmt::format("{}: cannot be read: {}", path, std::strerror(errno)));
  return in;
}

void check_fits_in_memory(std::uint64_t bytes, const std::string& path) {
  const long pages = ::sysconf(_SC_PHYS_PAGES), page = ::sysconf(_SC_PAGESIZE);
  if (pages <= 0 || page <= 0) return;
  const auto memory = static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page);
  if (bytes > memory) {
    throw UserError(fmt::format("{}: its tensors take {} MB, and this machine has {} MB of memory",
                                path, bytes / 1'000'000, memory / 1'000'000));
  }
}

std::optional<std::string> read_if_there(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(in), {}};
  if (!in.is_open() || in.bad()) return std::nullopt;
  return bytes;
}

std::string read_input(const std::string& path, std::uint64_t max_bytes) {
  std::ifstream in = open_input(path);
  std::string text;
  char block[1 << 14];
  while (in) {
    in.read(block, sizeof block);
    text.append(block, static_cast<std::size_t>(in.gcount()));
    if (text.size() > max_bytes) {
      throw UserError(fmt::format("{}: larger than {} bytes", path, max_bytes));
    }
  }
  if (in.bad()) throw UserError(path + ": reading failed");
  return text;
}

bool read_line(std::istream& in, std::string& line, std::size_t max_bytes,
               const std::string& place) {
  line.clear();
  std::streambuf& buffer = *in.rdbuf();
  constexpr auto kEndOfFile = std::streambuf::traits_type::eof();
  int next = kEndOfFile;
  try {
    while ((next = buffer.sbumpc()) != kEndOfFile && next != '\n') {
      if (line.size() == max_bytes) {
        throw UserError(fmt::format("{}: a line of more than {} MiB", place, max_bytes >> 20));
      }
      line += static_cast<char>(next);
    }
  } catch (const std::ios_base::failure&) {
    throw UserError(place + ": reading failed");
  }
  if (next == kEndOfFile) in.setstate(std::ios::eofbit);
  return next != kEndOfFile || !line.empty();
}

}  // namespace graft::llm
