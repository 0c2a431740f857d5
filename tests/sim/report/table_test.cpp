// SPDX-License-Identifier: Apache-2.0
// The table on stdout.
#include "sim/report/table.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "sim/base/text.h"
#include "sim/report/listing.h"
#include "tests/support/fake_report.h"

using kvspan::RunReport;
using kvspan::test::fake_report;
using kvspan::test::fake_sweep;
using kvspan::test::lines_of;
using kvspan::test::small_report;

namespace {

// Rules, header and rows of a table: the lines between title and footnotes.
std::vector<std::string> grid_of(const std::string& table) {
  std::vector<std::string> lines = lines_of(table);
  const auto blank = std::find(lines.begin(), lines.end(), "");
  REQUIRE(blank != lines.end());
  const auto is_rule = [](const std::string& line) {
    return line.starts_with("---") || line.starts_with("\u2500\u2500\u2500");
  };
  const auto last = std::find_if(lines.rbegin(), lines.rend(), is_rule);
  REQUIRE(last != lines.rend());
  return {blank + 1, last.base()};
}

}  // namespace

TEST_CASE("all lines of a table's grid have the same width", "[report][table]") {
  const bool utf8 = GENERATE(false, true);
  const int width = GENERATE(60, 80, 100, 160);
  const int runs = GENERATE(1, 4, 40);
  RunReport report = runs == 4 ? small_report() : fake_sweep({}, runs);
  if (runs == 4) {
    report.runs[0].label =
        "chunked(snapkv(budget=10%,window=32,pool=max,kernel=7,order=group_then_pool),variant="
        "patched)";
    report.runs[2].label = "\u00e9\u4e2d\u6587";
    report.runs[1].fidelity.reset();
  }
  const std::string table = kvspan::format_table(report, {.width = width, .utf8 = utf8});
  INFO(table);
  const std::vector<std::string> grid = grid_of(table);
  const auto bounds = static_cast<std::size_t>(runs == 4 ? 1 : 0);
  REQUIRE(grid.size() == 3 + 1 + static_cast<std::size_t>(runs) + bounds + 1);
  for (const std::string& line : grid) {
    CHECK(kvspan::display_width(line) == kvspan::display_width(grid[0]));
    CHECK(kvspan::display_width(line) <= width);
    if (!utf8) CHECK(line.find("\u2500") == std::string::npos);
  }
  for (const std::string& line : lines_of(table)) CHECK(kvspan::display_width(line) <= width);
  CHECK(table.find('\x1b') == std::string::npos);
}

TEST_CASE("a table lists full first, bounds last and apart, and numbers its notes",
          "[report][table]") {
  const std::string table = kvspan::format_table(small_report(), {.width = 140});
  const std::vector<std::string> grid = grid_of(table);
  CHECK(grid[4].starts_with("full "));
  CHECK(grid[5].starts_with("snapkv(budget=16) "));
  CHECK(grid[6].starts_with("h2o(budget=16) [1] "));
  CHECK(grid[7].starts_with("-- bounds"));
  CHECK(grid[8].starts_with("oracle(budget=16) [2] "));
  CHECK(table.find("\n[1] stand-in: something\n[2] bound: reads the future\n") !=
        std::string::npos);
  CHECK(table.find("tokens  64 = 48 prompt + 16 decoded; chunk 0 (one prefill pass)\n") !=
        std::string::npos);
  CHECK(grid[4].find(" 100.0 ") != std::string::npos);
  CHECK(grid[4].find("64.0 KiB") !=
        std::string::npos);  // 2 layers x 2 heads x 64 tokens x 256 bytes
  // 'needle' comes before 'question', which the trace names first.
  CHECK(grid[2].find("needle %") < grid[2].find("question %"));
}

TEST_CASE("a table says of which layers its bytes are", "[report][table]") {
  RunReport report = small_report();
  report.trace.model_layers = 30;
  const std::string table = kvspan::format_table(report, {.width = 140});
  CHECK(table.find("; bytes of 2 of 30 layers\n") != std::string::npos);
  CHECK(table.find("] bytes of") == std::string::npos);
}

TEST_CASE("a table has regrets where they were asked for", "[report][table]") {
  RunReport report = small_report();
  CHECK(kvspan::format_table(report, {.width = 140}).find("regret") == std::string::npos);
  report.runs[0].regret = kvspan::RunResult::Regret{0.9, 0.0375, 0.421};
  const std::string table = kvspan::format_table(report, {.width = 140});
  CHECK(table.find("regret: what the best eviction") != std::string::npos);
  const std::vector<std::string> grid = grid_of(table);
  CHECK(grid[5].find(" 3.75 ") != std::string::npos);  // snapkv, the first run of the report
  CHECK(grid[5].find(" 42.1 ") != std::string::npos);
  CHECK(grid[4].find(" - ") != std::string::npos);  // full has none
}

