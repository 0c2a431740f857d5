// SPDX-License-Identifier: Apache-2.0
// What follows from points. Vectors: by hand, or printed by tests/studies/sweep/check.py, a second
// program.
#include <algorithm>
#include <cmath>
#include <limits>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "sim/base/random.h"
#include "sim/sweep/report_forms.h"

using namespace kvspan;
using namespace kvspan::sweep;
using Kind = Critical::Kind;

namespace {

void check_critical(const std::vector<Point>& points, double least, Kind kind, double x) {
  const Critical found = critical_point(points, least);
  CHECK(found.kind == kind);
  CHECK(found.x == Approx(x));
}

}  // namespace

TEST_CASE("the critical point is interpolated where the line is crossed first", "[sweep]") {
  // Half way between .85 and .95: half way between .2 and .3; the order of points does not matter.
  check_critical({{0.3, 0.95}, {0.1, 0.5}, {0.2, 0.85}}, 0.9, Kind::exact, 0.25);
  check_critical({{0.1, 0.6}, {0.2, 0.9}, {0.3, 1}}, 0.9, Kind::exact, 0.2);  // a point on the line
  check_critical({{0.2, 0.9}, {0.3, 1}}, 0.9, Kind::below, 0.2);
  check_critical({{0.2, 0.5}, {0.3, 0.89}}, 0.9, Kind::above, 0.3);
  check_critical({{0.4, 1}}, 0.9, Kind::below, 0.4);
  check_critical({{0.4, 0.1}}, 0.9, Kind::above, 0.4);
  check_critical({}, 0.9, Kind::unknown, 0);
  // The curve of arXiv 2506.17121 dips below the line at 68.7 and is above it at 62.3: the crossing
  // with the smaller footprint counts.
  check_critical({{56.2, 0.8}, {62.3, 0.92}, {68.7, 0.88}, {75, 0.97}}, 0.9, Kind::exact,
                 56.2 + 6.1 * 10 / 12);
  // The largest one fails, whatever smaller ones did.
  check_critical({{0.1, 0.95}, {0.2, 0.8}}, 0.9, Kind::above, 0.2);
  // Of two qualities at one x the better one counts.
  check_critical({{0.2, 0.3}, {0.2, 0.95}, {0.3, 0.96}}, 0.9, Kind::below, 0.2);
  std::vector<Point> line;
  for (int i = 1; i < 10; ++i)
    line.push_back({0.1 * i + 0.03 * (i % 3), 0.5 + 0.05 * i + 0.04 * (i % 2)});
  check_critical(line, 0.83, Kind::exact, 0.6433333333333333);
}

TEST_CASE("a front holds what nothing beats", "[sweep]") {
  CHECK(pareto_front({}).empty());
  // 1 is beaten by 0 (same quality, larger), 3 by 2 (same x, less); 4 and 5 are the same point.
  const std::vector<Point> points{{0.1, 0.5},  {0.2, 0.5}, {0.3, 0.9},
                                  {0.3, 0.85}, {0.5, 1},   {0.5, 1}};
  CHECK(pareto_front(points) == std::vector<std::size_t>{0, 2, 4, 5});
  std::vector<Point> many;
  for (int i = 0; i < 200; ++i)
    many.push_back({uniform(1, {i}), std::round(10 * uniform(2, {i})) / 10});
  std::vector<std::size_t> front = pareto_front(many);
  std::sort(front.begin(), front.end());
  CHECK(front == std::vector<std::size_t>{115, 155, 168});
}

TEST_CASE("ranks share places, and the bootstrap draws what its seed says", "[sweep]") {
  CHECK(ranks_of({3, 1, 2}) == std::vector<double>{3, 1, 2});
  CHECK(ranks_of({1, 2, 1, 5}) == std::vector<double>{1.5, 3, 1.5, 4});
  const double never = std::numeric_limits<double>::infinity();
  CHECK(ranks_of({never, 1, never}) == std::vector<double>{2.5, 1, 2.5});
  const Interval interval = bootstrap_mean({3, 1, 4, 1, 5, 9, 2, 6}, 7, 1000);
  CHECK(interval.low == Approx(2.125));
  CHECK(interval.high == Approx(5.625));
  CHECK(bootstrap_mean({0.25, 0.5}, 0, 40).low == Approx(0.25));
  CHECK(bootstrap_mean({0.25, 0.5}, 0, 40).high == Approx(0.5));
  CHECK(bootstrap_mean({0.4}, 3, 10).low == Approx(0.4));
}

