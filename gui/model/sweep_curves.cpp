// SPDX-License-Identifier: Apache-2.0
#include "gui/model/sweep_curves.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <tuple>
#include <utility>

#include "gui/model/csv.h"
#include "gui/model/numbers.h"
#include "sim/sweep/report_forms.h"

namespace kvspan::gui {
namespace {

using Kind = sweep::Critical::Kind;

constexpr int kGrey = 7;  // slot of the lines that are not named

// A curve has no budget: its first cell stands for it in everything else.
std::size_t cell_of(const Sweep& sweep, const sweep::Curve& curve) {
  return sweep.cell_of.at(curve.points.front().cell);
}

SweepFilter without_budget(SweepFilter filter) {
  filter.wanted[Sweep::budget].reset();
  filter.wanted[Sweep::status].reset();
  return filter;
}

bool crosses(const std::optional<sweep::Critical>& critical) {
  return critical && (critical->kind == Kind::exact || critical->kind == Kind::below);
}

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// One specification on several traces.
struct Gathered {
  std::vector<double> x, y;
  std::string budget;
  std::size_t cell = 0;  // the first one
};

class CurvesOfGroup {
 public:
  CurvesOfGroup(const Sweep& sweep, const sweep::SweepReport& report, const SweepFilter& filter,
                std::size_t group)
      : sweep_(sweep), report_(report), filter_(filter), group_(group) {}

  SweepCurves build() {
    find_traces();
    if (shown_.empty()) return std::move(out_);
    for (const sweep::Curve* curve : shown_) add(*curve);
    for (SweepCurves::Method& method : out_.methods) finish(method);
    sort();
    find_front();
    choose_lines();
    return std::move(out_);
  }

 private:
  void find_traces() {
    const SweepFilter filter = without_budget(filter_);
    std::set<std::size_t> traces;
    for (const sweep::Curve& curve : report_.curves) {
      if (curve.group != group_ || !filter.takes(sweep_, cell_of(sweep_, curve))) continue;
      shown_.push_back(&curve);
      traces.insert(curve.trace);
    }
    out_.traces.assign(traces.begin(), traces.end());
  }

  void add(const sweep::Curve& curve) {
    const auto [at, fresh] = places_.try_emplace(curve.method, out_.methods.size());
    if (fresh) {
      SweepCurves::Method& made = out_.methods.emplace_back();
      made.name = curve.method;
      made.bound = made.line.bound = curve.bound;
      made.line.name =
          QString::fromStdString(sweep::labelled(curve.method, curve.bound, curve.stand_in));
      made.line.faint = true;
      made.line.colour = kGrey;
      made.critical.resize(out_.traces.size());
      gathered_.emplace_back();
    }
    const auto trace = std::find(out_.traces.begin(), out_.traces.end(), curve.trace);
    out_.methods[at->second].critical[static_cast<std::size_t>(trace - out_.traces.begin())] =
        curve.footprint;
    for (const sweep::CurvePoint& point : curve.points) {
      const std::size_t cell = sweep_.cell_of.at(point.cell);
      if (!filter_.takes(sweep_, cell)) continue;
      const auto [of_spec, first] =
          gathered_[at->second].try_emplace(sweep_.folder.grid.cells[cell].spec);
      Gathered& known = of_spec->second;
      if (first) {
        known.cell = cell;
        known.budget = point.budget;
      }
      known.x.push_back(point.footprint);
      known.y.push_back(point.retained);
    }
  }

  void finish(SweepCurves::Method& method) {
    const bool all = std::all_of(method.critical.begin(), method.critical.end(), crosses);
    if (all) {
      std::vector<double> values;
      for (const auto& critical : method.critical) values.push_back(critical->x);
      method.mean = mean_of(values);
      if (values.size() > 1)
        method.interval =
            sweep::bootstrap_mean(values, report_.options.seed, report_.options.draws);
      const bool inside = std::all_of(method.critical.begin(), method.critical.end(),
                                      [](const auto& c) { return c->kind == Kind::exact; });
      if (inside) method.line.critical = method.mean;
    }
    const auto index = static_cast<std::size_t>(&method - out_.methods.data());
    std::vector<const Gathered*> points;
    for (const auto& [spec, gathered] : gathered_[index]) points.push_back(&gathered);
    std::stable_sort(points.begin(), points.end(), [](const Gathered* a, const Gathered* b) {
      return mean_of(a->x) < mean_of(b->x);
    });
    for (const Gathered* point : points) add_point(*point, method);
  }

