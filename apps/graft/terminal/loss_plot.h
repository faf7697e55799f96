#pragma once

#include <string>
#include <vector>

namespace graft::app {

struct LossPoint {
  int iteration = 0;
  double loss = 0.0;
};

/// A chart of losses over iterations as an SVG document that reads well on light and on dark.
std::string loss_plot_svg(const std::vector<LossPoint>& train, const std::vector<LossPoint>& valid,
                          const std::string& title);

}  // namespace graft::app
