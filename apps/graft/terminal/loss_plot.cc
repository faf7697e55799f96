#include "apps/graft/terminal/loss_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <limits>

#include "apps/graft/terminal/svg.h"
#include "apps/graft/user_error.h"
#include "graft/llm/files/printable.h"

namespace graft::app {
namespace {

// Pixels.
constexpr double kWidth = 720;
constexpr double kHeight = 400;
constexpr double kLeft = 76;
constexpr double kRight = 24;
constexpr double kTop = 52;
constexpr double kBottom = 52;

// What of the title fits beside the names of the lines, in letters.
constexpr std::size_t kTitleLength = 56;
// More points than this would be a blot.
constexpr std::size_t kMostPoints = 300;
constexpr std::size_t kMostDots = 60;
// Losses that climb to more than so many times the first get a logarithmic axis.
constexpr double kRunaway = 8;

constexpr const char* kStyle =
    R"(  .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
  .train { stroke: #2680c2 } .valid { stroke: #de911d }
  .train-dot, .train-range { fill: #2680c2 } .valid-dot, .valid-range { fill: #de911d }
  .train-range, .valid-range { fill-opacity: 0.25 }
  .train-name { fill: #2680c2; font-weight: 600 } .valid-name { fill: #b8760f; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .train { stroke: #62b0e8 } .valid { stroke: #f0b429 }
    .train-dot, .train-range { fill: #62b0e8 } .valid-dot, .valid-range { fill: #f0b429 }
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

// The text as XML, its middle left out if it is long: a path's end says most.
std::string title_text(const std::string& title) {
  const std::string text = printable(title, title.size());
  std::vector<std::string> letters;  // of UTF-8
  for (const char c : text) {
    if (letters.empty() || (c & 0xC0) != 0x80) letters.emplace_back();
    letters.back() += c;
  }
  if (letters.size() > kTitleLength) {
    const auto begin = letters.begin() + 12;
    letters.erase(begin, letters.end() - (kTitleLength - 13));
    letters.insert(letters.begin() + 12, "…");
  }
  std::string out;
  for (const std::string& letter : letters) {
    if (letter == "<") {
      out += "&lt;";
    } else if (letter == ">") {
      out += "&gt;";
    } else if (letter == "&") {
      out += "&amp;";
    } else {
      out += letter;
    }
  }
  return out;
}

// What is drawn at one place: a point, or the mean and range of neighbours.
struct Mark {
  double iteration;
  double loss;
  double low;
  double high;
};

// The points that are numbers, at most kMostPoints of them, in order.
std::vector<Mark> marks_of(const std::vector<LossPoint>& points) {
  std::vector<LossPoint> finite;
  std::ranges::copy_if(points, std::back_inserter(finite),
                       [](const LossPoint& point) { return std::isfinite(point.loss); });
  const std::size_t count = std::min(finite.size(), kMostPoints);
  std::vector<Mark> marks;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t begin = i * finite.size() / count;
    const std::size_t end = (i + 1) * finite.size() / count;
    Mark mark{0.0, 0.0, std::numeric_limits<double>::infinity(), 0.0};
    for (std::size_t j = begin; j < end; ++j) {
      mark.iteration += finite[j].iteration / static_cast<double>(end - begin);
      mark.loss += finite[j].loss / static_cast<double>(end - begin);
      mark.low = std::min(mark.low, finite[j].loss);
      mark.high = std::max(mark.high, finite[j].loss);
    }
    marks.push_back(mark);
  }
  return marks;
}

class Plot {
 public:
  Plot(const std::vector<LossPoint>& train, const std::vector<LossPoint>& valid)
      : train_(marks_of(train)), valid_(marks_of(valid)) {
    int last = 1;
    for (const auto* series : {&train, &valid}) {
      for (const LossPoint& point : *series) last = std::max(last, point.iteration);
    }
    const double x_step = std::max(1.0, nice_step(last, 8));
    x_ = {0.0, static_cast<double>(last), kLeft, kWidth - kRight, x_step};
    set_losses();
  }

  std::string names() const {
    std::string out;
    double right = kWidth - kRight;
    if (!valid_.empty()) {
      add_line(out, R"(<text class="valid-name" x="{}" y="28" text-anchor="end">validation</text>)",
               right);
      right -= 74;
    }
    if (!train_.empty()) {
      add_line(out, R"(<text class="train-name" x="{}" y="28" text-anchor="end">train</text>)",
               right);
    }
    return out;
  }

  std::string grid() const {
    std::string out;
    for (int i = 0; y_.low + i * y_.step <= y_.high + 0.0001 * y_.step; ++i) {
      const double value = y_.low + i * y_.step;
      const double y = y_.pixel(value);
      add_line(out, R"(<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>)",
               i == 0 ? "axis" : "grid", kLeft, y, kWidth - kRight, y);
      add_line(out, R"(<text x="{:.1f}" y="{:.1f}" text-anchor="end">{:.3g}</text>)", kLeft - 8,
               y + 4, logarithmic_ ? std::pow(10.0, value) : value);
    }
    for (int i = 0; i * x_.step <= x_.high * 1.0001; ++i) {
      const double x = x_.pixel(i * x_.step);
      add_line(out, R"(<line class="axis" x1="{0:.1f}" y1="{1:.1f}" x2="{0:.1f}" y2="{2:.1f}"/>)",
               x, y_.from, y_.from + 4);
      add_line(out, R"(<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{:.0f}</text>)", x,
               y_.from + 19, i * x_.step);
    }
    add_line(out, R"(<text x="{:.1f}" y="{:.1f}" text-anchor="middle">iteration</text>)",
             (kLeft + kWidth - kRight) / 2, kHeight - 12);
    add_line(
        out,
        R"svg(<text transform="translate({} {:.1f}) rotate(-90)" text-anchor="middle">{}</text>)svg",
        18, (kTop + kHeight - kBottom) / 2, logarithmic_ ? "loss, logarithmic" : "loss");
    return out;
  }

  std::string lines() const {
    return range(train_, "train") + range(valid_, "valid") + line(train_, "train") +
           line(valid_, "valid") + dots(train_, "train", train_.size() == 1) +
           dots(valid_, "valid", valid_.size() <= kMostDots);
  }

 private:
  void set_losses() {
    double first = 0.0;
    double high = 0.0;
    double low = std::numeric_limits<double>::infinity();  // of those above zero
    for (const auto* marks : {&train_, &valid_}) {
      if (!marks->empty()) first = std::max(first, marks->front().low);
      for (const Mark& mark : *marks) {
        high = std::max(high, mark.high);
        if (mark.low > 0) low = std::min(low, mark.low);
      }
    }
    logarithmic_ = first > 0 && high > kRunaway * first;
    if (logarithmic_) {
      const double top = std::ceil(std::log10(high));
      const double bottom = std::max(std::floor(std::log10(low)), top - 12);
      y_ = {bottom, top, kHeight - kBottom, kTop, std::ceil((top - bottom) / 6)};
      return;
    }
    const double step = nice_step(high > 0 ? high : 1.0, 5);
    y_ = {0.0, step * std::max(1.0, std::ceil(high / step)), kHeight - kBottom, kTop, step};
  }

  std::string point(double iteration, double loss) const {
    const double value = logarithmic_ ? std::log10(loss) : loss;  // of zero, below the axis
    return fmt::format("{:.1f} {:.1f}", x_.pixel(iteration), y_.pixel(std::max(value, y_.low)));
  }

  std::string line(const std::vector<Mark>& marks, const char* name) const {
    std::string path;
    for (const Mark& mark : marks) {
      path += (path.empty() ? "M" : " L") + point(mark.iteration, mark.loss);
    }
    std::string out;
    if (!path.empty()) add_line(out, R"(<path class="line {}" d="{}"/>)", name, path);
    return out;
  }

  // Where marks stand for several points: the area from the lowest to the highest of each.
  std::string range(const std::vector<Mark>& marks, const char* name) const {
    std::string out;
    if (std::ranges::none_of(marks, [](const Mark& mark) { return mark.low < mark.high; })) {
      return out;
    }
    std::string path;
    for (const Mark& mark : marks) {
      path += (path.empty() ? "M" : " L") + point(mark.iteration, mark.high);
    }
    for (auto mark = marks.rbegin(); mark != marks.rend(); ++mark) {
      path += " L" + point(mark->iteration, mark->low);
    }
    add_line(out, R"(<path class="{}-range" d="{} Z"/>)", name, path);
    return out;
  }

  std::string dots(const std::vector<Mark>& marks, const char* name, bool wanted) const {
    std::string out;
    if (!wanted) return out;
    for (const Mark& mark : marks) {
      add_line(out, R"svg(<circle class="{}-dot" transform="translate({})" r="3"/>)svg", name,
               point(mark.iteration, mark.loss));
    }
    return out;
  }

  std::vector<Mark> train_;
  std::vector<Mark> valid_;
  Axis x_{};
  Axis y_{};
  bool logarithmic_ = false;
};

}  // namespace

std::string loss_plot_svg(const std::vector<LossPoint>& train, const std::vector<LossPoint>& valid,
                          const std::string& title) {
  const Plot plot(train, valid);
  std::string svg = open_svg(kWidth, kHeight, kStyle);
  add_line(svg, R"(<text class="title" x="{}" y="28">{}</text>)", kLeft, title_text(title));
  svg += plot.grid();
  svg += plot.lines();
  svg += plot.names();
  svg += "</svg>\n";
  return svg;
}

}  // namespace graft::app
