// SPDX-License-Identifier: Apache-2.0
// Reports: JSON keys, thinning, CSV, table, chart, SVG, lifetimes and timelines, all of made-up
// runs.
#include "sim/report/report.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "sim/report/result_files.h"
#include "sim/report/svg.h"
#include "sim/report/terminal_chart.h"
#include "sim/trace/safetensors.h"
#include "tests/support/fake_report.h"
#include "tests/support/temporary_file.h"

using kvspan::RunReport;
using kvspan::RunResult;
using kvspan::TensorSet;
using kvspan::test::fake_report;
using kvspan::test::fake_sweep;
using kvspan::test::FakeRun;
using kvspan::test::TemporaryFile;
using nlohmann::json;
using Rule = kvspan::test::FakeRun::Rule;

namespace {

RunReport small_report() {
  return fake_report(
      {.tokens = 64, .prompt = 48},
      {{.spec = "snapkv(budget=16,window=4)",
        .rule = Rule::prompt_end,
        .budget = 16,
        .label = "snapkv(budget=16)"},
       {.spec = "full"},
       {.spec = "oracle(budget=16)", .rule = Rule::rolling, .budget = 16, .bound = true},
       {.spec = "h2o(budget=16)",
        .rule = Rule::rolling,
        .budget = 16,
        .overhead_per_entry = 4,
        .notes = {"stand-in: something"}}});
}

std::set<std::string> keys(const json& object) {
  std::set<std::string> result;
  for (const auto& [key, value] : object.items()) result.insert(key);
  return result;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// RFC 4180, independent of the writer.
std::vector<std::vector<std::string>> parse_csv(const std::string& text) {
  std::vector<std::vector<std::string>> table(1, std::vector<std::string>(1));
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    std::string& field = table.back().back();
    if (quoted && c == '"' && i + 1 < text.size() && text[i + 1] == '"') {
      field += text[++i];
    } else if (c == '"') {
      quoted = !quoted;
    } else if (!quoted && c == ',') {
      table.back().emplace_back();
    } else if (!quoted && c == '\n') {
      if (i + 1 < text.size()) table.emplace_back(1);
    } else {
      field += c;
    }
  }
  REQUIRE_FALSE(quoted);
  return table;
}

const json* find(const json& root, const std::string& dotted) {
  std::string pointer = "/" + dotted;
  std::replace(pointer.begin(), pointer.end(), '.', '/');
  const json::json_pointer path(pointer);
  return root.contains(path) ? &root.at(path) : nullptr;
}

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

template <class T>
std::vector<T> values(const TensorSet& tensors, const std::string& name) {
  const kvspan::TensorView* view = tensors.find(name);
  INFO(name);
  REQUIRE(view != nullptr);
  REQUIRE(kvspan::dtype_bytes(view->dtype) == static_cast<std::int64_t>(sizeof(T)));
  std::vector<T> result(static_cast<std::size_t>(view->elements()));
  if (!result.empty()) std::memcpy(result.data(), view->bytes.data(), view->bytes.size());
  return result;
}

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

// ---- JSON ---------------------------------------------------------------------------------------

TEST_CASE("the result JSON has the documented keys and no others", "[report][json]") {
  RunReport report = small_report();
  report.lifetimes_path = "out/life.safetensors";
  const json root = kvspan::to_json(report);
  CHECK(keys(root) == std::set<std::string>{"schema_version", "kvspan", "command", "files", "trace",
                                            "chunk", "accounting", "runs"});
  CHECK(root["schema_version"] == 1);
  CHECK(keys(root["kvspan"]) == std::set<std::string>{"version", "git", "build"});
  CHECK(root["command"] == json({"kvspan", "run", "traces/fake.safetensors"}));
  CHECK(root["files"] == json({{"lifetimes", "out/life.safetensors"}, {"timeline", nullptr}}));
  CHECK(root["trace"] == json({{"path", "traces/fake.safetensors"},
                               {"sha256", std::string(64, 'a')},
                               {"layers", 2},
                               {"model_layers", 2},
                               {"query_heads", 4},
                               {"kv_heads", 2},
                               {"head_dim", 64},
                               {"tokens", 64},
                               {"prompt_tokens", 48},
                               {"model", "Fake-135M"}}));
  CHECK(root["chunk"] == 0);
  CHECK(root["accounting"] == json({{"kv_bytes", 2}, {"prefill", "whole"}, {"layout", "ideal"}}));

  REQUIRE(root["runs"].size() == 4);
  const json& run = root["runs"][3];
  const RunResult& result = report.runs[3];
  CHECK(keys(run) == std::set<std::string>{"policy",     "label",           "class",
                                           "bound",      "footprint",       "peak_kv",
                                           "entry_rows", "full_entry_rows", "host_footprint",
                                           "peak_bytes", "byte_rows",       "host_peak_bytes",
                                           "fidelity",   "spans",           "undecided",
                                           "traffic",    "timeline",        "per_layer",
                                           "per_head",   "layouts",         "notes"});
  CHECK(run["policy"] == "h2o(budget=16)");
  CHECK(run["bound"] == false);
  CHECK(run["footprint"] == result.metrics.footprint);
  CHECK(run["entry_rows"] == result.metrics.entry_rows);
  const json& peak = run["peak_bytes"];
  CHECK(keys(peak) == std::set<std::string>{"total", "kv", "overhead", "prefill", "decode", "row"});
  CHECK(peak["total"] == peak["kv"].get<int>() + peak["overhead"].get<int>());
  CHECK(peak["row"] == 47);
  CHECK(keys(run["fidelity"]) ==
        std::set<std::string>{"all", "prefill", "decode", "rows_measured"});
  for (const char* phase : {"all", "prefill", "decode"}) {
    CHECK(keys(run["fidelity"][phase]["retained_mass"]) ==
          std::set<std::string>{"mean", "p5", "min"});
    CHECK(keys(run["fidelity"][phase]["output_error"]) ==
          std::set<std::string>{"mean", "p95", "max"});
  }
  CHECK(keys(run["spans"][0]) == std::set<std::string>{"name", "resident_share", "mass_lost"});
  CHECK(run["undecided"].is_null());
  CHECK(keys(run["traffic"]) == std::set<std::string>{"entries_read", "bytes_read"});
  CHECK(keys(run["timeline"]) == std::set<std::string>{"row", "resident_entries", "resident_bytes",
                                                       "overhead_bytes", "active_entries",
                                                       "retained_mass"});
  CHECK(run["per_layer"].size() == 2);
  CHECK(keys(run["per_layer"][0]) ==
        std::set<std::string>{"layer", "footprint", "peak_kv", "peak_bytes", "retained_mass"});
  CHECK(keys(run["per_head"]) == std::set<std::string>{"footprint", "peak_kv", "retained_mass"});
  CHECK(run["per_head"]["footprint"][1].size() == 2);
  CHECK(run["per_head"]["retained_mass"][1].size() == 4);
  CHECK(keys(run["layouts"]) == std::set<std::string>{"padded", "query_head"});
  CHECK(keys(run["layouts"]["padded"]) == keys(peak));
  CHECK(run["notes"] == json({"stand-in: something"}));
  CHECK(root["runs"][2]["notes"] == json({"bound: reads the future"}));
}

TEST_CASE("what was not measured is null in the JSON", "[report][json]") {
  SECTION("no fidelity") {
    const json root = kvspan::to_json(fake_report({.fidelity = false}, {{.spec = "full"}}));
    const json& run = root["runs"][0];
    CHECK(run["fidelity"].is_null());
    CHECK(run["spans"] == json::array());
    CHECK(run["per_layer"][0]["retained_mass"].is_null());
    CHECK(run["per_head"]["retained_mass"].is_null());
    CHECK(run["timeline"]["retained_mass"][0].is_null());
  }
  SECTION("no decode rows, no values, some rows") {
    RunReport report = fake_report({.tokens = 32, .prompt = 32}, {{.spec = "full"}});
    report.runs[0].fidelity->all->has_error = false;
    auto& mass = report.runs[0].fidelity->row_mass;
    std::fill(mass.begin() + 1, mass.end(), std::numeric_limits<float>::quiet_NaN());
    const json root = kvspan::to_json(report);
    const json& run = root["runs"][0];
    CHECK(run["fidelity"]["decode"].is_null());
    CHECK(run["fidelity"]["all"]["output_error"].is_null());
    CHECK(run["timeline"]["retained_mass"][0] == 1.0);
    CHECK(run["timeline"]["retained_mass"][1].is_null());
    CHECK(root.dump().find("nan") == std::string::npos);
  }
}

TEST_CASE("the JSON names a subset of layers by the model's numbers", "[report][json]") {
  RunReport report = small_report();
  report.trace.model_layers = 30;
  report.trace.layer_ids = {3, 17};
  const json root = kvspan::to_json(report);
  CHECK(root["runs"][0]["per_layer"][1]["layer"] == 17);
  CHECK(root["runs"][0]["notes"] == json({"bytes of 2 of 30 layers"}));
}

TEST_CASE("a histogram's percentiles, a match and undecided decisions are reported",
          "[report][json]") {
  RunReport report = small_report();
  report.runs[0].fidelity->decode->exact_percentiles = false;
  report.runs[0].undecided = 7;
  report.runs[0].match = RunResult::Match{"footprint", 0.25, 0.31, false, 0.31, 1.0};
  report.runs[1].match = RunResult::Match{"footprint", 0.25, 0.24, true, 0, 0};
  const json root = kvspan::to_json(report);
  CHECK(root["runs"][0]["notes"] == json({"percentiles from a histogram of 65536 bins"}));
  CHECK(root["runs"][0]["undecided"] == 7);
  CHECK(root["runs"][0]["match"] == json({{"what", "footprint"},
                                          {"wanted", 0.25},
                                          {"reached", 0.31},
                                          {"reachable", false},
                                          {"lowest", 0.31},
                                          {"highest", 1.0}}));
  CHECK(root["runs"][1]["match"]["lowest"].is_null());
  const std::string table = kvspan::format_table(report, {.width = 160});
  CHECK(table.find("footprint 25.00 % wanted") != std::string::npos);
  CHECK(table.find("cannot reach footprint 25.00 %: its range is 31.00 % to 100.00 %") !=
        std::string::npos);
  CHECK(table.find("7 decisions rest on") != std::string::npos);
}

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

// ---- Timeline -----------------------------------------------------------------------------------

TEST_CASE("a short timeline holds every row in which something changes", "[report][timeline]") {
  RunReport report = fake_report({.tokens = 40, .prompt = 20},
                                 {{.spec = "rolling", .rule = Rule::rolling, .budget = 8}});
  RunResult& run = report.runs[0];
  run.fidelity.reset();
  const json line = kvspan::to_json(report)["runs"][0]["timeline"];
  const auto& entries = run.metrics.timeline.resident_entries;
  std::vector<std::size_t> expected;
  for (std::size_t row = 0; row < entries.size(); ++row) {
    if (row == 0 || row + 1 == entries.size() || entries[row] != entries[row - 1])
      expected.push_back(row);
  }
  CHECK(line["row"].get<std::vector<std::size_t>>() == expected);
  CHECK(expected.size() < entries.size());
  for (std::size_t i = 0; i < expected.size(); ++i)
    CHECK(line["resident_entries"][i] == entries[expected[i]]);
}

TEST_CASE("a long timeline is thinned to 4096 points that keep ends, peak and maxima",
          "[report][timeline]") {
  RunReport report =
      fake_report({.tokens = 30000, .prompt = 29000, .chunk = 70, .layers = 1, .heads = 1},
                  {{.spec = "w", .rule = Rule::window, .budget = 90}});
  RunResult& run = report.runs[0];
  // A peak inside a pass, in a row that is no maximum of anything.
  run.metrics.peak_bytes.row = 12345;
  run.fidelity->row_mass[20011] = 0.001F;
  run.metrics.timeline.active_entries[15003] = 1000000;
  const json line = kvspan::to_json(report)["runs"][0]["timeline"];
  const auto rows = line["row"].get<std::vector<std::int64_t>>();
  CHECK(rows.size() <= 4096);
  CHECK(rows.size() > 2000);
  CHECK(std::is_sorted(rows.begin(), rows.end()));
  CHECK(std::adjacent_find(rows.begin(), rows.end()) == rows.end());
  CHECK(rows.front() == 0);
  CHECK(rows.back() == 29999);
  for (const std::int64_t row : {12345, 20011, 15003})
    CHECK(std::binary_search(rows.begin(), rows.end(), row));
  const auto& all = run.metrics.timeline.resident_entries;
  const auto kept = line["resident_entries"].get<std::vector<std::int64_t>>();
  CHECK(*std::max_element(kept.begin(), kept.end()) == *std::max_element(all.begin(), all.end()));
  // Every piece of the timeline keeps its own maximum: no stretch of 100 rows loses a chunk's top.
  for (std::size_t begin = 1000; begin + 100 <= all.size(); begin += 100) {
    const auto from = std::lower_bound(rows.begin(), rows.end(), static_cast<std::int64_t>(begin));
    const auto to =
        std::lower_bound(rows.begin(), rows.end(), static_cast<std::int64_t>(begin + 100));
    std::int64_t most = 0;
    for (auto row = from; row != to; ++row)
      most = std::max(most, all[static_cast<std::size_t>(*row)]);
    CHECK(most == *std::max_element(all.begin() + static_cast<std::ptrdiff_t>(begin),
                                    all.begin() + static_cast<std::ptrdiff_t>(begin + 100)));
  }
}

// ---- CSV ----------------------------------------------------------------------------------------

TEST_CASE("CSV parses back to the values of the JSON", "[report][csv]") {
  RunReport report = small_report();
  report.runs[0].spec = R"(chunked(scores(FILE="a, ""b"".st"),count=metric))";
  report.runs[0].notes = {"one, two", "a \"quoted\" note"};
  report.runs[1].fidelity.reset();
  report.runs[2].match = RunResult::Match{"mass", 0.9, 0.91, true, 0, 0};
  const json root = kvspan::to_json(report);
  const auto table = parse_csv(kvspan::to_csv(report));
  REQUIRE(table.size() == 5);
  const auto& columns = table[0];
  CHECK(columns[0] == "policy");
  for (const char* column :
       {"peak_bytes.total", "fidelity.decode.retained_mass.mean", "traffic.bytes_read",
        "spans.1.name", "layouts.padded.total", "notes.1", "match.reached", "trace.path", "chunk",
        "accounting.layout", "undecided"}) {
    CHECK(std::count(columns.begin(), columns.end(), column) == 1);
  }
  CHECK(std::set<std::string>(columns.begin(), columns.end()).size() == columns.size());
  for (std::size_t r = 0; r < 4; ++r) {
    REQUIRE(table[r + 1].size() == columns.size());
    for (std::size_t c = 0; c < columns.size(); ++c) {
      INFO(columns[c]);
      const json* value = find(root["runs"][r], columns[c]);
      if (value == nullptr) value = find(root, columns[c]);
      const std::string& field = table[r + 1][c];
      if (value == nullptr || value->is_null()) {
        CHECK(field.empty());
      } else if (value->is_string()) {
        CHECK(field == value->get<std::string>());
      } else {
        CHECK(json::parse(field) == *value);
      }
    }
  }
}

TEST_CASE("the columns of CSV do not depend on what was measured", "[report][csv]") {
  const auto header = [](const RunReport& report) { return parse_csv(kvspan::to_csv(report))[0]; };
  const auto bare =
      header(fake_report({.tokens = 8, .prompt = 8, .fidelity = false}, {{.spec = "full"}}));
  for (const char* column : {"fidelity.decode.output_error.p95", "fidelity.rows_measured"}) {
    CHECK(std::count(bare.begin(), bare.end(), column) == 1);
  }
  const auto full = header(small_report());
  std::vector<std::string> fixed;
  for (const std::string& column : full) {
    if (!column.starts_with("spans.") && !column.starts_with("notes.")) fixed.push_back(column);
  }
  CHECK(fixed == bare);
}

// ---- Table --------------------------------------------------------------------------------------

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
  CHECK(table.find("tokens  64 = 48 prompt + 16 generated; chunk 0 (one prefill pass)\n") !=
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

TEST_CASE("a table without fidelity or decode rows has no columns for them", "[report][table]") {
  const std::string bare =
      kvspan::format_table(fake_report({.fidelity = false}, {{.spec = "full"}}), {});
  CHECK(bare.find("retained") == std::string::npos);
  CHECK(bare.find("needle") == std::string::npos);
  const std::string prefill =
      kvspan::format_table(fake_report({.tokens = 32, .prompt = 32}, {{.spec = "full"}}), {});
  CHECK(prefill.find("what all rows still reach") != std::string::npos);
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

// ---- Text ---------------------------------------------------------------------------------------

TEST_CASE("text is measured and shortened by terminal columns", "[report][text]") {
  CHECK(kvspan::display_width("a\u00e9\u4e2de\u0301") == 5);
  CHECK(kvspan::shorten_middle("snapkv(budget=512)", 18) == "snapkv(budget=512)");
  CHECK(kvspan::shorten_middle("snapkv(budget=512)", 11) == "snap...512)");
  CHECK(kvspan::shorten_middle("snapkv", 3) == "...");
  CHECK(kvspan::shorten_middle("snapkv", 0) == "");
  for (int width = 0; width < 12; ++width) {
    CHECK(kvspan::display_width(
              kvspan::shorten_middle("\u4e2d\u6587\u4e2d\u6587\u4e2d\u6587", width)) <= width);
  }
  CHECK(kvspan::valid_utf8("\xC0\x80\xED\xA0\x80\xF5z\xE4\xB8") ==
        "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDz\uFFFD\uFFFD");
  CHECK(kvspan::one_line("a\tb\x7F\u0085") == "a b  ");
}

TEST_CASE("bytes are printed with three digits in binary units", "[report][text]") {
  CHECK(kvspan::human_bytes(0) == "0 B");
  CHECK(kvspan::human_bytes(1023) == "1023 B");
  CHECK(kvspan::human_bytes(1024) == "1.00 KiB");
  CHECK(kvspan::human_bytes(1024 * 1024 - 1) == "1.00 MiB");
  CHECK(kvspan::human_bytes(46137344) == "44.0 MiB");
  CHECK(kvspan::human_bytes(std::int64_t{80} << 30) == "80.0 GiB");
}

// ---- Chart --------------------------------------------------------------------------------------

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
  const RunReport report = fake_report({}, {{.spec = "quest(budget=8)"},
                                            {.spec = "w(1)", .rule = Rule::prompt_end, .budget = 8},
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

// ---- SVG ----------------------------------------------------------------------------------------

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
    CHECK(svg.find(report.runs[r].label) != std::string::npos);
  CHECK(svg.find("a&lt;b&gt;&amp;&quot;c&quot;") != std::string::npos);
  CHECK((svg.find("no fidelity was measured") == std::string::npos) == fidelity);
}

TEST_CASE("a curve of the SVG has at most two points in a pixel column", "[report][svg]") {
  const std::string svg =
      kvspan::memory_svg(fake_report({.tokens = 20000, .prompt = 18000, .chunk = 64},
                                     {{.spec = "w", .rule = Rule::window, .budget = 99}}));
  const std::size_t begin = svg.find("points=\"") + 8;
  std::istringstream points(svg.substr(begin, svg.find('"', begin) - begin));
  std::map<int, int> in_column;
  for (std::string point; points >> point;) ++in_column[static_cast<int>(std::stod(point))];
  CHECK(in_column.size() > 400);
  for (const auto& [column, count] : in_column) CHECK(count <= 2);
}

// ---- Files --------------------------------------------------------------------------------------

TEST_CASE("lifetimes come back as they were written", "[report][lifetimes]") {
  RunReport report = small_report();
  report.trace.sliding_window = {0, 20};
  kvspan::Ledger& ledger = report.runs[3].ledger;
  ledger.score.assign(ledger.death.size(), std::numeric_limits<float>::quiet_NaN());
  ledger.score[5] = 0.25F;
  ledger.rank.assign(ledger.death.size(), -1);
  ledger.selected.assign(64, 9);
  ledger.state.assign(64, 1000);
  ledger.read_rows = {7, 40, 60};
  ledger.reads.assign(std::size_t{2} * 2 * 3 * 8, 0);
  ledger.reads[8] = 0x81;
  ledger.representations.push_back({"int2", 40, 0});
  ledger.changes = {{{50, 0, 7, 1}, {51, 1, 8, 1}}, {{52, 1, 9, 1}}};
  const TemporaryFile file;
  kvspan::write_lifetimes(report, file.path);
  const TensorSet tensors = TensorSet::open(file.path);
  const auto& metadata = tensors.metadata();
  CHECK(metadata.at("format") == "kvspan.lifetimes");
  CHECK(metadata.at("version") == "1");
  CHECK(metadata.at("runs.0.policy") == "snapkv(budget=16,window=4)");
  CHECK(metadata.at("trace.path") == report.trace_path);
  CHECK(metadata.at("trace.sha256") == report.trace_sha256);
  CHECK(metadata.at("evict_at") == "48");
  CHECK(metadata.at("query_heads") == "4");
  CHECK(metadata.at("sliding_window") == "[0,20]");
  CHECK(json::parse(metadata.at("runs.3.representations"))[1]["name"] == "int2");
  for (std::size_t r = 0; r < 4; ++r) {
    const std::string name = "runs." + std::to_string(r) + ".death";
    CHECK(values<std::uint32_t>(tensors, name) == report.runs[r].ledger.death);
    CHECK(tensors.find(name)->shape == std::vector<std::int64_t>{2, 2, 64});
    CHECK(tensors.find(name)->dtype == kvspan::Dtype::u32);
  }
  CHECK(values<float>(tensors, "runs.3.score")[5] == 0.25F);
  CHECK(values<std::int32_t>(tensors, "runs.3.rank") == ledger.rank);
  CHECK(values<std::int64_t>(tensors, "runs.3.selected") == ledger.selected);
  CHECK(values<std::int64_t>(tensors, "runs.3.state") == ledger.state);
  CHECK(values<std::int64_t>(tensors, "runs.3.passes") == ledger.plan.ends);
  CHECK(values<std::int64_t>(tensors, "runs.3.read_rows") == ledger.read_rows);
  CHECK(values<std::uint8_t>(tensors, "runs.3.reads") == ledger.reads);
  CHECK(tensors.find("runs.3.reads")->shape == std::vector<std::int64_t>{2, 2, 3, 8});
  CHECK(values<std::int64_t>(tensors, "runs.3.changes") ==
        std::vector<std::int64_t>{0, 50, 0, 7, 1, 0, 51, 1, 8, 1, 1, 52, 1, 9, 1});
  for (const char* absent : {"runs.0.score", "runs.0.rank", "runs.0.changes", "runs.0.selected",
                             "runs.0.state", "runs.0.read_rows", "runs.0.reads"}) {
    CHECK(tensors.find(absent) == nullptr);
  }
}

TEST_CASE("the points of a head give its entries back at every row", "[report][timeline]") {
  const Rule rule = GENERATE(Rule::keep_all, Rule::window, Rule::prompt_end, Rule::rolling);
  const std::int64_t tokens = GENERATE(1, 2, 200);
  const RunReport report = fake_report(
      {.tokens = tokens, .prompt = std::max<std::int64_t>(1, tokens * 3 / 4), .chunk = 16},
      {{.spec = "x", .rule = rule, .budget = 20}});
  const auto deaths = report.runs[0].ledger.deaths(1, 1);
  const kvspan::ChangePoints points = kvspan::change_points(deaths);
  REQUIRE(points.rows.size() == points.entries.size());
  CHECK(points.rows.front() == 0);
  CHECK(points.rows.back() == tokens - 1);
  if (rule == Rule::keep_all)
    CHECK(points.rows.size() == static_cast<std::size_t>(std::min<std::int64_t>(tokens, 2)));
  std::size_t at = 0;
  for (std::int64_t row = 0; row < tokens; ++row) {
    std::int64_t resident = 0;
    for (std::int64_t token = 0; token <= row; ++token)
      resident += deaths[static_cast<std::size_t>(token)] > row ? 1 : 0;
    while (at + 1 < points.rows.size() && points.rows[at + 1] <= row) ++at;
    std::int64_t drawn = points.entries[at];
    if (at + 1 < points.rows.size()) {
      const std::int64_t rise = points.entries[at + 1] - points.entries[at];
      drawn += rise * (row - points.rows[at]) / (points.rows[at + 1] - points.rows[at]);
    }
    CHECK(drawn == resident);
  }
}

TEST_CASE("the timeline file holds totals, their levels and the points of every head",
          "[report][timeline]") {
  RunReport report =
      fake_report({.tokens = 5000, .prompt = 4900, .chunk = 512},
                  {{.spec = "full"}, {.spec = "w", .rule = Rule::window, .budget = 300}});
  auto& mass = report.runs[1].fidelity->row_mass;
  std::fill(mass.begin(), mass.begin() + 100, std::numeric_limits<float>::quiet_NaN());
  const TemporaryFile file;
  kvspan::write_timeline(report, file.path);
  const TensorSet tensors = TensorSet::open(file.path);
  CHECK(tensors.metadata().at("format") == "kvspan.timeline");
  const auto& line = report.runs[1].metrics.timeline;
  CHECK(values<std::int64_t>(tensors, "runs.1.entries") == line.resident_entries);
  CHECK(values<std::int64_t>(tensors, "runs.1.bytes") == line.resident_bytes);
  CHECK(values<std::int64_t>(tensors, "runs.1.active") == line.active_entries);
  CHECK(tensors.find("runs.1.mass")->dtype == kvspan::Dtype::f32);

  // 5000 points, then 79, then 2: at most 64, so that there is no third level.
  const auto low = values<std::int64_t>(tensors, "runs.1.entries.min.1");
  const auto high = values<std::int64_t>(tensors, "runs.1.entries.max.1");
  REQUIRE(low.size() == 79);
  for (std::size_t i = 0; i < low.size(); ++i) {
    const auto begin = line.resident_entries.begin() + static_cast<std::ptrdiff_t>(64 * i);
    const auto end = i + 1 == low.size() ? line.resident_entries.end() : begin + 64;
    CHECK(low[i] == *std::min_element(begin, end));
    CHECK(high[i] == *std::max_element(begin, end));
  }
  CHECK(values<std::int64_t>(tensors, "runs.1.entries.max.2").size() == 2);
  CHECK(tensors.find("runs.1.entries.max.3") == nullptr);
  const auto least = values<float>(tensors, "runs.1.mass.min.1");
  CHECK(std::isnan(least[0]));  // 64 rows without a value
  CHECK(least[1] == *std::min_element(mass.begin() + 100, mass.begin() + 128));

  const auto offsets = values<std::int64_t>(tensors, "runs.1.change_offsets");
  const auto rows = values<std::int64_t>(tensors, "runs.1.change_rows");
  const auto entries = values<std::int64_t>(tensors, "runs.1.change_entries");
  REQUIRE(offsets.size() == 5);
  CHECK(offsets.back() == static_cast<std::int64_t>(rows.size()));
  for (int head = 0; head < 4; ++head) {
    const kvspan::ChangePoints points =
        kvspan::change_points(report.runs[1].ledger.deaths(head / 2, head % 2));
    const auto begin = offsets[static_cast<std::size_t>(head)];
    const auto end = offsets[static_cast<std::size_t>(head) + 1];
    CHECK(std::vector<std::int64_t>(rows.begin() + begin, rows.begin() + end) == points.rows);
    CHECK(std::vector<std::int64_t>(entries.begin() + begin, entries.begin() + end) ==
          points.entries);
  }
  CHECK(values<std::int64_t>(tensors, "runs.0.change_rows").size() == 8);
}

TEST_CASE("a timeline without fidelity has no mass, a short one no levels", "[report][timeline]") {
  const TemporaryFile file;
  kvspan::write_timeline(fake_report({.tokens = 64, .fidelity = false}, {{.spec = "full"}}),
                         file.path);
  const TensorSet tensors = TensorSet::open(file.path);
  CHECK(tensors.find("runs.0.entries") != nullptr);
  CHECK(tensors.find("runs.0.mass") == nullptr);
  CHECK(tensors.find("runs.0.entries.min.1") == nullptr);
}
