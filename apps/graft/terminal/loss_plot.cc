#include "apps/graft/terminal/loss_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "apps/graft/terminal/svg.h"

namespace graft::app {
namespace {

// Pixels.
constexpr double kWidth = 720;
constexpr double kHeight = 400;
constexpr double kLeft = 62;
constexpr double kRight = 24;
constexpr double kTop = 52;
constexpr double kBottom = 52;

constexpr const char* kStyle =
    R"(  .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
  .train { stroke: #2680c2 } .valid { stroke: #de911d } .dot { fill: #de911d }
  .train-name { fill: #2680c2; font-weight: 600 } .valid-name { fill: #b8760f; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .train { stroke: #62b0e8 } .valid { stroke: #f0b429 } .dot { fill: #f0b429 }
    .train-name { fill: #62b0e8 } .valid-name { fill: #f0b429 }
  }
)";

// 1, 2 or 5 times a power of ten, so that about `count` steps span `range`.
double nice_step(double range, int count) {
  const double raw = std::max(range, 1e-9) / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (raw <= factor * power) return factor * power;
  }
  return 10.0 * power;
}

// One axis: values from `low` to `high` onto pixels from `from` to `to`.
struct Axis {
  double low;
  double high;
  double from;
  double to;
  double step;

  double pixel(double value) const { return from + (value - low) / (high - low) * (to - from); }
};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') {
      out += "&lt;";
    } else if (c == '&') {
      out += "&amp;";
    } else {
      out += c;
    }
  }
  return out;
}

class Plot {
 public:
  Plot(const std::vector<LossPoint>& train, const std::vector<LossPoint>& valid) {
    int last = 1;
    double high = 0.0;
    for (const auto* series : {&train, &valid}) {
      for (const LossPoint& point : *series) {
        last = std::max(last, point.iteration);
        if (std::isfinite(point.loss)) high = std::max(high, point.loss);
      }
    }
    const double x_step = std::max(1.0, nice_step(last, 8));
    x_ = {0.0, static_cast<double>(last), kLeft, kWidth - kRight, x_step};
    const double y_step = nice_step(high > 0 ? high : 1.0, 5);
    const double ceiling = y_step * std::max(1.0, std::ceil(high / y_step));
    y_ = {0.0, ceiling, kHeight - kBottom, kTop, y_step};
  }

  std::string grid() const {
    std::string out;
    for (int i = 0; i * y_.step <= y_.high * 1.0001; ++i) {
      const double y = y_.pixel(i * y_.step);
      add_line(out, R"(<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>)",
               i == 0 ? "axis" : "grid", kLeft, y, kWidth - kRight, y);
      add_line(out, R"(<text x="{:.1f}" y="{:.1f}" text-anchor="end">{:.3g}</text>)", kLeft - 8,
               y + 4, i * y_.step);
    }
    for (int i = 0; i * x_.step <= x_.high * 1.0001; ++i) {
      const double x = x_.pixel(i * x_.step);
      add_line(out, R"(<line class="axis" x1="{0:.1f}" y1="{1:.1f}" x2="{0:.1f}" y2="{2:.1f}"/>)",
               x, y_.from, y_.from + 4);
      add_line(out, R"(<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{:.6g}</text>)", x,
               y_.from + 19, i * x_.step);
    }
    add_line(out, R"(<text x="{:.1f}" y="{:.1f}" text-anchor="middle">iteration</text>)",
             (kLeft + kWidth - kRight) / 2, kHeight - 12);
    add_line(
        out,
        R"svg(<text transform="translate(18 {:.1f}) rotate(-90)" text-anchor="middle">loss</text>)svg",
        (kTop + kHeight - kBottom) / 2);
    return out;
  }

  std::string line(const std::vector<LossPoint>& points, const char* name) const {
    std::string path;
    for (const LossPoint& point : points) {
      if (!std::isfinite(point.loss)) continue;
      fmt::format_to(std::back_inserter(path), "{}{:.1f} {:.1f}", path.empty() ? "M" : " L",
                     x_.pixel(point.iteration), y_.pixel(point.loss));
    }
    std::string out;
    if (!path.empty()) add_line(out, R"(<path class="line {}" d="{}"/>)", name, path);
    return out;
  }

  std::string dots(const std::vector<LossPoint>& points) const {
    std::string out;
    for (const LossPoint& point : points) {
      if (!std::isfinite(point.loss)) continue;
      add_line(out, R"(<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3"/>)",
               x_.pixel(point.iteration), y_.pixel(point.loss));
    }
    return out;
  }

 private:
  Axis x_;
  Axis y_;
};

}  // namespace

std::string loss_plot_svg(const std::vector<LossPoint>& train, const std::vector<LossPoint>& valid,
                          const std::string& title) {
  const Plot plot(train, valid);
  std::string svg = open_svg(kWidth, kHeight, kStyle);
  add_line(svg, R"(<text class="title" x="{}" y="28">{}</text>)", kLeft, escaped(title));
  svg += plot.grid();
  svg += plot.line(train, "train");
  svg += plot.line(valid, "valid");
  svg += plot.dots(valid);
  const double right = kWidth - kRight;
  add_line(svg, R"(<text class="train-name" x="{}" y="28" text-anchor="end">train</text>)",
           valid.empty() ? right : right - 74);
  if (!valid.empty()) {
    add_line(svg, R"(<text class="valid-name" x="{}" y="28" text-anchor="end">validation</text>)",
             right);
  }
  svg += "</svg>\n";
  return svg;
}

}  // namespace graft::app
