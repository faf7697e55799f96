#include "apps/graft/train/batch_log.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "apps/graft/user_error.h"

namespace graft::app {
namespace {

nlohmann::json rows_of(const std::vector<std::int32_t>& values, std::int64_t length) {
  nlohmann::json rows = nlohmann::json::array();
  for (auto row = values.begin(); row != values.end(); row += length) {
    rows.push_back(std::vector<std::int32_t>(row, row + length));
  }
  return rows;
}

}  // namespace

BatchLog::BatchLog(const std::string& path) : path_(path) {
  if (path_.empty()) return;
  out_.open(path_, std::ios::trunc);
  if (!out_) {
    throw UserError(fmt::format("{}: cannot create the file: {}", path_, std::strerror(errno)));
  }
}

void BatchLog::write(const Batch& batch) {
  if (path_.empty()) return;
  const nlohmann::json line = {{"tokens", rows_of(batch.tokens, batch.length)},
                               {"targets", rows_of(batch.targets, batch.length)}};
  out_ << line.dump() << '\n' << std::flush;
  if (!out_) throw UserError(path_ + ": cannot write the file");
}

}  // namespace graft::app
