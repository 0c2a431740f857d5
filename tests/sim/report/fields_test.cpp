// SPDX-License-Identifier: Apache-2.0
// The page of all fields against what is written, and the fields that name a run in parts.
#include <cmath>
#include <regex>
#include <set>
#include <string>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/ledger/layouts.h"
#include "sim/report/csv.h"
#include "sim/report/json.h"
#include "sim/report/means.h"
#include "sim/report/run_names.h"
#include "sim/report/timeline_writer.h"
#include "sim/run/run.h"
#include "sim/trace/safetensors.h"
#include "tests/support/documented_fields.h"
#include "tests/support/fake_report.h"
#include "tests/support/temporary_folder.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using nlohmann::json;
using test::add_fields, test::check_same, test::documented;

namespace {

RunReport replayed(const char* name, const std::vector<std::string>& policies,
                   const std::string& match) {
  const Trace trace = Trace::open(std::string(KVSPAN_TRACES_DIR) + "/" + name);
  RunRequest request;
  request.specs = expand_policies(policies, {});
  if (!match.empty()) request.match = parse_match(match);
  request.engine.chunk = 4;  // so that rows of the prompt read what a store altered
  request.regret = trace.is_qkv();
  request.command = {"kvspan", "run"};
  request.lifetimes_path = "l";
  request.timeline_path = "t";
  return run(trace, request);
}

}  // namespace

TEST_CASE("the page of fields names every field of the JSON, and no other", "[report]") {
  std::set<std::string> written;
  add_fields(to_json(replayed("tiny-picture.safetensors",
                              {"snapkv(budget=5,window=2)", "kivi(group=2,residual=2)"}, "")),
             "", written);
  add_fields(to_json(replayed("tiny-picture.safetensors", {"knorm"}, "footprint=1%")), "", written);
  add_fields(to_json(replayed("tiny-scores.safetensors",
                              {"tova(budget=4)", "chunked(snapkv(budget=50%,window=1))"}, "")),
             "", written);
  add_fields(to_json(replayed("tiny-scores.safetensors", {"streaming_llm"}, "retained=50%")), "",
             written);
  std::vector<RunReport> several(2, test::small_report());
  for (RunReport& report : several) {
    report.runs[0].fidelity->decode->mass_upper = MassUpper{1, 1, 1};
    report.runs[0].spec = "chunked(snapkv(budget=20%),compete=frozen)";
    report.runs[0].regret = RunResult::Regret{1, 0.1, 0.5};
    report.device = ScoreDevice{"a device", ScoreAudit{0.5, 1, 2, 1e-7, 1e-6}};
  }
  add_fields(to_json(several[0]), "", written);
  json file = to_json(several);
  for (json& result : file["results"]) result = "a document";
  add_fields(file, "", written);
  std::set<std::string> page = documented("JSON");
  page.erase("runs[].fidelity");  // said to be null; a list of objects otherwise
  page.erase("runs[].timeline");
  check_same(page, written);
}

TEST_CASE("the page names every layout and every tensor of a timeline", "[report]") {
  const std::vector<std::string>& layouts = standard_layouts();
  check_same(documented("Layouts"), {layouts.begin(), layouts.end()});

  const test::TemporaryFolder folder;
  const auto path = folder.path / "t.safetensors";
  write_timeline(test::fake_report({.tokens = 5000, .prompt = 4000}, {{"full"}}), path);
  std::set<std::string> written;
  const TensorSet timeline = TensorSet::open(path);
  for (const auto& [name, tensor] : timeline.tensors()) {
    std::string field = std::regex_replace(name, std::regex("^runs\\.\\d+"), "runs.{r}");
    written.insert(
        std::regex_replace(field, std::regex("\\w+\\.(min|max)\\.\\d+$"), "NAME.$1.{k}"));
  }
  check_same(documented("Timeline"), written);
}

TEST_CASE("a run is named in parts that a program can group by", "[report]") {
  CHECK(method_of("chunked(snapkv(budget=20%),variant=patched)") ==
        "chunked(snapkv,variant=patched)");
  CHECK(method_of("h2o(heavy=64,recent=64)") == "h2o");
  CHECK(method_of("mine(budget=64MiB)") == "mine");
  CHECK(method_of("not a (spec") == "not a (spec");
  CHECK(budget_of("chunked(snapkv(budget=20%,window=8),variant=plain)") == "20%");
  CHECK(budget_of("h2o(budget=auto,heavy=4)") == std::nullopt);
  CHECK(parameters_json("chunked(chunked(knorm(budget=128,x=true,y=mean)),count=metric)") ==
        json::parse(R"({"chunked": {"count": "metric"}, "chunked_2": {},
                        "knorm": {"budget": 128, "x": true, "y": "mean"}})"));

  const RunReport report =
      replayed("tiny-picture.safetensors", {"snapkv(budget=50%,window=2)"}, "");
  const json run = to_json(report)["runs"][0];
  CHECK(run["method"] == "snapkv");
  CHECK(run["budget"] == "50%");
  CHECK(run["parameters"]["snapkv"]["window"] == 2);
  const std::string csv = to_csv(report);
  CHECK_THAT(csv, Contains("policy,label,method,budget,class,footprint,") &&
                      Contains("parameters.snapkv.window"));
}

