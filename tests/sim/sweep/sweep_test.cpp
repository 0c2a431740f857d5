// SPDX-License-Identifier: Apache-2.0
// Grids, journals and sweeps that are cut, killed or shared, on traces of eight and twelve tokens.
#include "sim/sweep/sweep.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstdint>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/digest.h"
#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/policy/passes.h"
#include "sim/run/run.h"
#include "sim/sweep/journal.h"
#include "sim/sweep/search.h"
#include "tests/support/temporary_folder.h"

using namespace kvspan;
using namespace kvspan::sweep;
using Catch::Matchers::Contains;
using Catch::Matchers::StartsWith;
using test::TemporaryFolder;

namespace {

namespace fs = std::filesystem;

std::string trace(const char* name) { return std::string(KVSPAN_TRACES_DIR) + "/" + name; }

Config tiny() {
  Config config;
  config.traces = {trace("tiny-paper.safetensors"), trace("tiny-picture.safetensors")};
  config.policies = {"full", "streaming_llm", "tova"};
  config.budgets = {"2", "50%"};
  config.chunks = {0, 4};
  return config;
}

std::string checksum(const std::vector<fs::path>& files) { return sha256_of_files(files); }

std::string text_of(const fs::path& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::string results(const fs::path& folder) { return text_of(folder / "cells.csv"); }

// Runs it and returns the merged results.
std::string swept(const Config& config, const fs::path& folder, SweepOptions options = {}) {
  options.threads = options.threads == 0 ? 1 : options.threads;
  (void)run_sweep(config, folder, options);
  return results(folder);
}

std::size_t cells_in(const fs::path& journal) {
  std::size_t cells = 0;
  (void)read_journal(text_of(journal),
                     [&](const nlohmann::json& record) { cells += record.contains("cell"); });
  return cells;
}

std::string error_of(const std::string& text) {
  try {
    (void)parse_config(text, "s.json");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "none";
}

}  // namespace

namespace {

// A team whose members are threads.
struct Room {
  explicit Room(int size) : all(size) {}
  std::barrier<> all;
  std::atomic<std::int64_t> counter{0};
  std::string said;
};
class Member final : public Team {
 public:
  Member(Room& room, int rank, int size) : room_(room), rank_(rank), size_(size) {}
  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return size_; }
  [[nodiscard]] std::string share(const std::string& text) override {
    if (rank_ == 0) room_.said = text;
    wait();
    std::string heard = room_.said;
    wait();
    return heard;
  }
  // Nobody takes a second unit before everybody has a first one.
  [[nodiscard]] std::int64_t take(std::int64_t count) override {
    const std::int64_t before = room_.counter.fetch_add(count);
    if (!std::exchange(begun_, true)) wait();
    return before;
  }
  void wait() override { room_.all.arrive_and_wait(); }
  void leave() override { wait(); }

 private:
  Room& room_;
  int rank_, size_;
  bool begun_ = false;
};

// How many cells are left, says each of them; -1: it threw Interrupted.
//   stops  rank 0 is told to, in its first unit
std::vector<long> together(int size, const Config& config, const fs::path& folder,
                           bool stops = false) {
  Room room(size);
  std::vector<long> left(static_cast<std::size_t>(size), 99);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      Member member(room, rank, size);
      SweepOptions options;
      options.threads = 1;
      options.team = &member;
      SweepWatch watch;
      watch.cancelled = [&] { return stops && rank == 0; };
      try {
        left[static_cast<std::size_t>(rank)] =
            static_cast<long>(run_sweep(config, folder, options, watch).left);
      } catch (const Interrupted&) {
        left[static_cast<std::size_t>(rank)] = -1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return left;
}

std::size_t cells_of_all(const fs::path& folder) {
  std::size_t cells = 0;
  for (const fs::path& path : journals_in(journal_folder(folder))) cells += cells_in(path);
  return cells;
}

}  // namespace

TEST_CASE("SHA-256 is the standard's", "[sweep]") {
  // FIPS 180-4, example "abc".
  CHECK(sha256_of_text("abc") ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST_CASE("a cell's id is the digest of all that its figures depend on", "[sweep]") {
  Plan plan = make_plan(tiny(), checksum);
  plan.version = "1.2.3 abc";
  const Grid grid = make_grid(plan);
  // 2 traces x 2 chunks x (full, and two policies at two budgets).
  REQUIRE(grid.cells.size() == 2 * 2 * 5);
  const Cell& cell = grid.cells[5 + 2];
  const std::string text =
      R"x({"accounting":{"kv_bytes":2,"layout":"ideal","prefill":"whole"},"chunk":4,)x"
      R"x("evict_at":"","fidelity":"auto","files":[],)x"
      R"x("policy":"streaming_llm(budget=50%)","prompt":0,"seed":0,)x"
      R"x("trace":"be268cf13c0550ebd0a38951edd9505b6569190e957d38487c6f729dd6d2ab06",)x"
      R"x("version":"1.2.3 abc"})x";
  CHECK(cell_text(plan, grid.settings[cell.setting], plan.specs[cell.spec],
                  grid.countings[cell.counting]) == text);
  CHECK(id_text(cell.id) == sha256_of_text(text).substr(0, 16));
  std::set<std::uint64_t> ids;
  for (const Cell& one : grid.cells) ids.insert(one.id);
  CHECK(ids.size() == grid.cells.size());

  // What is measured of a cell belongs to it.
  plan.config.sample = "rows=2";
  CHECK_THAT(cell_text(plan, grid.settings[cell.setting], plan.specs[cell.spec],
                       grid.countings[cell.counting]),
             Contains(R"("sample":"rows=2")"));
  for (const Cell& one : make_grid(plan).cells) CHECK(ids.count(one.id) == 0);
  plan.config.sample.clear();

  // A plan that is read back has the same cells; another program has none of them.
  const Plan again = parse_plan(to_json(plan).dump(), "sweep.json");
  CHECK(to_json(again) == to_json(plan));
  plan.version = "1.2.4 abc";
  for (const Cell& one : make_grid(plan).cells) CHECK(ids.count(one.id) == 0);
  CHECK_THROWS_WITH(make_grid(plan, 19), Contains("20 cells") && Contains("allows 19"));
  CHECK_THROWS_WITH(parse_plan("{}", "sweep.json"), StartsWith("sweep.json: is not what a sweep"));
}

TEST_CASE("every combination of every list is a cell, counted without a replay each", "[sweep]") {
  Config config = tiny();
  config.prompts = {0, 4};
  config.kv_bytes = {1, 2};
  config.prefill = {"whole", "layerwise"};
  config.layouts = {"ideal", "padded"};
  config.seeds = {0, 1};
  const Plan plan = make_plan(config, checksum);
  const Grid grid = make_grid(plan);
  CHECK(grid.cells.size() == 2U * 2 * 2 * 2 * 2 * 2 * 2 * 5);
  CHECK(grid.units.size() == 2U * 2 * 2 * 2 * 2);  // neither prefill nor layout
  std::multiset<std::size_t> cells;
  for (const Unit& unit : grid.units) cells.insert(unit.cells.begin(), unit.cells.end());
  for (std::size_t i = 0; i < grid.cells.size(); ++i) CHECK(cells.count(i) == 1);
  // Five parts share 32 units, and their costs differ by no more than the costliest unit's.
  std::map<std::size_t, std::size_t> units;
  std::map<std::size_t, double> costs;
  for (const Unit& unit : grid.units) {
    for (std::size_t part = 0; part < 5; ++part) {
      if (!Shard{part, 5, "test"}.has(unit)) continue;
      ++units[part];
      costs[part] += unit.cost;
    }
  }
  CHECK(units == std::map<std::size_t, std::size_t>{{0, 7}, {1, 7}, {2, 6}, {3, 6}, {4, 6}});
  const auto [least, most] = std::minmax_element(
      costs.begin(), costs.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  CHECK(most->second - least->second <= grid.units.front().cost);
  // The costly trace first, so that a sweep does not end with it.
  CHECK(plan.traces[grid.settings[grid.units.front().setting].trace].tokens == 12);
}

TEST_CASE("a journal that is cut at any byte keeps its whole lines", "[sweep]") {
  std::string text;
  std::vector<std::size_t> ends;
  for (int i = 0; i < 4; ++i) {
    text += journal_line({{"n", i}, {"text", std::string(static_cast<std::size_t>(7 * i), '"')}});
    ends.push_back(text.size());
  }
  CHECK(text.substr(0, 26) ==
        "00000011 " + sha256_of_text(R"({"n":0,"text":""})").substr(0, 16) + " ");
  for (std::size_t size = 0; size <= text.size(); ++size) {
    std::vector<int> found;
    const std::size_t damaged = read_journal(
        text.substr(0, size), [&](const nlohmann::json& record) { found.push_back(record["n"]); });
    const auto whole = static_cast<std::size_t>(
        std::count_if(ends.begin(), ends.end(), [&](std::size_t end) { return end <= size; }));
    CHECK(found.size() == whole);
    CHECK(damaged == (size == 0 || std::count(ends.begin(), ends.end(), size) > 0 ? 0U : 1U));
  }
  // A damaged byte costs its line, and a lost line break two.
  for (std::size_t at = 0; at < text.size(); ++at) {
    std::string changed = text;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    std::size_t found = 0;
    const std::size_t damaged = read_journal(changed, [&](const nlohmann::json&) { ++found; });
    const bool line_break = text[at] == '\n';
    CHECK(found + damaged == (line_break && at + 1 < text.size() ? 3U : 4U));
    CHECK(found == (line_break && at + 1 < text.size() ? 2U : 3U));
  }
}

TEST_CASE("a sweep goes on where its journal ends, and ends with the same bytes", "[sweep]") {
  const TemporaryFolder folder;
  const Config config = tiny();
  const std::string whole = swept(config, folder / "whole");
  CHECK(std::count(whole.begin(), whole.end(), '\n') == 21);
  const fs::path journal = journals_in(journal_folder(folder / "whole")).front();
  const std::string text = text_of(journal);
  // Lines are cut anywhere; by hand, tests/studies/sweep/kill.py cuts at every byte.
  const fs::path cut = folder / "cut";
  for (std::size_t size = 0; size <= text.size(); size += 1997) {
    fs::remove_all(cut);
    fs::create_directories(journal_folder(cut));
    write_file_atomically(journal_folder(cut) / "killed.journal", text.substr(0, size));
    const std::size_t known = cells_in(journal_folder(cut) / "killed.journal");
    CHECK(swept(config, cut) == whole);
    const auto journals = journals_in(journal_folder(cut));
    std::size_t computed = 0;
    for (const fs::path& path : journals) computed += cells_in(path);
    CHECK(computed == 20);  // what was known was not computed again
    CHECK(known <= 20);
  }
  // Nothing is left to do: no journal more.
  CHECK(swept(config, cut) == whole);
  CHECK(journals_in(journal_folder(folder / "whole")).size() == 1);
}

TEST_CASE("a changed configuration computes what is new, and forgets nothing", "[sweep]") {
  const TemporaryFolder folder;
  Config config = tiny();
  (void)swept(config, folder / "s");
  config.budgets = {"2", "4", "50%"};
  (void)swept(config, folder / "s");
  const auto journals = journals_in(journal_folder(folder / "s"));
  REQUIRE(journals.size() == 2);
  CHECK(cells_in(journals[1]) == 2 * 2 * 2);
  CHECK(swept(config, folder / "s") == swept(config, folder / "fresh"));
}

TEST_CASE("threads, memory and shards change no byte of the results", "[sweep]") {
  const TemporaryFolder folder;
  Config config = tiny();
  config.prefill = {"whole", "layerwise"};
  const std::string whole = swept(config, folder / "whole");
  SweepOptions options;
  options.threads = 3;
  CHECK(swept(config, folder / "threads", options) == whole);
  options.memory_bytes = 1;  // every policy by itself, one after the other
  CHECK(swept(config, folder / "memory", options) == whole);
  for (std::size_t i = 0; i < 3; ++i) {
    options.shard = {i, 3, "test"};
    (void)run_sweep(config, folder / "shards", options);
    CHECK(fs::exists(folder / "shards" / "cells.csv") == (i == 2));
  }
  CHECK(results(folder / "shards") == whole);
  CHECK(results(folder / "shards").find(",left,") == std::string::npos);
}

TEST_CASE("a team takes each unit once, and what one stops all go on with", "[sweep]") {
  const TemporaryFolder folder;
  const Config config = tiny();
  const std::string whole = swept(config, folder / "whole");
  for (const int size : {1, 2, 4}) {
    const fs::path mine = folder / std::to_string(size);
    CHECK(together(size, config, mine) == std::vector<long>(static_cast<std::size_t>(size), 0));
    CHECK(results(mine) == whole);
    CHECK(cells_of_all(mine) == 20);
  }
  // Four units of five cells. One is dropped; the other member ends its own, and both say that
  // cells are left.
  const fs::path mine = folder / "stopped";
  CHECK(together(2, config, mine, true) == std::vector<long>{-1, -1});
  const std::size_t known = cells_of_all(mine);
  CHECK(known >= 5);
  CHECK(known <= 15);
  CHECK_THAT(results(mine), Contains(",left,"));
  CHECK(together(3, config, mine) == std::vector<long>{0, 0, 0});
  CHECK(results(mine) == whole);
  CHECK(cells_of_all(mine) == 20);
}

TEST_CASE("regrets of a sweep are those of a run", "[sweep]") {
  const TemporaryFolder folder;
  Config config = tiny();
  config.chunks = {4};
  config.policies = {"tova", "streaming_llm", "kivi"};
  config.regret = true;
  const std::string csv = swept(config, folder / "s");
  SweepOptions options;
  options.memory_bytes = 1;  // every policy by itself
  CHECK(swept(config, folder / "alone", options) == csv);
  const SweepFolder sweep = open_sweep(folder / "s");
  CHECK(sweep.plan.config.regret);
  std::map<std::string, std::size_t> compared;
  for (std::size_t t = 0; t < sweep.plan.traces.size(); ++t) {
    const Trace replayed = Trace::open(sweep.plan.traces[t].path);
    RunRequest request;
    request.specs = expand_policies(config.policies, config.budgets);
    request.engine.chunk = 4;
    request.regret = true;
    const RunReport report = run(replayed, request);
    for (const Cell& cell : sweep.grid.cells) {
      if (sweep.grid.settings[cell.setting].trace != t) continue;
      const auto figures = nlohmann::json::parse(sweep.records.cells.at(cell.id).text);
      const RunResult& same = report.runs[cell.spec];
      INFO(same.spec << " on " << replayed.name());
      CHECK(figures["regret_share"].is_null() == !same.regret);
      CHECK(figures["optimum_footprint_share"].is_null() == !same.regret);
      if (!same.regret) continue;
      ++compared[replayed.name()];
      CHECK(figures["regret_share"] == same.regret->regret);
      CHECK(figures["optimum_retained_attention_share"] == same.regret->optimum);
      CHECK(figures["optimum_footprint_share"] == same.regret->footprint);
    }
  }
  CHECK(compared.size() == 2);
  for (const auto& [name, cells] : compared) CHECK(cells == 4);  // not of kivi

  // A score trace has none, and its cells are done.
  Config scores = config;
  scores.traces = {trace("tiny-scores.safetensors")};
  scores.policies = {"tova"};
  (void)swept(scores, folder / "scores");
  for (const auto& [id, record] : open_sweep(folder / "scores").records.cells) {
    CHECK(record.status == CellRecord::Status::done);
    CHECK(nlohmann::json::parse(record.text)["regret_share"].is_null());
  }

  // Cells with regrets are other cells, and a plan without the word is one without regrets.
  Plan plan = sweep.plan;
  plan.config.regret = false;
  const Grid without = make_grid(plan);
  CHECK(without.cells.front().id != sweep.grid.cells.front().id);
  // Their units cost more, as far as rows are passes of their own: here 4 to a chunk, then one.
  for (const Unit& unit : sweep.grid.units) {
    const SweepTrace& of = plan.traces[sweep.grid.settings[unit.setting].trace];
    const auto same = std::find_if(without.units.begin(), without.units.end(),
                                   [&](const Unit& u) { return u.setting == unit.setting; });
    REQUIRE(same != without.units.end());
    const auto passes =
        std::ssize(make_passes(of.tokens, of.prompt_tokens, of.prompt_tokens, 4).ends);
    CHECK(unit.cost / same->cost == Approx(1 + cost_of_regrets(of.tokens, passes)));
  }
  CHECK(cost_of_regrets(1880, 1369) == Approx(7.28).epsilon(0.01));
  nlohmann::json old = to_json(plan);
  old["config"].erase("regret");
  CHECK_FALSE(parse_plan(old.dump(), "sweep.json").config.regret);
}

TEST_CASE("a sweep that is stopped keeps the units that were done", "[sweep]") {
  const TemporaryFolder folder;
  SweepOptions options;
  options.threads = 1;
  SweepWatch watch;
  std::atomic<bool> stop{false};
  watch.cancelled = [&] { return stop.load(); };
  watch.progress = [&](const SweepProgress& now) { stop = now.cells.done >= 5; };
  CHECK_THROWS_AS(run_sweep(tiny(), folder / "s", options, watch), Interrupted);
  const SweepFolder sweep = open_sweep(folder / "s");
  const Counts counts = count_cells(sweep.grid, sweep.records);
  CHECK(counts.done == 5);  // one unit
  CHECK(counts.left == 15);
  CHECK_THAT(results(folder / "s"), Contains(",left,"));
  CHECK(swept(tiny(), folder / "s") == swept(tiny(), folder / "whole"));
}

TEST_CASE("the critical budget is the smallest that keeps enough", "[sweep]") {
  const TemporaryFolder folder;
  Config config = tiny();
  config.prompts = {5};
  config.chunks = {0};
  config.policies = {"full", "streaming_llm", "knorm"};
  (void)swept(config, folder.path);
  const SweepFolder sweep = open_sweep(folder.path);
  const SweepReport report = make_report(sweep, {});
  SearchOptions options;
  options.least = 0.8;
  options.threads = 1;
  const std::vector<CriticalBudget> found = search_budgets(sweep, report, options);
  REQUIRE(found.size() == report.curves.size());
  std::size_t compared = 0;
  for (const CriticalBudget& one : found) {
    const Curve& curve = report.curves[one.curve];
    INFO(curve.method << " " << sweep.plan.traces[curve.trace].path);
    CHECK(one.why_not.empty() == (curve.method != "full"));
    if (!one.why_not.empty()) continue;
    // Every budget, one run each.
    const Trace of = Trace::open(sweep.plan.traces[curve.trace].path);
    EngineOptions engine;
    engine.prompt = 5;
    for (int budget = 1; budget <= of.meta().tokens; ++budget) {
      RecipeSpec spec = parse_spec(curve.method);
      apply_budget(spec, std::to_string(budget));
      const RunResult run = run_policies(of, {spec}, engine, {}).front();
      if (run.fidelity->decode->mass_mean < options.least) continue;
      CHECK(one.reached);
      CHECK(one.budget == std::to_string(budget));
      CHECK(one.footprint == run.metrics.footprint);
      CHECK(one.retained == run.fidelity->decode->mass_mean);
      ++compared;
      break;
    }
  }
  CHECK(compared == 4);
  CHECK_THAT(to_markdown(found, report, sweep.plan, 0.8),
             Contains("## Critical budgets at 80 %") && Contains("| streaming_llm |"));
  CHECK(to_json(found, report, sweep.plan).size() == found.size());
}

TEST_CASE("what fails is recorded with its reason, and the rest goes on", "[sweep]") {
  const TemporaryFolder folder;
  Config config = tiny();
  config.traces = {trace("tiny-picture.safetensors"), trace("tiny-scores.safetensors")};
  config.policies = {"knorm", "full", "all"};
  config.budgets = {"4"};
  config.prompts = {0, 99};
  config.chunks = {0};
  const Counts counts = run_sweep(config, folder / "s", {});
  CHECK(counts.left == 0);
  const SweepFolder sweep = open_sweep(folder / "s");
  std::map<std::string, std::size_t> failed;
  for (const Cell& cell : sweep.grid.cells) {
    const CellRecord& record = sweep.records.cells.at(cell.id);
    const bool too_long = sweep.grid.settings[cell.setting].prompt == 99;
    if (too_long) {
      CHECK(record.status == CellRecord::Status::failed);
      CHECK_THAT(record.text, Contains("99") && Contains("1 to 12"));
    } else if (record.status == CellRecord::Status::failed) {
      ++failed[sweep.plan.specs[cell.spec].text];
      CHECK_THAT(record.text, Contains("layers.*.q"));
    }
  }
  // A score trace has no keys: who is named fails, who is one of "all" is left out.
  CHECK(failed == std::map<std::string, std::size_t>{{"knorm(budget=4)", 1}});
  CHECK(counts.left_out > 10);
  CHECK(counts.failed == counts.all() / 2 + 1);
}

TEST_CASE("a file of a policy belongs to its cells", "[sweep]") {
  const TemporaryFolder folder;
  const std::string heads = (folder / "heads.json").string();
  Config config = tiny();
  config.policies = {"full", "duoattention(heads=" + heads + ")"};
  config.budgets = {};
  write_file_atomically(heads, "[[0.1]]");
  const Grid before = make_grid(make_plan(config, checksum));
  write_file_atomically(heads, "[[0.9]]");
  const Grid after = make_grid(make_plan(config, checksum));
  CHECK(before.cells[0].id == after.cells[0].id);
  CHECK(before.cells[1].id != after.cells[1].id);
}

TEST_CASE("a wrong configuration is told with its line and its place", "[sweep]") {
  CHECK(error_of("{\n\"traces\": [\"a\"],\n \"chunks\": [0,\n -1]}") ==
        "s.json:4: /chunks/1: found -1, expected 0 or a number of tokens");
  CHECK(error_of("{\"traces\": [\"a\"], \"policies\": [\"snapkv\", \n\"snapvk\"]}") ==
        "s.json:2: /policies/1: unknown policy 'snapvk'; did you mean 'snapkv'?");
  CHECK(error_of("{\"traces\":\n3}") ==
        "s.json:2: /traces: found '3', expected a list of file names");
  CHECK_THAT(error_of("{\"traces\": [\"a\"], \"polices\": []}"),
             Contains("unknown key 'polices'; did you mean 'policies'?"));
  CHECK_THAT(error_of("{\"traces\": [\"a\"],\n\n ]}"), StartsWith("s.json:3: is not valid JSON"));
  CHECK_THAT(error_of("{}"), Contains("has no key 'traces'"));
  CHECK_THAT(error_of("[]"), Contains("s.json:1: the configuration: found '[]'"));
  CHECK_THAT(error_of("{\"traces\": []}"), Contains("has no key 'traces'"));
  CHECK_THAT(error_of("{\"traces\": [\"a\"], \"budgets\": [\"10%\", \"10%\"]}"),
             Contains("/budgets/1: '10%' stands there twice"));
  CHECK_THAT(error_of("{\"traces\": [\"a\"], \"budgets\": [\"10GB\"]}"), Contains("/budgets/0"));
  CHECK_THAT(error_of("{\"traces\": [\"a\"], \"layouts\": [\"paded\"]}"),
             Contains("/layouts/0") && Contains("did you mean 'padded'?"));
  CHECK_THAT(error_of("{\"traces\": [\"a\"], \"seeds\": [-1]}"), Contains("/seeds/0: found '-1'"));
  CHECK_THAT(error_of("{\"traces\": [\"a\"], \"fidelity\": \"some\"}"), Contains("/fidelity"));
  CHECK_THAT(error_of("{\"traces\": [\"a\"], \"sample\": \"heads\"}"),
             Contains("/sample") && Contains("expected rows=K, heads=K or layers=K"));
  CHECK_THAT(error_of("{\"traces\": [\"a\"], \"sample\": \"heads=2\", \"regret\": true}"),
             Contains("/sample: found heads=2 beside regret"));
  CHECK_THAT(error_of("{\"traces\": [\"a\"], \"schema_version\": 2}"), Contains("expected 1"));
  CHECK_THAT(error_of("{\"traces\": [\"a\"], \"traces\": [\"b\"]}"), Contains("repeats the key"));
  // Ten sets of ten values each are not written out before they are refused.
  std::string sets;
  for (const char* key : {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"})
    sets += fmt::format("{}={{0,1,2,3,4,5,6,7,8,9}},", key);
  CHECK_THAT(error_of("{\"traces\": [\"a\"], \"policies\": [\"snapkv(" + sets + "k=1)\"]}"),
             Contains("more than 10000000 runs"));

  const Config config = parse_config(
      R"({"$schema": "x", "traces": ["a"], "budgets": [512, "10%"], "chunks": [0, 4]})", "s.json");
  CHECK(config.budgets == std::vector<std::string>{"512", "10%"});
  CHECK(to_json(parse_config(to_json(config).dump(), "again")) == to_json(config));
  // The published schema knows the same keys.
  const auto schema = nlohmann::json::parse(
      text_of(std::string(KVSPAN_TESTS_DIR) + "/../sim/sweep/config.schema.json"));
  const nlohmann::json keys = to_json(config);
  for (const auto& [key, value] : keys.items()) {
    INFO(key);
    CHECK(schema["properties"].contains(key));
  }
  CHECK(schema["additionalProperties"] == false);
  CHECK(schema["properties"].size() == keys.size() + 2);  // $schema, description
}

TEST_CASE("patterns find traces, and one trace is one", "[sweep]") {
  Config config = tiny();
  config.traces = {trace("tiny-p*.safetensors")};
  const Plan plan = make_plan(config, checksum);
  REQUIRE(plan.traces.size() == 2);
  CHECK(plan.traces[0].path == trace("tiny-paper.safetensors"));
  config.traces.push_back(trace("tiny-paper.safetensors"));
  CHECK_THROWS_WITH(make_plan(config, checksum), Contains("are the same"));
  config.traces = {trace("none-*.safetensors")};
  CHECK_THROWS_WITH(make_plan(config, checksum), Contains("finds no trace"));
}

TEST_CASE("a shard is what is said, or what the launcher says", "[sweep]") {
  std::map<std::string, std::string> variables;
  const auto shard = [&](const std::string& text) {
    const Shard found = parse_shard(text, [&](const char* name) -> const char* {
      const auto at = variables.find(name);
      return at == variables.end() ? nullptr : at->second.c_str();
    });
    return fmt::format("{}/{} {}", found.index, found.count, found.source);
  };
  CHECK(shard("auto") == "0/1 ");
  CHECK(shard("1/16") == "0/16 --shard");
  CHECK(shard("16/16") == "15/16 --shard");
  for (const char* wrong : {"0/4", "5/4", "4", "a/b", "1/", "/2", "-1/2", "1/2/3", ""})
    CHECK_THROWS_AS(shard(wrong), ConfigError);
  variables = {{"OMPI_COMM_WORLD_RANK", "2"}, {"OMPI_COMM_WORLD_SIZE", "4"}};
  CHECK(shard("auto") == "2/4 OpenMPI");
  CHECK(shard("1/2") == "0/2 --shard");
  const auto here = [&] {
    return launch_of([&](const char* name) -> const char* {
             const auto at = variables.find(name);
             return at == variables.end() ? nullptr : at->second.c_str();
           })
        .here;
  };
  CHECK(here() == 1);
  variables["OMPI_COMM_WORLD_LOCAL_SIZE"] = "3";
  CHECK(here() == 3);
  variables["OMPI_COMM_WORLD_LOCAL_SIZE"] = "9";  // of 4: nonsense
  CHECK(here() == 4);
  variables = {{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "8"}};  // the script, not a step
  CHECK(shard("auto") == "0/1 ");
  variables["SLURM_STEP_NUM_TASKS"] = "8";
  CHECK(shard("auto") == "1/8 Slurm step");
  variables["SLURM_STEP_TASKS_PER_NODE"] = "3(x2),2";
  CHECK(here() == 3);
  // An array of 10, 12, .. 18, each with a step of eight: task 14 is the third.
  variables.insert({{"SLURM_ARRAY_TASK_ID", "14"},
                    {"SLURM_ARRAY_TASK_MIN", "10"},
                    {"SLURM_ARRAY_TASK_STEP", "2"},
                    {"SLURM_ARRAY_TASK_COUNT", "5"}});
  CHECK(shard("auto") == "17/40 Slurm array, Slurm step");
  variables["SLURM_ARRAY_TASK_ID"] = "20";
  CHECK_THROWS_AS(shard("auto"), ConfigError);
}
