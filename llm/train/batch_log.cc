#include "graft/llm/train/batch_log.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <vector>

#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

nlohmann::json rows_of(const std::vector<std::int32_t>& values, std::int64_t length) {
  nlohmann::json rows = nlohmann::json::array();
  for (auto row = values.begin(); row != values.end(); row += length) {
    rows.push_back(std::vector<std::int32_t>(row, row + length));
  }
  return rows;
}

// Bytes of the first `count` lines, or of those that are there.
std::streamoff length_of_lines(const std::string& path, int count) {
  std::ifstream in(path, std::ios::binary);
  std::streamoff bytes = 0;
  std::string line;
  for (int i = 0; i < count && std::getline(in, line) && !in.eof(); ++i) bytes = in.tellg();
  return bytes;
}

}  // namespace

BatchLog::BatchLog(const std::string& path, int kept) : path_(path) {
  if (path_.empty()) return;
  const std::streamoff bytes = length_of_lines(path_, kept);
  out_.open(path_, std::ios::app);
  if (!out_) {
    throw UserError(fmt::format("{}: cannot create the file: {}", path_, std::strerror(errno)));
  }
  std::error_code error;
  std::filesystem::resize_file(path_, static_cast<std::uintmax_t>(bytes), error);
  if (error) throw UserError(path_ + ": cannot be cut: " + error.message());
}

void BatchLog::write(const Batch& batch) {
  if (path_.empty()) return;
  const nlohmann::json line = {{"tokens", rows_of(batch.tokens, batch.length)},
                               {"targets", rows_of(batch.targets, batch.length)}};
  out_ << line.dump() << '\n' << std::flush;
  if (!out_) throw UserError(path_ + ": cannot write the file");
}

}  // namespace graft::llm
