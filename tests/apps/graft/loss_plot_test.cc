#include "apps/graft/terminal/loss_plot.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <regex>
#include <string>
#include <utility>
#include <vector>

namespace graft::app {
namespace {

using Points = std::vector<LossPoint>;

bool has(const std::string& svg, const std::string& text) {
  return svg.find(text) != std::string::npos;
}

std::string title_of(const std::string& svg) {
  std::smatch found;
  const std::regex title(R"(<text class="title"[^>]*>([^<]*)</text>)");
  return std::regex_search(svg, found, title) ? found[1].str() : "no title";
}

// The places of the path of this class, in pixels.
std::vector<std::pair<double, double>> path_of(const std::string& svg, const std::string& name) {
  const std::string opening = "<path class=\"" + name + "\" d=\"";
  const std::size_t begin = svg.find(opening);
  if (begin == std::string::npos) return {};
  const std::string path =
      svg.substr(begin + opening.size(), svg.find("\"/>", begin) - begin - opening.size());
  std::vector<std::pair<double, double>> places;
  const std::regex place(R"([ML](\S+) (\S+))");
  for (std::sregex_iterator found(path.begin(), path.end(), place), end; found != end; ++found) {
    places.emplace_back(std::stod((*found)[1]), std::stod((*found)[2]));
  }
  return places;
}

Points falling(int count) {
  Points points;
  for (int i = 1; i <= count; ++i) {
    points.push_back({i, 1.0 + 3.0 / i + (i % 2 == 0 ? 0.1 : -0.1)});
  }
  return points;
}

TEST(LossPlot, ASinglePointIsSeen) {
  EXPECT_TRUE(has(loss_plot_svg({{10, 2.5}}, {}, "t"), "<circle class=\"train-dot\""));
  EXPECT_TRUE(has(loss_plot_svg({}, {{0, 2.5}}, "t"), "<circle class=\"valid-dot\""));
}

TEST(LossPlot, NamesOnlyTheLinesThatAreThere) {
  const std::string train = loss_plot_svg(falling(9), {}, "t");
  EXPECT_TRUE(has(train, ">train<"));
  EXPECT_FALSE(has(train, ">validation<"));
  const std::string valid = loss_plot_svg({}, falling(9), "t");
  EXPECT_FALSE(has(valid, ">train<"));
  EXPECT_TRUE(has(valid, ">validation<"));
}

TEST(LossPlot, TitlesAreXml) {
  EXPECT_EQ(title_of(loss_plot_svg({}, {}, "a<b & c]]>d\x01\xff")), "a&lt;b &amp; c]]&gt;d??");
}

TEST(LossPlot, LongTitlesKeepTheirEnds) {
  std::string name;
  for (int i = 0; i < 100; ++i) name += "ä";
  const std::string title = title_of(loss_plot_svg({}, {}, "Loss of x" + name + "/end"));
  EXPECT_TRUE(title.starts_with("Loss of xäää…ä")) << title;
  EXPECT_TRUE(title.ends_with("ä/end")) << title;
  std::size_t letters = 0;
  for (const char c : title) letters += (c & 0xC0) != 0x80;
  EXPECT_EQ(letters, 56u);
  const std::string fits(56, 'x');
  EXPECT_EQ(title_of(loss_plot_svg({}, {}, fits)), fits);
}

TEST(LossPlot, EveryPointStaysOnThePaper) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  for (const Points& points :
       {falling(2), falling(10'000), Points{{1, 0.0}, {2, 0.0}}, Points{{1, 1e-30}, {2, 3e38}},
        Points{{1, 4.0}, {2, 3e38}, {3, 0.0}, {4, 1e-12}}, Points{{1, 3e38}, {2, 1.0}},
        Points{{1, nan}, {2, 3.0}, {3, infinity}, {4, 2.0}},
        Points{{1, 2.0}, {std::numeric_limits<int>::max(), 1.0}}}) {
    const std::string svg = loss_plot_svg(points, {}, "t");
    const auto places = path_of(svg, "line train");
    EXPECT_GE(places.size(), 2u);
    for (const auto& [x, y] : places) {
      EXPECT_TRUE(x >= 76 && x <= 696 && y >= 52 && y <= 348) << x << " " << y;
    }
    EXPECT_FALSE(has(svg, "nan") || has(svg, "inf")) << svg;
  }
}

TEST(LossPlot, ALossThatRunsAwayDoesNotFlattenTheRest) {
  Points points = falling(40);
  EXPECT_FALSE(has(loss_plot_svg(points, {}, "t"), ">loss, logarithmic<"));
  points[20].loss = 1e6;
  const std::string svg = loss_plot_svg(points, {}, "t");
  EXPECT_TRUE(has(svg, ">loss, logarithmic<"));
  const auto places = path_of(svg, "line train");
  ASSERT_EQ(places.size(), 40u);
  EXPECT_GT(places[39].second - places[0].second, 10);  // 4 to 1.1, still a fall that can be seen
}

TEST(LossPlot, ManyPointsAreDrawnAsMeanAndRange) {
  const std::string few = loss_plot_svg(falling(300), {}, "t");
  EXPECT_EQ(path_of(few, "line train").size(), 300u);
  EXPECT_FALSE(has(few, "<path class=\"train-range\""));

  Points points = falling(10'000);
  points[5000].loss = 7.0;
  const std::string svg = loss_plot_svg(points, points, "t");
  EXPECT_LT(svg.size(), 60'000u);
  EXPECT_FALSE(has(svg, "<circle"));
  const auto range = path_of(svg, "train-range");
  double highest = 400;
  for (const auto& [x, y] : range) highest = std::min(highest, y);
  const double seven = 348 - 7.0 / 8.0 * (348 - 52);
  EXPECT_NEAR(highest, seven, 0.1);  // a spike is not averaged away
  for (const auto& [x, y] : path_of(svg, "line train")) EXPECT_GT(y, seven + 50);
}

}  // namespace
}  // namespace graft::app
