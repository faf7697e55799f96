#pragma once

#include <mlx/mlx.h>

#include <string>
#include <vector>

#include "metal/unfused.h"

namespace graft::standin {

/// A tensor function whose costs are counted, beside the steps it stands for.
struct Operation {
  using Arrays = std::vector<::mlx::core::array>;

  std::string name;
  Arrays (*operands)(const Problem& p);       ///< Those with gradients first.
  Arrays (*forward)(const Arrays& operands);  ///< Outputs, each (batch, sequence, out).
  std::size_t gradients = 0;                  ///< Of so many operands backward makes gradients.
  std::size_t outputs = 1;
  Sequence (*unfused)(const Problem& p);
  Sequence (*unfused_backward)(const Problem& p);
};

/// All of them, in the order of the tables.
const std::vector<Operation>& operations();

/// The one of that name. Throws std::invalid_argument.
const Operation& operation(const std::string& name);

}  // namespace graft::standin