TEST_CASE("critical points are printed with what is known of them", "[sweep]") {
  CHECK(share_text({Kind::exact, 0.31249}) == "31.2 %");
  CHECK(share_text({Kind::below, 0.1}) == "< 10.0 %");
  CHECK(share_text({Kind::above, 0.985}) == "> 98.5 %");
  CHECK(share_text({}) == "-");
  CHECK(bytes_text({Kind::below, 1536}) == "< 1.50 KiB");
}

namespace {

// Two traces, two methods at two budgets; figures as given, in the order of the cells.
SweepFolder folder_of(const std::vector<std::pair<double, double>>& figures) {
  SweepFolder sweep;
  for (const char* trace : {"a.safetensors", "b.safetensors"})
    sweep.plan.traces.push_back({trace, std::string(trace), "m", 8, 4, 1, 1, 1, 1});
  for (const char* spec :
       {"snapkv(budget=1)", "snapkv(budget=2)", "h2o(budget=1)", "h2o(budget=2)"})
    sweep.plan.specs.push_back({spec, false, {}});
  sweep.grid = make_grid(sweep.plan);
  REQUIRE(sweep.grid.cells.size() == figures.size());
  for (std::size_t i = 0; i < figures.size(); ++i) {
    const Cell& cell = sweep.grid.cells[i];
    const std::string& spec = sweep.plan.specs[cell.spec].text;
    const nlohmann::json figure{{"method", spec.substr(0, spec.find('('))},
                                {"budget", spec.substr(spec.size() - 2, 1)},
                                {"bound", false},
                                {"notes", nlohmann::json::array()},
                                {"footprint_share", figures[i].first},
                                {"peak_kv_share", figures[i].first},
                                {"peak_bytes", 100},
                                {"retained_attention_mean_share", figures[i].second}};
    sweep.records.cells[cell.id] = {CellRecord::Status::done, figure.dump()};
  }
  return sweep;
}

const std::vector<std::pair<double, double>> kFigures{
    {0.2, 0.8}, {0.4, 1.0}, {0.3, 0.8}, {0.5, 1.0},    // a: snapkv crosses at .3, h2o at .4
    {0.2, 0.7}, {0.6, 0.8}, {0.3, 0.9}, {0.4, 0.95}};  // b: snapkv never, h2o below .3

}  // namespace

TEST_CASE("a report has a curve a trace and method, and ranks over the traces", "[sweep]") {
  const SweepFolder sweep = folder_of(kFigures);
  const SweepReport report = make_report(sweep, {0.9, 100, 0});
  REQUIRE(report.curves.size() == 4);
  CHECK(report.curves[0].method == "snapkv");
  CHECK(share_text(report.curves[0].footprint) == "30.0 %");
  CHECK(share_text(report.curves[1].footprint) == "40.0 %");
  CHECK(report.curves[2].method == "h2o");
  CHECK(share_text(report.curves[2].footprint) == "< 30.0 %");
  CHECK(share_text(report.curves[3].footprint) == "> 60.0 %");
  // h2o is second, then first; snapkv first, then second.
  REQUIRE(report.ranking.size() == 2);
  CHECK(report.ranking[0].mean_rank == Approx(1.5));
  CHECK(report.ranking[0].rank_interval->low == Approx(1));
  CHECK(report.ranking[0].rank_interval->high == Approx(2));
  const auto h2o = std::find_if(report.ranking.begin(), report.ranking.end(),
                                [](const Ranked& r) { return r.method == "h2o"; });
  CHECK(*h2o->mean_critical == Approx(0.35));
  // a: (.2, .8), (.4, 1); .3 and .5 are beaten. b: (.2, .7), (.3, .9), (.4, .95).
  CHECK(report.fronts[0].cells.size() == 2);
  CHECK(report.fronts[1].cells.size() == 3);
  const std::string csv = to_csv(report, sweep.plan);
  CHECK(std::count(csv.begin(), csv.end(), '\n') == 5);
  const std::string header = csv.substr(0, csv.find('\n'));
  CHECK(critical_schema()["fields"].size() ==
        static_cast<std::size_t>(std::count(header.begin(), header.end(), ',')) + 1);
  CHECK(to_json(report, sweep.plan)["curves"][3]["critical_footprint"]["kind"] == "above");
  CHECK_THAT(to_markdown(report, sweep.plan), Catch::Matchers::Contains("| < 30.0 % |"));
  CHECK_THAT(to_svg(report, sweep.plan), Catch::Matchers::EndsWith("</svg>\n"));
}

