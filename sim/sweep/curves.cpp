// SPDX-License-Identifier: Apache-2.0
#include "sim/sweep/curves.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <map>
#include <set>
#include <tuple>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace kvspan::sweep {
namespace {

using nlohmann::json;
using Kind = Critical::Kind;

std::optional<double> number(const json& figures, const char* key) {
  const json value = figures.value(key, json());
  return value.is_number() ? std::optional(value.get<double>()) : std::nullopt;
}

Group group_of(const Grid& grid, const Cell& cell) {
  const Setting& s = grid.settings[cell.setting];
  const Counting& c = grid.countings[cell.counting];
  return {s.prompt, s.evict_at, s.chunk, s.kv_bytes, s.seed, c.prefill, c.layout};
}

double retained(const CurvePoint& p) { return p.retained; }
double retained_upper(const CurvePoint& p) { return p.retained_upper.value_or(p.retained); }
double estimate_low(const CurvePoint& p) { return p.estimate ? p.estimate->low : p.retained; }
double estimate_high(const CurvePoint& p) { return p.estimate ? p.estimate->high : p.retained; }

template <class X>
std::vector<Point> points_of(const Curve& curve, X x,
                             double (*quality)(const CurvePoint&) = retained) {
  std::vector<Point> points;
  for (const CurvePoint& p : curve.points)
    points.push_back({static_cast<double>(x(p)), quality(p)});
  return points;
}

void find_regrets(Curve& curve, double least) {
  std::vector<Point> best;
  for (const CurvePoint& p : curve.points) {
    if (!p.regret || !p.optimum_footprint) continue;
    best.push_back({*p.optimum_footprint, p.retained});
    if (!curve.regret) curve.regret = Interval{*p.regret, *p.regret};
    curve.regret->low = std::min(curve.regret->low, *p.regret);
    curve.regret->high = std::max(curve.regret->high, *p.regret);
  }
  if (!best.empty()) curve.optimum = critical_point(std::move(best), least);
}

void find_criticals(Curve& curve, double least) {
  std::stable_sort(curve.points.begin(), curve.points.end(),
                   [](const CurvePoint& a, const CurvePoint& b) {
                     return std::tie(a.footprint, a.cell) < std::tie(b.footprint, b.cell);
                   });
  const auto footprint = [](const CurvePoint& p) { return p.footprint; };
  curve.footprint = critical_point(points_of(curve, footprint), least);
  curve.peak_kv =
      critical_point(points_of(curve, [](const CurvePoint& p) { return p.peak_kv; }), least);
  curve.peak_bytes =
      critical_point(points_of(curve, [](const CurvePoint& p) { return p.peak_bytes; }), least);
  const bool interval = std::any_of(curve.points.begin(), curve.points.end(),
                                    [](const CurvePoint& p) { return p.retained_upper; });
  if (interval)
    curve.footprint_low = critical_point(points_of(curve, footprint, retained_upper), least);
  const bool sampled = std::any_of(curve.points.begin(), curve.points.end(),
                                   [](const CurvePoint& p) { return p.estimate; });
  if (sampled) {
    curve.footprint_interval = {critical_point(points_of(curve, footprint, estimate_high), least),
                                critical_point(points_of(curve, footprint, estimate_low), least)};
  }
  find_regrets(curve, least);
}

Ranked ranked(const std::vector<double>& ranks, const std::vector<double>& criticals,
              const ReportOptions& options) {
  const auto mean = [](const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value;
    return sum / static_cast<double>(values.size());
  };
  Ranked out;
  out.traces = ranks.size();
  out.mean_rank = mean(ranks);
  const bool several = ranks.size() > 1;
  if (several) out.rank_interval = bootstrap_mean(ranks, options.seed, options.draws);
  const bool crossed = std::all_of(criticals.begin(), criticals.end(),
                                   [](double x) { return x < std::numeric_limits<double>::max(); });
  if (crossed) {
    out.mean_critical = mean(criticals);
    if (several) out.critical_interval = bootstrap_mean(criticals, options.seed, options.draws);
  }
  return out;
}

class Builder {
 public:
  Builder(const SweepFolder& sweep, const ReportOptions& options) : sweep_(sweep) {
    report_.options = options;
  }

  SweepReport build() {
    report_.counts = count_cells(sweep_.grid, sweep_.records);
    for (const Cell& cell : sweep_.grid.cells) add(cell);
    for (Curve& curve : report_.curves) find_criticals(curve, report_.options.least);
    std::stable_sort(report_.curves.begin(), report_.curves.end(),
                     [](const Curve& a, const Curve& b) {
                       return std::tuple(a.trace, a.group, order_of(a.footprint), a.footprint.x) <
                              std::tuple(b.trace, b.group, order_of(b.footprint), b.footprint.x);
                     });
    fronts();
    for (std::size_t group = 0; group < report_.groups.size(); ++group) rank(group);
    return std::move(report_);
  }