TEST_CASE("a table without fidelity or decode rows has no columns for them", "[report][table]") {
  const std::string bare =
      kvspan::format_table(fake_report({.fidelity = false}, {{.spec = "full"}}), {});
  CHECK(bare.find("retained") == std::string::npos);
  CHECK(bare.find("needle") == std::string::npos);
  const std::string prefill =
      kvspan::format_table(fake_report({.tokens = 32, .prompt = 32}, {{.spec = "full"}}), {});
  CHECK(prefill.find("what all rows still reach") != std::string::npos);
}

TEST_CASE("a table of a score trace prints intervals and does not rank what overlaps",
          "[report][table]") {
  // The lower bounds stood there as values, and tova fell below streaming_llm.
  RunReport report = fake_report({}, {{.spec = "full"},
                                      {.spec = "streaming_llm(budget=16)"},
                                      {.spec = "tova(budget=16)"},
                                      {.spec = "snapkv(budget=16)"}});
  const auto set = [&](std::size_t r, double low, double high) {
    for (auto* phase : {&report.runs[r].fidelity->all, &report.runs[r].fidelity->decode}) {
      (*phase)->mass_mean = low;
      (*phase)->mass_upper = kvspan::MassUpper{high, high, high};
    }
  };
  set(0, 1, 1);
  set(1, 0.8155, 0.8483);
  set(2, 0.8133, 0.8627);
  set(3, 0.8700, 0.87004);
  const std::string table = kvspan::format_table(report, {.width = 140});
  const std::vector<std::string> grid = grid_of(table);
  CHECK(grid[1].find("attention  at most,") != std::string::npos);
  CHECK(grid[4].find(">= 1") == std::string::npos);  // nothing is open
  CHECK(grid[5].find(">= 81.55     84.83") != std::string::npos);
  CHECK(grid[6].find(">= 81.33     86.27") != std::string::npos);
  CHECK(grid[7].find(">= 87.00") == std::string::npos);  // the same as printed
  CHECK(table.find("not ranked, because their intervals overlap: streaming_llm(budget=16) and "
                   "tova(budget=16)\n") != std::string::npos);
  CHECK(table.find(std::string(kvspan::kIntervalNote)) == std::string::npos);  // the legend says it
}

TEST_CASE("columns without room are named, and labels that look the same are given in full",
          "[report][table]") {
  RunReport report = small_report();
  report.runs[0].label = "snapkv(budget=16,window=32,pool=max,kernel=7,group=mean)";
  report.runs[3].label = "snapkv(budget=16,window=64,pool=max,kernel=7,group=mean)";
  report.runs[3].notes.clear();
  const std::string table = kvspan::format_table(report, {.width = 62});
  CHECK(table.find("no room for: entries left of question %") != std::string::npos);
  std::string unwrapped = table;
  std::replace(unwrapped.begin(), unwrapped.end(), '\n', ' ');
  CHECK(unwrapped.find(report.runs[0].label + "; " + report.runs[3].label) != std::string::npos);
}

TEST_CASE("the label of a budget of each chunk gives up a word before it is cut",
          "[report][table]") {
  RunReport report = small_report();
  report.runs[0].label = "chunked(snapkv(budget=20%))";
  report.runs[0].spec = "chunked(snapkv(budget=20%,window=32),compete=frozen)";
  const auto has = [&](int width, const char* text) {
    return kvspan::format_table(report, {.width = width}).find(text) != std::string::npos;
  };
  CHECK(has(140, "chunked(snapkv(20% of each chunk)) "));
  CHECK(has(96, "chunked(snapkv(20% of each)) "));
  CHECK_FALSE(has(96, "each chunk"));
}

TEST_CASE("a short label with a note takes no more room than it needs", "[report][table]") {
  // The least width of labels lay above the longest of them, and the table was not printed.
  const RunReport report = fake_report({}, {{.spec = "tova", .notes = {"stand-in: something"}}});
  const std::string table = kvspan::format_table(report, {.width = 62});
  CHECK(table.find("tova") != std::string::npos);
}

TEST_CASE("colour changes no character of a table", "[report][table]") {
  const RunReport report = small_report();
  std::string coloured = kvspan::format_table(report, {.colour = true});
  CHECK(coloured.find('\x1b') != std::string::npos);
  for (std::size_t at = 0; (at = coloured.find('\x1b', at)) != std::string::npos;) {
    coloured.erase(at, coloured.find('m', at) + 1 - at);
  }
  CHECK(coloured == kvspan::format_table(report, {}));
}