  void add_point(const Gathered& of, SweepCurves::Method& method) const {
    CurveChart::Point point;
    point.x = mean_of(of.x);
    point.y = mean_of(of.y);
    std::tie(point.left, point.right) = ends(of.x);
    std::tie(point.low, point.high) = ends(of.y);
    if (of.x.size() == 1) point.item = static_cast<int>(of.cell);
    point.text = method.line.name;
    if (!of.budget.empty())
      point.text += " at " + QString::fromStdString(of.budget).replace("%", " %");
    if (out_.traces.size() > 1) {
      point.text += QString(", %1 of %2 traces").arg(of.x.size()).arg(out_.traces.size());
    }
    method.line.points.push_back(point);
    method.traces_of_point.push_back(of.x.size());
    method.budget_of_point.push_back(of.budget);
  }

  static std::pair<double, double> ends(const std::vector<double>& values) {
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    return {*low, *high};
  }

  // Who crosses on all traces, then who does on some, then the others by what they retain at most.
  void sort() {
    const auto key = [](const SweepCurves::Method& method) {
      const auto crossings = std::count_if(method.critical.begin(), method.critical.end(), crosses);
      double most = 0;
      for (const CurveChart::Point& point : method.line.points) most = std::max(most, point.y);
      return std::tuple(!method.mean, method.mean.value_or(0), -crossings, -most);
    };
    std::stable_sort(out_.methods.begin(), out_.methods.end(),
                     [&](const auto& a, const auto& b) { return key(a) < key(b); });
  }

  // Of the means: a method that reads the future takes no part.
  void find_front() {
    std::vector<sweep::Point> points;
    std::vector<CurveChart::Point*> of;
    for (SweepCurves::Method& method : out_.methods) {
      for (CurveChart::Point& point : method.line.points) {
        if (method.bound) continue;
        points.push_back({point.x, point.y});
        of.push_back(&point);
      }
    }
    for (const std::size_t i : sweep::pareto_front(points)) {
      of[i]->front = true;
      out_.chart.front.emplace_back(points[i].x, points[i].quality);
    }
  }

  // Who has a place on the front has a name, then who needs least; a point alone comes last.
  void feature() {
    std::vector<SweepCurves::Method*> order;
    for (SweepCurves::Method& method : out_.methods) {
      if (!method.line.points.empty()) order.push_back(&method);
    }
    std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
      const auto rank = [](const SweepCurves::Method& method) {
        const auto& points = method.line.points;
        const bool front = std::any_of(points.begin(), points.end(),
                                       [](const CurveChart::Point& p) { return p.front; });
        return points.size() == 1 ? 2 : front ? 0 : 1;
      };
      return rank(*a) < rank(*b);
    });
    order.resize(std::min(order.size(), kFeaturedLines));
    for (std::size_t i = 0; i < order.size(); ++i) {
      const auto slot = static_cast<int>(i);
      order[i]->line.faint = false;
      order[i]->line.colour = slot < kGrey ? slot : slot + 1;
    }
  }

  void choose_lines() {
    CurveChart& chart = out_.chart;
    chart.bands = true;
    chart.threshold = report_.options.least;
    chart.threshold_name = "F = " + percent_text(report_.options.least);
    chart.x_name = "KV footprint, % of a full cache";
    chart.y_name = "retained attention, %";
    feature();
    for (const SweepCurves::Method& method : out_.methods) {
      if (chart.lines.size() == kMostLines) break;
      if (!method.line.points.empty()) chart.lines.push_back(method.line);
    }
    QStringList parts{QString::fromStdString(text_of(report_.groups[group_]))};
    const auto traces = out_.traces.size();
    parts << (traces == 1
                  ? sweep_.parameters[Sweep::trace].texts[static_cast<std::size_t>(
                        sweep_.parameters[Sweep::trace].of_cell[cell_of(sweep_, *shown_.front())])]
                  : QString("means over %1 traces, bands from the least to the most").arg(traces));
    if (out_.methods.size() > chart.lines.size())
      parts
          << QString("the best %1 of %2 methods").arg(chart.lines.size()).arg(out_.methods.size());
    chart.caption = parts.join("; ");
  }

  const Sweep& sweep_;
  const sweep::SweepReport& report_;
  const SweepFilter& filter_;
  std::size_t group_;
  SweepCurves out_;
  std::vector<const sweep::Curve*> shown_;
  std::map<std::string, std::size_t> places_;
  std::vector<std::map<std::size_t, Gathered>> gathered_;  // [methods] by specification
};

}  // namespace

