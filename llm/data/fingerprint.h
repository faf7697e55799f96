#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "graft/export.h"
#include "graft/llm/data/dataset.h"

namespace graft::llm {

/// Sixteen hexadecimal digits that tell whether bytes are the same again. It finds accidents, not
/// forgeries.
class GRAFT_EXPORT Fingerprint {
 public:
  void add(std::string_view bytes);
  std::string text() const;

 private:
  std::uint64_t hash_ = 0xcbf29ce484222325;
};

GRAFT_EXPORT std::string fingerprint_of(std::string_view bytes);
GRAFT_EXPORT std::string fingerprint_of(const std::vector<Sample>& samples);

/// Throws UserError if the file cannot be read.
GRAFT_EXPORT std::string fingerprint_of_file(const std::string& path);

}  // namespace graft::llm
