#include "apps/graft/terminal/svg.h"

namespace graft::app {

std::string open_svg(double width, double height, const char* style) {
  constexpr const char* kCommonStyle = R"(<style>
  .paper { fill: #ffffff } .grid { stroke: #e4e7eb } .axis { stroke: #9aa5b1 }
  text { fill: #3e4c59; font: 12px system-ui, -apple-system, "Segoe UI", sans-serif }
  .title { font-size: 15px; font-weight: 600; fill: #1f2933 }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #161b22 } .grid { stroke: #2b333d } .axis { stroke: #616e7c }
    text { fill: #cbd2d9 } .title { fill: #f5f7fa }
  }
)";
  std::string svg;
  add_line(svg,
           R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" )"
           R"(height="{1}" role="img">)",
           width, height);
  svg += kCommonStyle;
  svg += style;
  svg += "</style>\n";
  add_line(svg, R"(<rect class="paper" width="{}" height="{}" rx="8"/>)", width, height);
  return svg;
}

}  // namespace graft::app