std::vector<std::size_t> groups_of(const Sweep& sweep, const sweep::SweepReport& report,
                                   const SweepFilter& filter) {
  const SweepFilter settings = without_budget(filter);
  std::set<std::size_t> groups;
  for (const sweep::Curve& curve : report.curves) {
    if (settings.takes(sweep, cell_of(sweep, curve))) groups.insert(curve.group);
  }
  return {groups.begin(), groups.end()};
}

SweepCurves make_sweep_curves(const Sweep& sweep, const sweep::SweepReport& report,
                              const SweepFilter& filter, std::size_t group) {
  return CurvesOfGroup(sweep, report, filter, group).build();
}

void set_criticals(const SweepCurves& curves, const Sweep& sweep, PlainTable& table) {
  const bool several = curves.traces.size() > 1;
  std::vector<PlainTable::Column> columns{
      {"method", "specifications without their budgets"},
      {"critical footprint",
       several ? "mean over the traces of the smallest footprint that keeps F of the attention, "
                 "interpolated; a dash where a trace has none"
               : "the smallest footprint that keeps F of the attention, interpolated; <: the "
                 "smallest measured keeps it; >: the largest measured does not",
       true}};
  if (several) columns.push_back({"95 % interval", "bootstrap over the traces", true});
  for (std::size_t t = 0; several && t < curves.traces.size(); ++t) {
    const std::string& path = sweep.folder.plan.traces[curves.traces[t]].path;
    const auto& words = sweep.parameters[Sweep::trace].words;
    const auto at = std::find(words.begin(), words.end(), path) - words.begin();
    columns.push_back({sweep.parameters[Sweep::trace].texts[static_cast<std::size_t>(at)],
                       "the same on this trace", true});
  }
  const auto exact = [](const std::optional<double>& value) {
    return value ? QVariant(*value) : QVariant();
  };
  std::vector<PlainTable::Row> rows;
  for (std::size_t m = 0; m < curves.methods.size(); ++m) {
    const SweepCurves::Method& method = curves.methods[m];
    PlainTable::Row row;
    row.item = static_cast<int>(m);
    row.colour = method.line.colour;
    row.cells.push_back({method.line.name, {}, {}});
    const QString mean = several ? percent_text(method.mean)
                         : method.critical.front()
                             ? QString::fromStdString(sweep::share_text(*method.critical.front()))
                             : QString(QChar(0x2013));
    row.cells.push_back({mean, exact(method.mean), {}});
    if (several) {
      const auto& interval = method.interval;
      row.cells.push_back(
          {interval ? percent_text(interval->low).chopped(2) + " to " + percent_text(interval->high)
                    : QString(QChar(0x2013)),
           {},
           {}});
    }
    for (std::size_t t = 0; several && t < curves.traces.size(); ++t) {
      const auto& critical = method.critical[t];
      row.cells.push_back(
          {critical ? QString::fromStdString(sweep::share_text(*critical)) : QString(QChar(0x2013)),
           critical ? QVariant(critical->x) : QVariant(),
           {}});
    }
    rows.push_back(std::move(row));
  }
  table.set(std::move(columns), std::move(rows));
}

std::string curves_csv(const SweepCurves& curves, const sweep::SweepReport& report,
                       std::size_t group) {
  std::string text =
      csv_line({"setting", "method", "bound", "budget", "traces", "footprint", "footprint_least",
                "footprint_most", "retained_attention", "retained_attention_least",
                "retained_attention_most", "pareto", "critical_footprint", "threshold"});
  const auto yes = [](bool is) { return csv_field(std::int64_t{is ? 1 : 0}); };
  for (const SweepCurves::Method& method : curves.methods) {
    for (std::size_t i = 0; i < method.line.points.size(); ++i) {
      const CurveChart::Point& p = method.line.points[i];
      text += csv_line({csv_field(std::string_view(text_of(report.groups[group]))),
                        csv_field(std::string_view(method.name)), yes(method.bound),
                        csv_field(std::string_view(method.budget_of_point[i])),
                        csv_field(static_cast<std::int64_t>(method.traces_of_point[i])),
                        csv_field(p.x), csv_field(p.left), csv_field(p.right), csv_field(p.y),
                        csv_field(p.low), csv_field(p.high), yes(p.front),
                        method.mean ? csv_field(*method.mean) : std::string(),
                        csv_field(report.options.least)});
    }
  }
  return text;
}

}  // namespace kvspan::gui
