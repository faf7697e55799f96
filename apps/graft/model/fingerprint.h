#pragma once

#include <string>

namespace graft::app {

/// 16 hexadecimal digits that differ, in all likelihood, for files of different contents: to tell
/// one model from another, not to stand up to forgery. Throws UserError.
std::string file_fingerprint(const std::string& path);

}  // namespace graft::app