 private:
  void add(const Cell& cell) {
    const auto found = sweep_.records.cells.find(cell.id);
    if (found == sweep_.records.cells.end() || found->second.status != CellRecord::Status::done) {
      return;
    }
    const json figures = json::parse(found->second.text);
    const auto retained = number(figures, "retained_attention_mean_share");
    const auto footprint = number(figures, "footprint_share");
    if (!retained || !footprint) return;
    Curve& curve = curve_of(cell, figures);
    for (const json& note : figures.at("notes"))
      curve.stand_in =
          curve.stand_in || note.get<std::string>().find("stand-in") != std::string::npos;
    CurvePoint& point = curve.points.emplace_back();
    point.cell = cell.id;
    if (figures.at("budget").is_string()) point.budget = figures.at("budget").get<std::string>();
    point.footprint = *footprint;
    point.peak_kv = number(figures, "peak_kv_share").value_or(0);
    point.peak_bytes = figures.at("peak_bytes").get<std::int64_t>();
    point.retained = *retained;
    point.retained_upper = number(figures, "retained_attention_upper_mean_share");
    const auto low = number(figures, "retained_attention_low_share");
    const auto high = number(figures, "retained_attention_high_share");
    if (low && high) point.estimate = Interval{*low, *high};
    point.regret = number(figures, "regret_share");
    point.optimum_footprint = number(figures, "optimum_footprint_share");
  }

  Curve& curve_of(const Cell& cell, const json& figures) {
    const Group group = group_of(sweep_.grid, cell);
    const auto at = std::find(report_.groups.begin(), report_.groups.end(), group);
    const auto g = static_cast<std::size_t>(at - report_.groups.begin());
    if (at == report_.groups.end()) report_.groups.push_back(group);
    const std::size_t trace = sweep_.grid.settings[cell.setting].trace;
    const auto method = figures.at("method").get<std::string>();
    const auto [known, fresh] = places_.try_emplace({trace, g, method}, report_.curves.size());
    if (fresh) {
      Curve& curve = report_.curves.emplace_back();
      curve.trace = trace;
      curve.group = g;
      curve.method = method;
      curve.bound = figures.at("bound").get<bool>();
    }
    return report_.curves[known->second];
  }

  void fronts() {
    for (std::size_t begin = 0; begin < report_.curves.size();) {
      const Curve& first = report_.curves[begin];
      std::size_t end = begin;
      std::vector<Point> points;
      std::vector<std::uint64_t> cells;
      for (; end < report_.curves.size() && report_.curves[end].trace == first.trace &&
             report_.curves[end].group == first.group;
           ++end) {
        if (report_.curves[end].bound) continue;
        for (const CurvePoint& point : report_.curves[end].points) {
          points.push_back({point.footprint, point.retained});
          cells.push_back(point.cell);
        }
      }
      Front front{first.trace, first.group, {}};
      for (const std::size_t i : pareto_front(points)) front.cells.push_back(cells[i]);
      report_.fronts.push_back(std::move(front));
      begin = end;
    }
  }

  // Ranks are among the methods that ran on every trace of the group.
  void rank(std::size_t group) {
    std::map<std::string, std::vector<double>> criticals;  // a value a trace
    std::set<std::size_t> traces;
    for (const Curve& curve : report_.curves) {
      if (curve.group != group || curve.bound) continue;
      traces.insert(curve.trace);
      criticals[curve.method].push_back(order_of(curve.footprint));
    }
    std::erase_if(criticals, [&](const auto& one) { return one.second.size() < traces.size(); });
    std::vector<Ranked> found = rank_methods(criticals, group, report_.options);
    std::move(found.begin(), found.end(), std::back_inserter(report_.ranking));
  }

  const SweepFolder& sweep_;
  SweepReport report_;
  std::map<std::tuple<std::size_t, std::size_t, std::string>, std::size_t> places_;
};

}  // namespace

std::string labelled(const std::string& method, bool bound, bool stand_in) {
  return method + (bound ? " (bound)" : stand_in ? " (stand-in)" : "");
}

bool is_stand_in(const std::vector<Curve>& curves, const std::string& method) {
  return std::ranges::any_of(
      curves, [&](const Curve& curve) { return curve.method == method && curve.stand_in; });
}

double order_of(const Critical& critical) {
  if (critical.kind == Kind::exact || critical.kind == Kind::below) return critical.x;
  return std::numeric_limits<double>::infinity();
}

std::vector<Ranked> rank_methods(const std::map<std::string, std::vector<double>>& criticals,
                                 std::size_t group, const ReportOptions& options) {
  const std::size_t traces = criticals.empty() ? 0 : criticals.begin()->second.size();
  std::map<std::string, std::vector<double>> ranks;
  for (std::size_t trace = 0; trace < traces; ++trace) {
    std::vector<double> values;
    for (const auto& [method, of_traces] : criticals) values.push_back(of_traces[trace]);
    const std::vector<double> places = ranks_of(values);
    std::size_t i = 0;
    for (const auto& [method, of_traces] : criticals) ranks[method].push_back(places[i++]);
  }
  std::vector<Ranked> out;
  for (const auto& [method, values] : criticals) {
    out.push_back(ranked(ranks[method], values, options));
    out.back().group = group;
    out.back().method = method;
  }
  std::stable_sort(out.begin(), out.end(),
                   [](const Ranked& a, const Ranked& b) { return a.mean_rank < b.mean_rank; });
  return out;
}

std::string text_of(const Group& group) {
  std::string text =
      group.chunk == 0 ? "one prefill pass" : fmt::format("chunks of {}", group.chunk);
  if (group.prompt != 0) text += fmt::format(", prompt {}", group.prompt);
  if (!group.evict_at.empty()) text += ", evict at " + group.evict_at;
  if (group.kv_bytes != 2) text += fmt::format(", {} bytes an element", group.kv_bytes);
  if (group.prefill != "whole") text += ", prefill " + group.prefill;
  if (group.layout != "ideal") text += ", layout " + group.layout;
  if (group.seed != 0) text += fmt::format(", seed {}", group.seed);
  return text;
}

SweepReport make_report(const SweepFolder& sweep, const ReportOptions& options) {
  return Builder(sweep, options).build();
}

}  // namespace kvspan::sweep
