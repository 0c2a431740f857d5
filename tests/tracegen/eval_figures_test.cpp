// SPDX-License-Identifier: Apache-2.0
// What eval makes of its samples, by hand.
#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "tests/support/checkpoint_case.h"
#include "tests/support/documented_fields.h"
#include "tests/support/fake_report.h"
#include "tests/support/temporary_folder.h"
#include "tracegen/eval/eval_files.h"
#include "tracegen/eval/eval_forms.h"
#include "tracegen/eval/eval_record.h"
#include "tracegen/eval/eval_report.h"
#include "tracegen/eval/sample_runs.h"

using namespace kvspan;
using namespace kvspan::tracegen;
using Catch::Matchers::Contains;
using nlohmann::json;

namespace {

// Of `full`, two budgets of "a" and two of "b", unless others are named.
SampleResult sample(const std::string& task, const std::vector<double>& scores,
                    const std::vector<double>& footprints,
                    const std::vector<test::FakeRun>& runs = {
                        {"full"},
                        {.spec = "a(budget=1)", .notes = {"stand-in: by hand"}},
                        {"a(budget=2)"},
                        {"b(budget=1)"},
                        {"b(budget=2)"}}) {
  SampleResult out;
  out.task = task;
  out.sample.name = task + "#0";
  out.sample.answers = {"4711"};
  out.input_sha256 = "0123";
  out.evict_at = "question";
  out.prompt_tokens = 48;
  out.reference_tokens = 3;
  out.report = test::fake_report({}, runs);
  out.refused = {{"c", "reads rows to come"}};
  for (std::size_t r = 0; r < scores.size(); ++r) {
    Metrics& metrics = out.report.runs[r].metrics;
    metrics.footprint = footprints[r];
    metrics.peak_kv = footprints[r] / 2;
    metrics.peak_bytes.total = static_cast<std::int64_t>(1000 * footprints[r]);
    out.outcomes.push_back({"so: 4711", 3, scores[r], 0.5, 0.25, 1 - scores[r],
                            OpenLoop{footprints[r], 0.5, 0.75, 1}});
  }
  return out;
}

// As a file has it.
SampleResult restored(const SampleResult& sample) {
  const json document = document_of(sample, Timelines::all);
  SampleResult out = sample_of(document);
  out.document = document.dump();
  return out;
}

// Two tasks that the model does, two equal samples each, and one that it does not.
EvalResult evaluation() {
  std::vector<SampleResult> samples;
  for (int twice = 0; twice < 2; ++twice) {
    samples.push_back(restored(sample("one", {1, 0.5, 1, 0.8, 1}, {1, 0.2, 0.4, 0.3, 0.5})));
    samples.push_back(restored(sample("two", {1, 0.6, 1, 0.5, 1}, {1, 0.2, 0.4, 0.1, 0.3})));
  }
  samples.back().report.runs.push_back(test::fake_report({}, {{"once"}}).runs[0]);
  samples.back().outcomes.emplace_back();
  samples.push_back(restored(sample("hard", {0.4, 0, 0, 0, 0}, {1, 0.2, 0.4, 0.3, 0.5})));
  EvalResult out;
  out.options.draws = 50;
  out.tasks = by_task(std::move(samples), out.options);
  return out;
}

void add_part(const json& file, const std::string& part, std::set<std::string>& out) {
  test::add_fields(file.at(json::json_pointer("/results/0" + part)),
                   part == "/sample" ? "results[].sample" : "results[].runs[].eval", out);
}

}  // namespace

TEST_CASE("ranks correlate as Spearman has it", "[eval]") {
  CHECK(rank_correlation({1, 2, 3}, {10, 30, 20}) == Approx(0.5));
  CHECK(rank_correlation({1, 2, 3}, {9, 8, 1}) == Approx(-1));
  // Ranks 1.5, 1.5, 3 and 1, 2, 3: 1.5 / sqrt(1.5 * 2)
  CHECK(rank_correlation({5, 5, 7}, {1, 2, 3}) == Approx(0.8660254));
  CHECK(rank_correlation({4, 4}, {1, 2}) == 0);
}

