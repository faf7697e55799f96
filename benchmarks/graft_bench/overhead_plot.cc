#include "benchmarks/graft_bench/overhead_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "apps/graft/terminal/svg.h"

namespace graft::bench {
namespace {

// Pixels.
constexpr double kNames = 210;  // the column of shapes
constexpr double kPanel = 300;
constexpr double kGap = 32;
constexpr double kRight = 28;
constexpr double kTop = 100;
constexpr double kBottom = 48;
constexpr double kLine = 24;
constexpr double kWidth = kNames + 2 * kPanel + kGap + kRight;

// Overheads beyond this are drawn at the edge, with their number.
constexpr double kMost = 0.60;

constexpr const char* kStyle = R"(  .panel { font-weight: 600 }
  .floor { stroke: #3e4c59; stroke-width: 2.5 } .graft { fill: #2680c2 }
  .unfused { fill: none; stroke: #de911d; stroke-width: 2 } .span { stroke: #cbd2d9 }
  @media (prefers-color-scheme: dark) {
    .floor { stroke: #e4e7eb } .graft { fill: #62b0e8 } .unfused { stroke: #f0b429 }
    .span { stroke: #3e4c59 }
  }
)";

std::string name_of_shape(const Case& item) {
  return fmt::format("{}×{}×{} → {}, rank {}", item.batch, item.sequence, item.in, item.out,
                     item.rank);
}

std::vector<Result> shown(const std::vector<Result>& results) {
  std::vector<Result> chosen;
  for (const bool grid : {false, true}) {
    for (const Result& result : results) {
      const bool fits = result.item.op == Op::kLoraLinear && result.item.dropout == 0.0f &&
                        (result.item.set == "grid") == grid;
      if (fits) chosen.push_back(result);
    }
    if (!chosen.empty()) break;
  }
  return chosen;
}

void draw_marks(std::string& svg, const Result& result, double left, double y) {
  const auto x = [&](double share) {
    return left + std::clamp(share, 0.0, kMost) / kMost * kPanel;
  };
  const double graft = overhead(result.fused, *result.base);
  const double unfused = result.unfused() / result.base->median - 1.0;
  const double floor = x(floor_overhead(result.item));
  app::add_line(svg, R"(<line class="span" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>)",
                floor, y, x(unfused), y);
  app::add_line(svg, R"(<line class="floor" x1="{0:.1f}" y1="{1:.1f}" x2="{0:.1f}" y2="{2:.1f}"/>)",
                floor, y - 7, y + 7);
  app::add_line(svg, R"(<circle class="unfused" cx="{:.1f}" cy="{:.1f}" r="4.5"/>)", x(unfused), y);
  app::add_line(svg, R"(<circle class="graft" cx="{:.1f}" cy="{:.1f}" r="4.5"/>)", x(graft), y);
  std::string beyond;
  for (const double share : {graft, unfused}) {
    if (share <= kMost) continue;
    beyond += fmt::format("{}+{:.0f} %", beyond.empty() ? "" : ", ", share * 100.0);
  }
  if (beyond.empty()) return;
  app::add_line(svg, R"(<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>)", x(kMost) - 9,
                y + 4, beyond);
}

void draw_legend(std::string& svg) {
  double x = kNames;
  const double y = 52;
  app::add_line(svg, R"(<line class="floor" x1="{0}" y1="{1}" x2="{0}" y2="{2}"/>)", x, y - 7,
                y + 7);
  app::add_line(svg, R"(<text x="{}" y="{}">arithmetic floor</text>)", x + 9, y + 4);
  x += 130;
  app::add_line(svg, R"(<circle class="graft" cx="{}" cy="{}" r="4.5"/>)", x, y);
  app::add_line(svg, R"(<text x="{}" y="{}">Graft</text>)", x + 11, y + 4);
  x += 74;
  app::add_line(svg, R"(<circle class="unfused" cx="{}" cy="{}" r="4.5"/>)", x, y);
  app::add_line(svg, R"(<text x="{}" y="{}">best of OpenBLAS calls and MLX ops</text>)", x + 11,
                y + 4);
}

}  // namespace

std::string overhead_plot_svg(const std::vector<Result>& results, const std::string& title) {
  const std::vector<Result> chosen = shown(results);
  if (chosen.empty()) return "";
  std::vector<std::string> names;
  for (const Result& result : chosen) {
    const std::string name = name_of_shape(result.item);
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }

  const double bottom = kTop + kLine * static_cast<double>(names.size());
  const double height = bottom + kBottom;
  std::string svg = app::open_svg(kWidth, height, kStyle);
  app::add_line(svg, R"(<text class="title" x="20" y="28">{}</text>)", title);
  draw_legend(svg);

  for (std::size_t i = 0; i < names.size(); ++i) {
    app::add_line(svg, R"(<text x="{}" y="{:.1f}" text-anchor="end">{}</text>)", kNames - 14,
                  kTop + kLine * (static_cast<double>(i) + 0.5) + 4, names[i]);
  }
  for (const Pass pass : {Pass::kForward, Pass::kForwardBackward}) {
    const double left = pass == Pass::kForward ? kNames : kNames + kPanel + kGap;
    app::add_line(svg, R"(<text class="panel" x="{}" y="{}">{}</text>)", left, kTop - 14,
                  name_of(pass));
    for (int percent = 0; percent <= 60; percent += 10) {
      const double x = left + percent / 100.0 / kMost * kPanel;
      app::add_line(svg, R"(<line class="{}" x1="{:.1f}" y1="{}" x2="{:.1f}" y2="{}"/>)",
                    percent == 0 ? "axis" : "grid", x, kTop, x, bottom);
      app::add_line(svg, R"(<text x="{:.1f}" y="{}" text-anchor="middle">{}{}</text>)", x,
                    bottom + 17, percent, percent == 60 ? " %" : "");
    }
    for (const Result& result : chosen) {
      if (result.item.pass != pass) continue;
      const auto place =
          std::find(names.begin(), names.end(), name_of_shape(result.item)) - names.begin();
      draw_marks(svg, result, left, kTop + kLine * (static_cast<double>(place) + 0.5));
    }
  }
  app::add_line(svg,
                R"(<text x="{}" y="{}" text-anchor="middle">time added to the base product</text>)",
                kNames + kPanel + kGap / 2, bottom + 38);
  svg += "</svg>\n";
  return svg;
}

}  // namespace graft::bench
