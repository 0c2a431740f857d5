// SPDX-License-Identifier: Apache-2.0
// The large results as safetensors: lifetimes and timelines. What is read back: lifetimes_test.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/report/lifetimes_writer.h"
#include "sim/report/massif.h"
#include "sim/report/perfetto.h"
#include "sim/report/timeline_writer.h"
#include "sim/trace/safetensors.h"
#include "tests/support/fake_report.h"
#include "tests/support/temporary_file.h"

using kvspan::RunReport;
using kvspan::TensorSet;
using kvspan::test::fake_report;
using kvspan::test::FakeRun;
using kvspan::test::small_report;
using kvspan::test::TemporaryFile;
using nlohmann::json;
using FakeRule = FakeRun::Rule;

namespace {

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

}  // namespace

TEST_CASE("a trace of events has each run's memory as counters", "[report]") {
  const RunReport report = small_report();
  const json trace = json::parse(kvspan::perfetto_trace(report));
  // full comes first, and holds both layers' and heads' entries, one more a row, until the end.
  std::vector<std::int64_t> resident, rows, slices;
  std::size_t processes = 0;
  for (const json& event : trace["traceEvents"]) {
    processes += event["name"] == "process_name" ? 1 : 0;
    if (event["pid"] != 1) continue;
    if (event["name"] == "process_name") CHECK(event["args"]["name"] == "full");
    if (event["ph"] == "X") slices.push_back(event["dur"]);
    if (event["name"] != "entries") continue;
    rows.push_back(event["ts"]);
    resident.push_back(event["args"]["resident"]);
  }
  CHECK(processes == 4);
  REQUIRE(resident.size() == 65);
  for (std::size_t row = 0; row < 64; ++row) {
    CHECK(rows[row] == static_cast<std::int64_t>(1000 * row));
    CHECK(resident[row] == static_cast<std::int64_t>(4 * (row + 1)));
  }
  CHECK(rows.back() == 64'000);
  CHECK(resident.back() == 0);
  CHECK(slices == std::vector<std::int64_t>{48'000, 16'000});  // one prefill pass, decoding
}

TEST_CASE("a heap profile has a snapshot a row, the peak by layer", "[report]") {
  RunReport report = fake_report({.tokens = 6, .prompt = 4, .layers = 2, .heads = 2}, {{"full"}});
  report.command = {"kvspan", "run"};
  const std::int64_t entry = report.runs[0].ledger.representations[0].device_bytes;
  const std::vector<std::string> lines = kvspan::test::lines_of(kvspan::massif_profile(report));
  CHECK(lines[0].starts_with("desc: "));
  CHECK(lines[1] == "cmd: kvspan run");
  CHECK(lines[2] == "time_unit: ms");
  // full: both layers' and heads' entries, one more a row; the last row is the peak.
  std::vector<std::string> heap, tree, nodes;
  for (const std::string& line : lines) {
    if (line.starts_with("mem_heap_B=")) heap.push_back(line.substr(11));
    if (line.starts_with("heap_tree=")) tree.push_back(line.substr(10));
    if (line.starts_with("n") || line.starts_with(" n")) nodes.push_back(line);
  }
  REQUIRE(heap.size() == 6);
  for (std::int64_t row = 0; row < 6; ++row)
    CHECK(heap[static_cast<std::size_t>(row)] == std::to_string(4 * (row + 1) * entry));
  CHECK(tree == std::vector<std::string>{"empty", "empty", "empty", "empty", "empty", "peak"});
  REQUIRE(nodes.size() == 3);
  CHECK(nodes[0].starts_with("n2: " + std::to_string(24 * entry) + " "));
  CHECK(nodes[1].starts_with(" n0: " + std::to_string(12 * entry) + " 0x"));
  CHECK_THROWS_AS(kvspan::massif_profile(small_report()), kvspan::ConfigError);
}

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
  const FakeRule rule =
      GENERATE(FakeRule::keep_all, FakeRule::window, FakeRule::prompt_end, FakeRule::rolling);
  const std::int64_t tokens = GENERATE(1, 2, 200);
  const RunReport report = fake_report(
      {.tokens = tokens, .prompt = std::max<std::int64_t>(1, tokens * 3 / 4), .chunk = 16},
      {{.spec = "x", .rule = rule, .budget = 20}});
  const auto deaths = report.runs[0].ledger.deaths(1, 1);
  const kvspan::ChangePoints points = kvspan::change_points(deaths);
  REQUIRE(points.rows.size() == points.entries.size());
  CHECK(points.rows.front() == 0);
  CHECK(points.rows.back() == tokens - 1);
  if (rule == FakeRule::keep_all)
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
                  {{.spec = "full"}, {.spec = "w", .rule = FakeRule::window, .budget = 300}});
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