// Two heads of four rows. Head 0: token 0 leaves one set at row 2, the other at row 3. Head 1:
// token 1 leaves both at row 3, and token 0 one of them at row 2.
TEST_CASE("two runs agree in a row on what both of them hold there", "[eval]") {
  const std::vector<std::uint32_t> a{2, 4, 4, 4, 2, 3, 4, 4};
  const std::vector<std::uint32_t> b{3, 4, 4, 4, 4, 3, 4, 4};
  // Row 1: all 4. Row 2: 6 in either, without the tokens 0: 4. Row 3: {1, 2, 3} and {2, 3}, and
  // token 0 of head 1 in one.
  const std::vector<double> found = agreement_by_row(a, b, 4, 1);
  REQUIRE(found.size() == 3);
  CHECK(found[0] == 1);
  CHECK(found[1] == Approx(4.0 / 6));
  CHECK(found[2] == Approx(5.0 / 6));
}

// Two samples, `full` at 1 and 1; "a" at footprints 0.2, 0.4 and 0.8.
TEST_CASE("a critical footprint is where the mean score crosses its share", "[eval]") {
  FigureOptions options;
  options.draws = 200;
  TaskResult task;
  const auto add = [&](const std::vector<double>& scores, const std::vector<double>& footprints) {
    SampleResult& sample = task.samples.emplace_back();
    const std::vector<std::string> labels{"full", "a(budget=1)", "a(budget=2)", "a(budget=3)"};
    for (std::size_t r = 0; r < labels.size(); ++r) {
      RunResult run;
      run.label = labels[r];
      run.metrics.footprint = footprints[r];
      run.metrics.peak_kv = 0.5 * footprints[r];
      sample.report.runs.push_back(std::move(run));
      Outcome outcome;
      outcome.score = scores[r];
      outcome.divergence = 1 - scores[r];
      outcome.open = OpenLoop{footprints[r], 1 - footprints[r], std::nullopt, 1};
      sample.outcomes.push_back(outcome);
    }
  };
  SECTION("by interpolation between budgets") {
    add({1, 0.2, 0.7, 1}, {1, 0.1, 0.3, 0.7});
    add({1, 0.4, 0.9, 1}, {1, 0.3, 0.5, 0.9});
    summarise(task, options);
    REQUIRE(task.critical.size() == 1);
    // Means (0.2, 0.3), (0.4, 0.8), (0.8, 1): 0.9 lies halfway between the last two.
    CHECK(task.critical[0].footprint.kind == sweep::Critical::Kind::exact);
    CHECK(task.critical[0].footprint.x == Approx(0.6));
    CHECK(task.critical[0].peak_kv.x == Approx(0.3));
    // One sample twice, a quarter of all draws each: 0.3 + 0.4 * 2/3, and 0.5; else 0.6.
    CHECK(*task.critical[0].low == Approx(0.5));
    CHECK(*task.critical[0].high == Approx(0.6));
    CHECK(task.policies[1].score == Approx(0.3));
    CHECK(task.policies[1].score_interval.low == Approx(0.2));
    CHECK(task.policies[1].score_interval.high == Approx(0.4));
    // More attention, less error, a better score, and a smaller divergence go together here.
    REQUIRE(task.proxies.size() == 4);
    for (const ProxyFigures& proxy : task.proxies) CHECK(proxy.correlation == Approx(1));
  }
  SECTION("and is refused where the full cache fails") {
    add({0.4, 0.2, 0.7, 1}, {1, 0.1, 0.3, 0.7});
    summarise(task, options);
    CHECK(task.critical.empty());
    CHECK_THAT(task.why_not, Contains("score 0.40"));
  }
}

TEST_CASE("what the file of an evaluation says is enough for its report", "[eval]") {
  const EvalResult made = evaluation();
  const json file = to_json(made, {"kvspan", "eval"});
  std::set<std::string> written;
  add_part(file, "/sample", written);
  add_part(file, "/runs/0/eval", written);
  test::add_fields(file["eval"], "eval", written);
  std::set<std::string> page = test::documented("Evaluations");
  page.insert("eval.tasks[].critical[]");  // of a task that the model does not do
  test::check_same(page, written);

  const test::TemporaryFolder folder;
  std::ofstream(folder / "e.json") << file;
  const EvalResult read = read_evaluations({folder / "e.json"}, made.options);
  // What not all samples of a task have is in no file.
  nlohmann::json expected = critical_json(made, {"e.json"});
  expected["tasks"][1]["left_out"] = json::array();
  CHECK(critical_json(read, {"e.json"}) == expected);
  CHECK(read.tasks[1].proxies.size() == made.tasks[1].proxies.size());
  CHECK(read.tasks[2].refused[0].reason == "reads rows to come");
  std::ofstream(folder / "no.json") << "{}";
  CHECK_THROWS_WITH(read_evaluations({folder / "no.json"}, {}), Contains("found no field 'eval'"));
  const std::string csv = to_csv(made);
  CHECK(std::count(csv.begin(), csv.end(), '\n') == 1 + 5 * 5);
  CHECK_THAT(csv, Contains("eval.score") && Contains("sample.name") && Contains("two#0"));
}

