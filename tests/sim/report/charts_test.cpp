// SPDX-License-Identifier: Apache-2.0
// The chart of characters and the SVG.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "sim/base/text.h"
#include "sim/report/csv.h"
#include "sim/report/json.h"
#include "sim/report/listing.h"
#include "sim/report/placement.h"
#include "sim/report/svg.h"
#include "sim/report/table.h"
#include "sim/report/terminal_chart.h"
#include "sim/report/tradeoff_svg.h"
#include "tests/support/fake_report.h"

using kvspan::RunReport;
using kvspan::test::fake_report;
using kvspan::test::fake_sweep;
using kvspan::test::FakeRun;
using kvspan::test::lines_of;
using kvspan::test::small_report;
using FakeRule = FakeRun::Rule;

namespace {

// The first reason why `text` is no well-formed XML, or "".
std::string xml_defect(const std::string& text) {
  std::vector<std::string> open;
  const auto bad_text = [](std::string_view part) {
    for (std::size_t at = 0; (at = part.find('&', at)) != part.npos; ++at) {
      const std::string_view rest = part.substr(at);
      bool known = false;
      for (const char* entity : {"&amp;", "&lt;", "&gt;", "&quot;"})
        known |= rest.starts_with(entity);
      if (!known) return true;
    }
    return std::any_of(part.begin(), part.end(), [](char c) {
      return c == '<' || (static_cast<unsigned char>(c) < 0x20 && c != '\n');
    });
  };
  for (std::size_t at = 0; at < text.size();) {
    if (text[at] != '<') {
      const std::size_t end = std::min(text.find('<', at), text.size());
      if (bad_text(std::string_view(text).substr(at, end - at)))
        return "text at " + std::to_string(at);
      at = end;
      continue;
    }
    // A '>' inside an attribute is escaped by this writer.
    const std::size_t end = text.find('>', at);
    if (end == text.npos) return "tag without end";
    std::string tag = text.substr(at + 1, end - at - 1);
    at = end + 1;
    if (tag.starts_with("?")) continue;
    if (tag.starts_with("/")) {
      if (open.empty() || open.back() != tag.substr(1)) return "unexpected </" + tag.substr(1);
      open.pop_back();
      continue;
    }
    const bool closed = tag.ends_with("/");
    if (closed) tag.pop_back();
    const std::size_t name_end = std::min(tag.find_first_of(" \n"), tag.size());
    const std::string name = tag.substr(0, name_end);
    std::set<std::string> seen;
    for (std::size_t i = name_end; i < tag.size();) {
      if (tag[i] == ' ' || tag[i] == '\n') {
        ++i;
        continue;
      }
      const std::size_t equals = tag.find("=\"", i);
      if (equals == tag.npos) return "attribute in " + tag;
      const std::size_t quote = tag.find('"', equals + 2);
      if (quote == tag.npos) return "quote in " + tag;
      if (!seen.insert(tag.substr(i, equals - i)).second) return "attribute twice in " + tag;
      if (bad_text(std::string_view(tag).substr(equals + 2, quote - equals - 2)))
        return "value in " + tag;
      i = quote + 1;
    }
    if (!closed) open.push_back(name);
  }
  return open.empty() ? "" : "no </" + open.back();
}

}  // namespace

TEST_CASE("text that is no UTF-8 reaches JSON, table and SVG as replacement characters",
          "[report]") {
  RunReport report = small_report();
  report.trace_path = "caf\xE9.safetensors";
  report.runs[0].label = "a\x1b[31mred\n<b>&\xFF";
  CHECK_NOTHROW(kvspan::to_json(report).dump());
  const std::string table = kvspan::format_table(report, {});
  CHECK(table.find('\x1b') == std::string::npos);
  CHECK(xml_defect(kvspan::memory_svg(report)) == "");
}

TEST_CASE("a chart keeps to its width and height", "[report][chart]") {
  const int runs = GENERATE(1, 4, 40);
  const std::int64_t prompt = GENERATE(8, 48, 63, 64);
  const int width = GENERATE(40, 100);
  const int height = GENERATE(8, 16, 30);
  const bool utf8 = GENERATE(false, true);
  const std::string chart =
      kvspan::memory_chart(fake_sweep({.prompt = prompt}, runs), width, height, utf8);
  INFO(chart);
  const std::vector<std::string> lines = lines_of(chart);
  CHECK(lines.size() <= static_cast<std::size_t>(height));
  for (const std::string& line : lines) {
    CHECK(kvspan::display_width(line) <= width);
    if (!utf8)
      CHECK(std::all_of(line.begin(), line.end(), [](unsigned char c) { return c < 0x80; }));
  }
  CHECK(chart.find("iB ") != std::string::npos);
  if (width == 100) CHECK((chart.find("decode") != std::string::npos) == (prompt < 64));
  CHECK(chart.find(utf8 ? "\u25CF full" : "* full") != std::string::npos);
}

TEST_CASE("a chart merges curves that look the same", "[report][chart]") {
  const RunReport report =
      fake_report({}, {{.spec = "quest(budget=8)"},
                       {.spec = "w(1)", .rule = FakeRule::prompt_end, .budget = 8},
                       {.spec = "full"}});
  const std::string chart = kvspan::memory_chart(report, 100, 16, false);
  CHECK(chart.find("* full, quest(budget=8)  o w(1)\n") != std::string::npos);
}

