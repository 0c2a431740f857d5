// SPDX-License-Identifier: Apache-2.0
// The result as JSON and as CSV: keys, what is absent, which rows of a timeline are listed.
#include "sim/report/json.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "sim/report/csv.h"
#include "sim/report/listing.h"
#include "sim/report/table.h"
#include "tests/support/fake_report.h"

using kvspan::RunReport;
using kvspan::RunResult;
using kvspan::test::fake_report;
using kvspan::test::FakeRun;
using kvspan::test::small_report;
using nlohmann::json;
using FakeRule = FakeRun::Rule;

namespace {

std::set<std::string> keys(const json& object) {
  std::set<std::string> result;
  for (const auto& [key, value] : object.items()) result.insert(key);
  return result;
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

}  // namespace

TEST_CASE("the result JSON has the documented keys and no others", "[report][json]") {
  RunReport report = small_report();
  report.lifetimes_path = "out/life.safetensors";
  const json root = kvspan::to_json(report);
  CHECK(keys(root) == std::set<std::string>{"schema_version", "kvspan", "command", "files", "trace",
                                            "chunk", "evict_at", "accounting", "runs"});
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
  CHECK(root["evict_at"] == 48);
  CHECK(root["accounting"] == json({{"kv_bytes", 2}, {"prefill", "whole"}, {"layout", "ideal"}}));

  REQUIRE(root["runs"].size() == 4);
  const json& run = root["runs"][3];
  const RunResult& result = report.runs[3];
  CHECK(keys(run) ==
        std::set<std::string>{
            "policy",    "label",           "class",           "bound",          "footprint",
            "peak_kv",   "entry_rows",      "full_entry_rows", "host_footprint", "peak_bytes",
            "byte_rows", "host_peak_bytes", "fidelity",        "spans",          "undecided",
            "traffic",   "timeline",        "per_layer",       "per_head",       "layouts",
            "notes",     "method",          "budget",          "parameters",     "amount"});
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
          std::set<std::string>{"mean", "p5", "min", "upper"});
    CHECK(run["fidelity"][phase]["retained_mass"]["upper"].is_null());
    CHECK(keys(run["fidelity"][phase]["output_error"]) ==
          std::set<std::string>{"mean", "p95", "max"});
  }
  CHECK(keys(run["spans"][0]) ==
        std::set<std::string>{"name", "resident_share", "mass_lost", "mass_lost_upper"});
  CHECK(run["undecided"].is_null());
  CHECK(keys(run["traffic"]) == std::set<std::string>{"entries_read", "bytes_read"});
  CHECK(keys(run["timeline"]) == std::set<std::string>{"row", "resident_entries", "resident_bytes",
                                                       "overhead_bytes", "active_entries",
                                                       "retained_mass", "retained_mass_upper"});
  CHECK(run["per_layer"].size() == 2);
  CHECK(keys(run["per_layer"][0]) == std::set<std::string>{"layer", "footprint", "peak_kv",
                                                           "peak_bytes", "retained_mass",
                                                           "retained_mass_upper"});
  CHECK(keys(run["per_head"]) ==
        std::set<std::string>{"footprint", "peak_kv", "retained_mass", "retained_mass_upper"});
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

TEST_CASE("retained attention of a score trace has its upper bound beside it", "[report][json]") {
  RunReport report = fake_report({}, {{.spec = "tova(budget=16)"}});
  kvspan::Fidelity& fidelity = *report.runs[0].fidelity;
  const json without = kvspan::to_json(report)["runs"][0];
  for (const char* part : {"per_layer/0", "per_head", "timeline"})
    CHECK(without[json::json_pointer("/" + std::string(part))]["retained_mass_upper"].is_null());
  for (auto* phase : {&fidelity.all, &fidelity.prefill, &fidelity.decode})
    (*phase)->mass_upper = kvspan::MassUpper{0.75, 0.5, 0.25};
  fidelity.layer_mass_upper.assign(2, 0.75);
  fidelity.head_mass_upper.assign(2, std::vector<double>(4, 0.75));
  fidelity.row_mass_upper.assign(fidelity.row_mass.size(), 1.0F);
  fidelity.spans.at(0).mass_lost_upper = 0.125;
  const json run = kvspan::to_json(report)["runs"][0];
  CHECK(run["fidelity"]["decode"]["retained_mass"]["upper"] ==
        json({{"mean", 0.75}, {"p5", 0.5}, {"min", 0.25}}));
  CHECK(run["per_layer"][1]["retained_mass_upper"] == 0.75);
  CHECK(run["per_head"]["retained_mass_upper"][1][3] == 0.75);
  CHECK(run["timeline"]["retained_mass_upper"].size() == run["timeline"]["row"].size());
  CHECK(run["timeline"]["retained_mass_upper"][0] == 1.0);
  CHECK(run["spans"][0]["mass_lost_upper"] == 0.125);
  CHECK(run["notes"] == json({kvspan::kIntervalNote}));
  CHECK(kvspan::to_csv(report).find("fidelity.decode.retained_mass.upper.mean") !=
        std::string::npos);
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
  const auto match = [](double reached, bool reachable) {
    RunResult::Match out;
    out.what = "footprint";
    out.wanted = 0.25;
    out.reached = reached;
    out.reachable = out.met = reachable;
    out.lowest = reachable ? 0.1 : reached;
    out.highest = 1;
    return out;
  };
  report.runs[0].match = match(0.31, false);
  report.runs[1].match = match(0.245, true);
  report.runs[1].match->next = 0.26;
  report.runs[2].match = match(0.2, true);
  report.runs[2].match->met = false;
  report.runs[2].match->next = 0.3;
  const json root = kvspan::to_json(report);
  CHECK(root["runs"][0]["notes"] == json({"percentiles from a histogram of 65536 bins"}));
  CHECK(root["runs"][0]["undecided"] == 7);
  CHECK(root["runs"][0]["match"] == json({{"what", "footprint"},
                                          {"wanted", 0.25},
                                          {"reached", 0.31},
                                          {"reachable", false},
                                          {"met", false},
                                          {"lowest", 0.31},
                                          {"highest", 1.0},
                                          {"next", nullptr},
                                          {"upper", nullptr},
                                          {"least_footprint", nullptr}}));
  CHECK(root["runs"][1]["match"]["lowest"] == 0.1);
  CHECK(root["runs"][1]["match"]["next"] == 0.26);
  const std::string table = kvspan::format_table(report, {.width = 160});
  CHECK(table.find("footprint 25.00 % wanted") != std::string::npos);
  CHECK(table.find("cannot reach footprint 25.00 %: its range is 31.00 % to 100.00 %") !=
        std::string::npos);
  CHECK(table.find("misses footprint 25.00 %: this setting gives 20.00 %, the next one 30.00 %") !=
        std::string::npos);
  CHECK(table.find("24.50 %, the next") == std::string::npos);  // near enough
  CHECK(table.find("7 decisions rest on") != std::string::npos);
}

TEST_CASE("a short timeline holds every row in which something changes", "[report][timeline]") {
  RunReport report = fake_report({.tokens = 40, .prompt = 20},
                                 {{.spec = "rolling", .rule = FakeRule::rolling, .budget = 8}});
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
                  {{.spec = "w", .rule = FakeRule::window, .budget = 90}});
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
  report.runs[2].match = RunResult::Match{};
  report.runs[2].match->what = "mass";
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
    const std::string part = column.substr(0, column.find('.'));
    if (part != "spans" && part != "notes" && part != "parameters") fixed.push_back(column);
  }
  CHECK(fixed == bare);
}
