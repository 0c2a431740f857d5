// SPDX-License-Identifier: Apache-2.0
#include "sim/report/svg/canvas.h"

#include <iterator>

#include <fmt/format.h>

#include "sim/base/text.h"

namespace kvspan::svg {
namespace {

std::string points_text(const std::vector<std::pair<double, double>>& points) {
  std::string text;
  for (const auto& [x, y] : points) text += fmt::format("{:.1f},{:.1f} ", x, y);
  if (!text.empty()) text.pop_back();
  return text;
}

std::string dashed(std::string_view dash) {
  return dash.empty() ? "" : fmt::format(" stroke-dasharray=\"{}\"", dash);
}

}  // namespace

std::string escaped(std::string_view raw) {
  std::string result;
  for (const char c : one_line(raw)) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  // The two code points above the controls that XML forbids.
  for (const std::string_view bad : {"\uFFFE", "\uFFFF"}) {
    for (std::size_t at = 0; (at = result.find(bad, at)) != result.npos;) {
      result.replace(at, bad.size(), "\uFFFD");
    }
  }
  return result;
}

double text_width(std::string_view text, double size) {
  double em = 0;
  for (const char c : text) {
    const bool narrow = std::string_view("iljtfr.,:;()[]|'!I ").find(c) != std::string_view::npos;
    const bool wide = std::string_view("mwMWG%@=+").find(c) != std::string_view::npos;
    if ((static_cast<unsigned char>(c) & 0xC0U) == 0x80U) continue;  // inside a character
    em += static_cast<unsigned char>(c) >= 0x80 ? 1.0 : narrow ? 0.36 : wide ? 0.88 : 0.62;
  }
  return em * size;
}

std::string fitted(const std::string& text, double size, double room) {
  std::string result = text;
  for (int width = display_width(text); width > 4 && text_width(result, size) > room;) {
    result = shorten_middle(text, --width);
  }
  return result;
}

void Canvas::line(double x1, double y1, double x2, double y2, std::string_view colour, double width,
                  std::string_view dash) {
  fmt::format_to(std::back_inserter(out_),
                 "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
                 "stroke-width=\"{:.1f}\"{}/>\n",
                 x1, y1, x2, y2, colour, width, dashed(dash));
}

void Canvas::area(const std::vector<std::pair<double, double>>& corners, std::string_view fill) {
  fmt::format_to(std::back_inserter(out_), "<polygon points=\"{}\" fill=\"{}\"/>\n",
                 points_text(corners), fill);
}

void Canvas::curve(const std::vector<std::pair<double, double>>& points, std::string_view colour,
                   double width, std::string_view dash) {
  const std::string text = points_text(points);
  if (text.empty()) return;
  fmt::format_to(std::back_inserter(out_),
                 "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{:.1f}\" "
                 "stroke-linejoin=\"round\"{}/>\n",
                 text, colour, width, dashed(dash));
}

void Canvas::dot(double x, double y, double radius, std::string_view fill, std::string_view stroke,
                 double width) {
  fmt::format_to(std::back_inserter(out_),
                 "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.1f}\" fill=\"{}\" stroke=\"{}\" "
                 "stroke-width=\"{:.1f}\"/>\n",
                 x, y, radius, fill, stroke, width);
}

void Canvas::text(double x, double y, std::string_view anchor, double size, std::string_view colour,
                  std::string_view content, std::string_view more) {
  fmt::format_to(std::back_inserter(out_),
                 "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" font-size=\"{:.0f}\" "
                 "fill=\"{}\"{}>{}</text>\n",
                 x, y, anchor, size, colour, more, escaped(content));
}

std::string document(const Canvas& canvas, double width, double height, std::string_view title) {
  return fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
      "viewBox=\"0 0 {0:.0f} {1:.0f}\" font-family=\"DejaVu Sans, Verdana, Arial, sans-serif\">\n"
      "<title>{2}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#FFFFFF\"/>\n{3}</svg>\n",
      width, height, escaped(title), canvas.str());
}

void draw_titles(Canvas& canvas, const Box& plot, const std::string& title,
                 const std::string& x_title, const std::string& y_title) {
  canvas.text(plot.left, plot.top - 30, "start", 14, kInk, title, Canvas::kBold);
  canvas.text((plot.left + plot.right) / 2, plot.bottom + 42, "middle", 12, kInk, x_title);
  const double y = (plot.top + plot.bottom) / 2;
  const double x = plot.left - 56;
  canvas.text(x, y, "middle", 12, kInk, y_title,
              fmt::format(" transform=\"rotate(-90 {:.1f} {:.1f})\"", x, y));
}

void draw_axes(Canvas& canvas, const Box& plot) {
  canvas.line(plot.left, plot.top, plot.left, plot.bottom, kInk, 1);
  canvas.line(plot.left, plot.bottom, plot.right, plot.bottom, kInk, 1);
}

}  // namespace kvspan::svg