TEST_CASE("a report of an evaluation has critical footprints, fronts and ranks by hand", "[eval]") {
  const EvalResult made = evaluation();
  const json report = critical_json(made, {"e.json"});
  std::set<std::string> written;
  test::add_fields(report, "", written);
  std::set<std::string> page = test::documented("Reports of evaluations");
  page.insert("tasks[].methods[]");   // of a task that the model does not do
  page.insert("tasks[].left_out[]");  // where all samples have all runs
  test::check_same(page, written);

  // a: (.2, .5), (.4, 1) cross .9 at .36; b: (.3, .8), (.5, 1) at .4.
  const json& methods = report["tasks"][0]["methods"];
  CHECK(methods[0]["method"] == "a");
  CHECK(methods[0]["critical_footprint"]["value"].get<double>() == Approx(0.36));
  CHECK(methods[0]["critical_footprint_interval"]["low"].get<double>() == Approx(0.36));
  CHECK(methods[0]["critical_peak_kv"]["value"].get<double>() == Approx(0.18));
  CHECK(methods[0]["critical_peak_bytes"]["value"].get<double>() == Approx(360));
  CHECK(methods[1]["critical_footprint"]["value"].get<double>() == Approx(0.4));
  // The full cache is no better than a(budget=2), and larger.
  CHECK(report["tasks"][0]["front"] == json({"a(budget=1)", "b(budget=1)", "a(budget=2)"}));
  // Elsewhere a crosses at .35 and b at .26: each is first once.
  CHECK(report["tasks"][1]["methods"][0]["method"] == "b");
  CHECK_THAT(report["tasks"][2]["no_critical"].get<std::string>(), Contains("score 0.40"));
  REQUIRE(report["ranking"].size() == 2);
  CHECK(report["ranking"][0]["mean_rank"] == 1.5);
  CHECK(report["ranking"][0]["mean_critical_footprint"].get<double>() == Approx(0.355));
  CHECK(report["ranking"][1]["mean_critical_footprint"].get<double>() == Approx(0.33));

  const std::string csv = critical_csv(made);
  CHECK(std::count(csv.begin(), csv.end(), '\n') == 5);
  const std::string header = csv.substr(0, csv.find('\n'));
  CHECK(critical_csv_schema()["fields"].size() ==
        static_cast<std::size_t>(std::count(header.begin(), header.end(), ',')) + 1);
  const std::string markdown = critical_markdown(made);
  CHECK_THAT(markdown, Contains("| a [1] | 36.0 % | 36.0 to 36.0 | 18.0 % | 360 B |") &&
                           Contains("Left out, since not all samples have it: once (1).") &&
                           Contains("[1] stand-in: by hand") &&
                           Contains("## Ranking over 2 tasks") &&
                           Contains("No critical footprint: the model does not do this task"));
  const std::string svg = critical_svg(made);
  CHECK_THAT(svg, Contains("keeps 90 % of the full cache") && Contains("(2) two") &&
                      !Contains("(3)") && Contains("</svg>"));
}

