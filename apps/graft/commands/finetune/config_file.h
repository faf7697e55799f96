#pragma once

#include <string>

namespace CLI {
class App;
}

namespace graft::app {

/// Gives `command` the flags of a JSON file that its command line left out:
///
///     {"learning_rate": 1e-3, "target_modules": ["q_proj", "v_proj"], "mask_prompt": true}
///
/// A name may have underscores for its hyphens; null is as good as absent. Flags are checked as on
/// the command line. Throws UserError naming the file and the key.
void apply_config_file(CLI::App& command, const std::string& path);

}  // namespace graft::app