TEST_CASE("a report labels stand-ins and bounds beside their names", "[sweep]") {
  SweepFolder sweep = folder_of(kFigures);
  std::string& text = sweep.records.cells.at(sweep.grid.cells[0].id).text;
  nlohmann::json record = nlohmann::json::parse(text);
  const auto method = record["method"].get<std::string>();
  const auto markdown = [&](const std::vector<std::string>& notes, bool bound) {
    record["notes"] = notes;
    record["bound"] = bound;
    text = record.dump();
    return to_markdown(make_report(sweep, {}), sweep.plan);
  };
  CHECK_THAT(markdown({}, false), Catch::Contains("| " + method + " |"));
  CHECK_THAT(markdown({"of 3 layers", "stand-in: fitted"}, false),
             Catch::Contains("| " + method + " (stand-in) |"));
  const nlohmann::json written = to_json(make_report(sweep, {}), sweep.plan);
  std::size_t labelled = 0;
  for (const nlohmann::json& curve : written["curves"])
    labelled += curve["stand_in"].get<bool>() ? 1 : 0;
  CHECK(labelled == 1);
  CHECK_THAT(markdown({"stand-in: fitted"}, true), Catch::Contains("| " + method + " (bound) |"));
}

TEST_CASE("a report sets methods against the best eviction", "[sweep]") {
  SweepFolder sweep = folder_of(kFigures);
  CHECK(to_markdown(make_report(sweep, {}), sweep.plan).find("egret") == std::string::npos);
  // Trace a: snapkv lacks .1 and .02 of the best, which has its .8 and 1 with .12 and .32: .9 with
  // .22. Of h2o only the larger budget has a regret, and that keeps .9.
  const auto set = [&](std::size_t cell, double regret, double footprint) {
    std::string& text = sweep.records.cells.at(sweep.grid.cells[cell].id).text;
    nlohmann::json record = nlohmann::json::parse(text);
    record["regret_share"] = regret;
    record["optimum_footprint_share"] = footprint;
    text = record.dump();
  };
  set(0, 0.1, 0.12);
  set(1, 0.02, 0.32);
  set(3, 0.035, 0.4);
  const SweepReport report = make_report(sweep, {0.9, 100, 0});
  const Curve& snapkv = report.curves[0];
  REQUIRE(snapkv.optimum);
  CHECK(snapkv.optimum->kind == Kind::exact);
  CHECK(snapkv.optimum->x == Approx(0.22));
  CHECK(snapkv.regret->low == Approx(0.02));
  CHECK(snapkv.regret->high == Approx(0.1));
  CHECK(share_text(*report.curves[1].optimum) == "< 40.0 %");
  CHECK_FALSE(report.curves[2].regret);
  using Catch::Matchers::Contains;
  CHECK_THAT(to_markdown(report, sweep.plan),
             Contains("| retained % | regret % | optimum's | points |") &&
                 Contains("| 80.0 to 100.0 | 2.0 to 10.0 | 22.0 % | 2 |") &&
                 Contains("| - | - | 2 |"));
  const std::string csv = to_csv(report, sweep.plan);
  CHECK_THAT(csv, Contains(",exact,0.22,0.02,0.1,2\n") && Contains(",,,,2\n"));
  for (std::size_t begin = 0; begin < csv.size(); begin = csv.find('\n', begin) + 1) {
    const std::string line = csv.substr(begin, csv.find('\n', begin) - begin);
    CHECK(critical_schema()["fields"].size() ==
          static_cast<std::size_t>(std::count(line.begin(), line.end(), ',')) + 1);
  }
  const nlohmann::json curves = to_json(report, sweep.plan)["curves"];
  CHECK(curves[0]["critical_optimum_footprint"]["value"] == Approx(0.22));
  CHECK(curves[0]["points"][0]["regret"] == Approx(0.1));
  CHECK(curves[1]["points"][0]["regret"].is_null());
  CHECK(curves[2]["critical_optimum_footprint"].is_null());
}

TEST_CASE("two sweeps differ where a figure moved, or a cell is missing", "[sweep]") {
  const SweepFolder before = folder_of(kFigures);
  CHECK_FALSE(compare(before, before, 0).changed());
  auto figures = kFigures;
  figures[1].first = 0.404;  // one per cent
  SweepFolder after = folder_of(figures);
  CHECK_FALSE(compare(before, after, 0.02).changed());
  const Comparison moved = compare(before, after, 0.001);
  CHECK(moved.same == 7);
  REQUIRE(moved.changes.size() == 2);  // footprint and peak
  CHECK(moved.changes[0].policy == "snapkv(budget=2)");
  CHECK(moved.changes[0].by() == Approx(0.004));
  CHECK_THAT(to_markdown(moved, 1),
             Catch::Matchers::Contains("+1") && Catch::Matchers::Contains("and 1 more"));
  after.records.cells.erase(after.grid.cells[7].id);
  CHECK(compare(before, after, 0.02).only_before.size() == 1);
  CHECK(compare(after, before, 0.02).only_after.size() == 1);
}
