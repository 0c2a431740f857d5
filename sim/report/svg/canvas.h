// SPDX-License-Identifier: Apache-2.0
// Elements of an SVG, and the paper they are put on.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sim/report/placement.h"

namespace kvspan::svg {

inline constexpr std::string_view kInk = "#222222";
inline constexpr std::string_view kFaint = "#666666";
inline constexpr std::string_view kGrid = "#E4E4E4";
inline constexpr std::string_view kPaper = "#FFFFFF";

// `raw` in one line, as XML.
[[nodiscard]] std::string escaped(std::string_view raw);
// Fonts differ: about the width in DejaVu Sans or Verdana, the widest that is likely to be used.
[[nodiscard]] double text_width(std::string_view text, double size);
// `text` shortened to `room` pixels.
[[nodiscard]] std::string fitted(const std::string& text, double size, double room);

class Canvas {
 public:
  void line(double x1, double y1, double x2, double y2, std::string_view colour, double width,
            std::string_view dash = "");
  void curve(const std::vector<std::pair<double, double>>& points, std::string_view colour,
             double width, std::string_view dash = "");
  // Filled, without a line around it.
  void area(const std::vector<std::pair<double, double>>& corners, std::string_view fill);
  void dot(double x, double y, double radius, std::string_view fill, std::string_view stroke,
           double width);
  // anchor: start, middle or end. A halo keeps text readable on top of lines.
  void text(double x, double y, std::string_view anchor, double size, std::string_view colour,
            std::string_view content, std::string_view more = "");
  [[nodiscard]] const std::string& str() const { return out_; }

  static constexpr std::string_view kHalo =
      " stroke=\"#FFFFFF\" stroke-width=\"3\" stroke-linejoin=\"round\" paint-order=\"stroke\"";
  static constexpr std::string_view kBold = " font-weight=\"bold\"";

 private:
  std::string out_;
};

// The whole file, on white paper.
[[nodiscard]] std::string document(const Canvas& canvas, double width, double height,
                                   std::string_view title);

// Title above a plot, titles of its axes; the axes themselves.
void draw_titles(Canvas& canvas, const Box& plot, const std::string& title,
                 const std::string& x_title, const std::string& y_title);
void draw_axes(Canvas& canvas, const Box& plot);

}  // namespace kvspan::svg