TEST_CASE("files of evaluations are put together by sample, model and policy", "[eval]") {
  const test::TemporaryFolder folder;
  FigureOptions options;
  options.draws = 20;
  const auto write = [&](const char* name, const SampleResult& of, const char* version = "1") {
    EvalResult result;
    result.tasks = by_task({restored(of)}, options);
    json file = to_json(result, {});
    file["kvspan"]["version"] = version;
    std::ofstream(folder / name) << file;
    return std::filesystem::path(folder / name);
  };
  const auto read = [&](const std::vector<std::filesystem::path>& files) {
    return read_evaluations(files, options);
  };
  const SampleResult first = sample("one", {1, 0.5, 1, 0.8, 1}, {1, 0.2, 0.4, 0.3, 0.5});
  const auto a = write("a.json", first);
  SECTION("other samples of a task") {
    SampleResult other =
        sample("one", {1, 0.7, 0.9}, {1, 0.2, 0.4}, {{"full"}, {"a(budget=1)"}, {"a(budget=2)"}});
    other.input_sha256 = "4567";
    const EvalResult both = read({a, write("b.json", other)});
    REQUIRE(both.tasks.size() == 1);
    const TaskResult& task = both.tasks[0];
    CHECK(task.samples.size() == 2);
    REQUIRE(task.policies.size() == 3);
    CHECK(task.policies[1].score == Approx(0.6));
    // (.2, .6), (.4, .95) cross .9 at .2 + .2 * 6 / 7.
    REQUIRE(task.critical.size() == 1);
    CHECK(task.critical[0].footprint.x == Approx(0.2 + 1.2 / 7));
    REQUIRE(task.left_out.size() == 2);
    CHECK(task.left_out[1].label == "b(budget=2)");
    CHECK(task.left_out[1].samples == 1);
  }
  SECTION("other policies on the same sample, in any order") {
    const SampleResult other =
        sample("one", {1, 0.9, 1, 0.5}, {1, 0.3, 0.6, 0.2},
               {{"full"}, {"c(budget=1)"}, {"c(budget=2)"}, {"a(budget=1)"}});
    const EvalResult both = read({a, write("b.json", other)});
    REQUIRE(both.tasks.size() == 1);
    CHECK(both.tasks[0].samples.size() == 1);
    CHECK(both.tasks[0].policies.size() == 7);
    CHECK(both.tasks[0].critical.size() == 3);
    CHECK(both.tasks[0].critical[2].footprint.x == Approx(0.3));
  }
  SECTION("other models and settings stand beside each other") {
    SampleResult model = first;
    model.report.trace.model = "another";
    SampleResult chunks = first;
    chunks.report.chunk = 512;
    const EvalResult all = read({a, write("b.json", model), write("c.json", chunks)});
    CHECK(all.tasks.size() == 3);
    const std::string markdown = critical_markdown(all);
    CHECK_THAT(markdown, Contains("## another: one: ") && Contains("chunks of 512") &&
                             Contains("## Ranking over 3 tasks"));
    CHECK(critical_json(all, {"a", "b", "c"})["tasks"][1]["model"] == "another");
  }
  SECTION("what does not go together is refused") {
    CHECK_THROWS_WITH(read({a, a}), Contains("stands there twice"));
    SampleResult other = first;
    other.outcomes[2].score = 0;
    CHECK_THROWS_WITH(
        read({a, write("b.json", other)}),
        Contains("disagree on a(budget=2) at sample 'one#0' of 'one' (score 1 and 0"));
    CHECK_THROWS_WITH(read({a, write("c.json", first, "2")}),
                      Contains("c.json is of kvspan 2") && Contains("a.json of 1"));
    SampleResult apart = sample("one", {1, 0.7}, {1, 0.2}, {{"full"}, {"c(budget=1)"}});
    apart.input_sha256 = "4567";
    CHECK_THROWS_WITH(read({a, write("d.json", apart)}),
                      Contains("no policy in common on the 2 samples of 'one'") &&
                          Contains("(a(budget=1) ran on 1 of them)"));
  }
}

// The third sample takes more than half of the memory, so that it cannot run beside the second.
TEST_CASE("samples side by side give what they give one by one, within the memory", "[eval]") {
  const auto checkpoint = Checkpoint::open(KVSPAN_MODELS_DIR "/minimind2-small");
  const auto tokenizer = Tokenizer::open(KVSPAN_MODELS_DIR "/minimind2-small");
  EvalRequest request;
  for (const char* policy : {"full", "knorm(budget=50%)"})
    request.specs.push_back(parse_spec(policy));
  std::vector<TaskSample> samples;
  for (const std::size_t tokens : {8, 9, 250}) {
    TaskSample sample;
    sample.task = "ids";
    sample.sample.name = std::to_string(tokens);
    sample.sample.scoring = kvspan::tracegen::Scoring::log_likelihood;
    sample.read.input.prompt.ids = testing::real_ids(tokens);
    sample.read.input.prompt.pieces.assign(tokens, "x");
    sample.read.input.reference = {5, 6};
    samples.push_back(std::move(sample));
  }
  request.loop.threads = 1;
  request.loop.memory = std::int64_t{190} << 20U;  // too little to keep widened weights
  const SamplesDone one = run_samples(checkpoint, tokenizer, request, samples);
  CHECK(one.at_once == 1);
  request.loop.threads = 2;
  request.loop.memory = std::max(one.memory_bytes + (4 << 20), 3 * one.samples[0].memory_bytes);
  CHECK(one.samples[2].memory_bytes > request.loop.memory / 2);
  const SamplesDone two = run_samples(checkpoint, tokenizer, request, samples);
  CHECK(two.at_once == 2);
  CHECK(two.memory_bytes <= request.loop.memory);
  for (std::size_t i = 0; i < samples.size(); ++i)
    CHECK(two.samples[i].document == one.samples[i].document);
  CHECK(sample_id(request, samples[0]) != sample_id(request, samples[1]));
}