TEST_CASE("a report without runs has a table, a picture and no chart", "[report]") {
  const RunReport report = fake_report({}, {});
  CHECK(kvspan::memory_chart(report, 100, 16, true).empty());
  CHECK(xml_defect(kvspan::memory_svg(report)) == "");
  CHECK(lines_of(kvspan::to_csv(report)).size() == 1);
  CHECK(kvspan::to_json(report)["runs"].empty());
  CHECK_FALSE(kvspan::format_table(report, {}).empty());
}

TEST_CASE("the SVG is well-formed and holds every run", "[report][svg]") {
  const int runs = GENERATE(1, 2, 9, 40);
  const std::int64_t prompt = GENERATE(1, 48, 64);
  const bool fidelity = GENERATE(false, true);
  RunReport report = fake_sweep({.prompt = prompt, .fidelity = fidelity}, runs);
  report.runs[0].label = "a<b>&\"c\"";
  report.trace.model = "x & y";
  const std::string svg = kvspan::memory_svg(report);
  CHECK(xml_defect(svg) == "");
  for (const char* bad : {"nan", "inf\"", "-0.0\"", "-0<", "x & y"})
    CHECK(svg.find(bad) == std::string::npos);
  for (std::size_t r = 1; r < report.runs.size(); ++r)
    CHECK(svg.find(kvspan::label_of(report.runs[r])) != std::string::npos);
  CHECK(svg.find("a&lt;b&gt;&amp;&quot;c&quot;") != std::string::npos);
  CHECK((svg.find("no fidelity was measured") == std::string::npos) == fidelity);
}

TEST_CASE("the SVG draws what a score trace leaves open", "[report][svg]") {
  RunReport report = small_report();
  const std::string exact = kvspan::memory_svg(report);
  CHECK(exact.find("what a score trace leaves open") == std::string::npos);
  auto& decode = *report.runs[0].fidelity->decode;
  decode.mass_mean = 0.8133;
  decode.mass_upper = kvspan::MassUpper{0.8627, 0.8627, 0.8627};
  const std::string svg = kvspan::memory_svg(report);
  CHECK(xml_defect(svg) == "");
  CHECK(svg.find(">81.33\u201386.27<") != std::string::npos);
  CHECK(svg.find("what a score trace leaves open") != std::string::npos);
  // A line above the dot, and a cap on it.
  const auto lines_in = [](const std::string& text) {
    std::size_t count = 0;
    for (std::size_t at = 0; (at = text.find("<line", at)) != text.npos; ++at) ++count;
    return count;
  };
  decode.mass_upper->mean = decode.mass_mean;
  CHECK(lines_in(svg) == lines_in(kvspan::memory_svg(report)) + 2);
}

TEST_CASE("the trade-off names every run and shades what lies beyond the frontier",
          "[report][svg]") {
  RunReport report = small_report();
  const std::string bare = kvspan::tradeoff_svg(report);
  CHECK(xml_defect(bare) == "");
  for (const char* name : {">full<", ">snapkv<", ">h2o<", ">oracle<"})
    CHECK(bare.find(name) != std::string::npos);
  CHECK(bare.find("<polygon") == std::string::npos);

  // A frontier at 70 % of the footprint's axis: one curve and one area, in both pictures.
  report.frontier = {{0.3, 0.2}, {0.5, 0.9}, {1, 1}};
  for (const std::string& svg : {kvspan::tradeoff_svg(report), kvspan::memory_svg(report)}) {
    CHECK(xml_defect(svg) == "");
    CHECK(svg.find("<polygon") != std::string::npos);
    CHECK(svg.find("<polygon") == svg.rfind("<polygon"));
    CHECK(svg.find("shaded: ") != std::string::npos);
  }
  CHECK(kvspan::tradeoff_svg(report).find("any eviction could retain") != std::string::npos);
  CHECK(kvspan::memory_svg(report).find("best eviction") != std::string::npos);
}

TEST_CASE("a curve of the SVG has at most two points in a pixel column", "[report][svg]") {
  const std::string svg =
      kvspan::memory_svg(fake_report({.tokens = 20000, .prompt = 18000, .chunk = 64},
                                     {{.spec = "w", .rule = FakeRule::window, .budget = 99}}));
  const std::size_t begin = svg.find("points=\"") + 8;
  std::istringstream points(svg.substr(begin, svg.find('"', begin) - begin));
  std::map<int, int> in_column;
  for (std::string point; points >> point;) ++in_column[static_cast<int>(std::stod(point))];
  CHECK(in_column.size() > 400);
  for (const auto& [column, count] : in_column) CHECK(count <= 2);
}

TEST_CASE("a label goes to the cheapest place that is free", "[report][placement]") {
  using kvspan::Box;
  const Box area{0, 0, 100, 100};
  const std::vector<Box> places{
      {-5, 0, 5, 10}, {0, 0, 10, 10}, {20, 0, 30, 10}, {40, 0, 50, 10}, {60, 0, 70, 10}};
  const std::vector<Box> taken{{5, 5, 15, 15}};
  const auto place = [&](const auto& cost) {
    const auto best = kvspan::cheapest_place(area, places, taken, cost);
    return best ? places[*best].left : -1;
  };
  using Cost = std::optional<double>;
  CHECK(place([](std::size_t) { return Cost(1); }) == 20);  // the first of equals
  CHECK(place([](std::size_t i) { return i == 3 ? Cost(0) : Cost(1); }) == 40);
  CHECK(place([](std::size_t i) { return i < 4 ? Cost() : Cost(9); }) == 60);
  CHECK(place([](std::size_t) { return Cost(); }) == -1);
}