TEST_CASE("JSON without timelines is the same but for these, and a list is a line", "[report]") {
  const RunReport report = test::fake_sweep({.tokens = 600, .prompt = 500}, 6);
  json all = to_json(report);
  const json less = to_json(report, Timelines::none);
  for (json& run : all["runs"]) run.erase("timeline");
  CHECK(less == all);
  const std::string text = file_text(less);
  CHECK(json::parse(text) == less);
  CHECK_THAT(text, Contains("\n \"accounting\": {\"kv_bytes\":2,"));
  CHECK(file_text(json::parse("[[1,2],{\"a\":[3]}]")) == "[\n [1,2],\n {\n  \"a\": [3]\n }\n]\n");
  CHECK(file_text(7) == "7\n");
}

TEST_CASE("means and spreads over traces are those of pen and paper", "[report]") {
  const std::vector<double> one{0.3};
  CHECK(spread_of(one).mean == 0.3);
  CHECK_FALSE(spread_of(one).sd);
  const std::vector<double> values{2, 4, 4, 4, 5, 5, 7, 9};  // squares about 5 sum to 32
  CHECK(spread_of(values).mean == 5);
  CHECK(*spread_of(values).sd == Approx(std::sqrt(32.0 / 7)));

  // Two traces at two chunk sizes; in the second trace footprints are 0.1 larger.
  std::vector<RunReport> reports;
  for (const char* trace : {"a", "b"}) {
    for (const int chunk : {128, 512}) {
      RunReport report = test::small_report();
      report.trace_path = trace;
      report.chunk = chunk;
      for (RunResult& run : report.runs) {
        run.metrics.footprint = (chunk == 128 ? 0.5 : 0.7) + (*trace == 'b' ? 0.1 : 0.0);
      }
      reports.push_back(std::move(report));
    }
  }
  const std::vector<MeanRow> rows = means_of(reports);
  REQUIRE(rows.size() == 2 * reports.front().runs.size());
  CHECK(rows.front().chunk == 128);
  CHECK(rows.front().traces == 2);
  CHECK(rows.front().label == reports.front().runs.front().label);
  CHECK(rows.front().footprint.mean == Approx(0.55));
  CHECK_FALSE(rows.front().retained_upper);
  CHECK(*rows.front().footprint.sd == Approx(0.1 / std::sqrt(2.0)));
  CHECK(rows.back().chunk == 512);
  CHECK(rows.back().footprint.mean == Approx(0.75));
  CHECK_THAT(format_means(reports, {}), Contains("means over 2 traces") && Contains("55.0 +- 7.1"));

  // --match gives another budget on every trace: these belong together all the same.
  for (std::size_t i = 0; i < reports.size(); ++i)
    reports[i].runs.front().label = "snapkv(budget=" + std::to_string(i + 7) + ")";
  CHECK(means_of(reports).front().label == "snapkv");
  CHECK(means_of(reports).front().traces == 2);
  CHECK(to_json(reports)["results"].size() == 4);
}

TEST_CASE("means over traces have regrets where runs have them", "[report]") {
  std::vector<RunReport> reports(2, test::fake_report({}, {{"full"}, {"tova"}}));
  CHECK(format_means(reports, {}).find("regret") == std::string::npos);
  CHECK(to_json(reports)["means"][0]["optimum"].is_null());
  reports[0].runs[1].regret = RunResult::Regret{0.9, 0.02, 0.3};
  reports[1].runs[1].regret = RunResult::Regret{0.9, 0.04, 0.2};
  const MeanRow row = means_of(reports)[1];
  CHECK(row.regret->mean == Approx(0.03));
  CHECK(*row.regret->sd == Approx(0.02 / std::sqrt(2.0)));
  CHECK(row.optimum_footprint->mean == Approx(0.25));
  const json mean = to_json(reports)["means"][1]["optimum"];
  CHECK(mean["regret"]["mean"] == Approx(0.03));
  CHECK(mean["footprint"]["sd"] == Approx(0.1 / std::sqrt(2.0)));
  CHECK_THAT(format_means(reports, {}),
             Contains("regret %") && Contains("  3.00 +- 1.41  25.0 +- 7.1\n"));
}

TEST_CASE("means over score traces are intervals, and name what a budget is of", "[report]") {
  std::vector<RunReport> reports(2, test::small_report());
  for (std::size_t i = 0; i < 2; ++i) {
    RunResult& run = reports[i].runs.front();
    run.spec = fmt::format("chunked(snapkv(budget={}%),compete=frozen)", 20 + i);
    run.label = fmt::format("chunked(snapkv(budget={}%))", 20 + i);
    run.fidelity->decode->mass_mean = i == 0 ? 0.8 : 0.7;
    run.fidelity->decode->mass_upper = MassUpper{i == 0 ? 0.9 : 0.8, 1, 1};
  }
  const MeanRow row = means_of(reports).front();
  CHECK(row.retained->mean == Approx(0.75));
  CHECK(row.retained_upper->mean == Approx(0.85));
  CHECK(row.label == "chunked(snapkv)");
  CHECK(row.amount == "of each chunk");
  const json mean = to_json(reports)["means"][0];
  CHECK(mean["retained_mass"]["upper"]["mean"].get<double>() == Approx(0.85));
  CHECK(to_json(reports)["means"][1]["retained_mass"]["upper"].is_null());
  CHECK_THAT(format_means(reports, {}), Contains(">= 75.00 +- 7.07, <= 85.00 +- 7.07") &&
                                            Contains("chunked(snapkv): of each"));
}
