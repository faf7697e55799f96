#pragma once

#include <string>

namespace graft::app {

/// The flags of `graft info`, with their defaults.
struct InfoFlags {
  std::string model;
  std::string dtype = "f32";
  int rank = 8;
};

/// Says what this build, this machine and a model can do: what `graft info` runs.
/// Throws UserError.
void run_info(const InfoFlags& flags);

}  // namespace graft::app
