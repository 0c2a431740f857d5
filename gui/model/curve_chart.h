// SPDX-License-Identifier: Apache-2.0
// Curves of quality against memory, as a chart shows them: means over traces or samples, and what
// these spread.
#pragma once

#include <QPointF>
#include <QString>
#include <optional>
#include <vector>

namespace kvspan::gui {

struct CurveChart {
  struct Point {
    double x = 0, y = 0;         // shares
    double left = 0, right = 0;  // what x spreads; both x: nothing
    double low = 0, high = 0;    // what y spreads
    QString text;                // what it is
    bool front = false;          // nobody has less x and as much y
    int item = -1;               // what a click opens; -1: it stands for several
  };
  struct Line {
    QString name;
    int colour = 0;                  // slot of the palette
    bool faint = false;              // grey, and without a name in the chart
    bool bound = false;              // reads the future
    std::vector<Point> points;       // by x
    std::optional<double> critical;  // x at which it reaches the threshold
  };
  std::vector<Line> lines;
  std::vector<QPointF> front;       // by x
  std::optional<double> threshold;  // in y
  QString threshold_name, x_name, y_name, caption;
  // What y spreads is a band along each line that is on the front or stands out; else a whisker at
  // each point.
  bool bands = false;
};

}  // namespace kvspan::gui
