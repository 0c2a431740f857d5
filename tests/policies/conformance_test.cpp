// SPDX-License-Identifier: Apache-2.0
// What every policy of the registry must hold, picked up from the registry by itself.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/error.h"
#include "sim/predict/analytic.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using test::random_trace;

namespace {

bool takes(const PolicyEntry& entry, const std::string& parameter) {
  return std::any_of(entry.parameters.begin(), entry.parameters.end(),
                     [&](const Parameter& p) { return p.name == parameter; });
}

// Every policy that can be made without files, at a few sizes, alone and chunked.
std::vector<std::string> subjects() {
  std::vector<std::string> out;
  for (const PolicyEntry& entry : registry()) {
    if (entry.wrapper || entry.needs_file || !entry.alone.empty()) continue;
    if (!takes(entry, "budget")) {
      out.push_back(entry.name);
      continue;
    }
    for (const char* budget : {"1", "7", "30%", "40", "1000"}) {
      const std::string spec = fmt::format("{}(budget={})", entry.name, budget);
      out.push_back(spec);
      try {
        (void)make_policy("chunked(" + spec + ")", geometry_of(random_trace(12, 8, 1), {}));
        out.push_back("chunked(" + spec + ")");
      } catch (const ConfigError&) {
        SUCCEED("chunked refuses it");
      }
    }
  }
  return out;
}

}  // namespace

TEST_CASE("every policy has its tests in one file", "[conformance]") {
  // Of the files beside this one: a test of a policy carries its name as a tag.
  std::map<std::string, std::string> text;
  for (const auto& file : std::filesystem::directory_iterator(KVSPAN_TESTS_DIR "/policies")) {
    std::stringstream content;
    content << std::ifstream(file.path()).rdbuf();
    text[file.path().filename().string()] = content.str();
  }
  for (const PolicyEntry& entry : registry()) {
    std::vector<std::string> found;
    for (const auto& [name, content] : text) {
      if (content.find('[' + entry.name + ']') != std::string::npos) found.push_back(name);
    }
    INFO(fmt::format("[{}] is a tag in {}, expected one file of tests/policies", entry.name,
                     found.empty() ? "none" : fmt::format("{}", fmt::join(found, ", "))));
    CHECK(found.size() == 1);
  }
}

TEST_CASE("no policy holds more than its declared capacity after an eviction", "[conformance]") {
  const Trace trace = random_trace(90, 64, 5);
  EngineOptions options;
  options.chunk = 16;
  const Geometry geometry = geometry_of(trace, options);
  for (const std::string& spec : subjects()) {
    INFO(spec);
    const Policy policy = make_policy(spec, geometry);
    if (policy.demotes) continue;  // a capacity is of what competes, and the ledger holds all
    const RunResult run = test::run_one(trace, spec, options);
    for (std::size_t i = 0; i + 1 < run.ledger.plan.ends.size(); ++i) {
      const Pass pass = pass_at(run.ledger.plan, i);
      for (const Rule& rule : policy.rules) {
        if (!rule.schedule.due(pass) || rule.threshold) continue;  // an admission has no size
        for (int l = 0; l < run.ledger.layers; ++l) {
          for (int h = 0; h < run.ledger.heads; ++h) {
            const auto deaths = run.ledger.deaths(l, h);
            const RowIndex first = rule.domain == Domain::newborn ? pass.begin : 0;
            std::int64_t held = 0;
            std::int64_t competing = 0;
            for (RowIndex t = first; t < pass.end; ++t) {
              held += static_cast<RowIndex>(deaths[static_cast<std::size_t>(t)]) > pass.end ? 1 : 0;
              competing +=
                  static_cast<RowIndex>(deaths[static_cast<std::size_t>(t)]) >= pass.end ? 1 : 0;
            }
            const Sizing sizing = rule.sizing(pass).among(competing);
            CHECK(held <= rule.budget->kept(geometry.shape(l, policy.per_query_head), h, sizing));
          }
        }
      }
    }
  }
}

TEST_CASE("entries die once, after their birth, at the end of a pass", "[conformance]") {
  const Trace trace = random_trace(60, 40, 6);
  EngineOptions options;
  options.chunk = 12;
  for (const std::string& spec : subjects()) {
    INFO(spec);
    const RunResult run = test::run_one(trace, spec, options);
    for (int l = 0; l < run.ledger.layers; ++l) {
      for (int h = 0; h < run.ledger.heads; ++h) {
        const auto deaths = run.ledger.deaths(l, h);
        for (std::size_t t = 0; t < deaths.size(); ++t) {
          const auto death = static_cast<RowIndex>(deaths[t]);
          CHECK(death > static_cast<RowIndex>(t));
          CHECK(
              std::binary_search(run.ledger.plan.ends.begin(), run.ledger.plan.ends.end(), death));
        }
      }
    }
  }
}

TEST_CASE("the same seed gives the same ledger", "[conformance]") {
  const Trace trace = random_trace(60, 40, 7);
  for (const std::string& spec : subjects()) {
    INFO(spec);
    CHECK(test::run_one(trace, spec, {}).ledger.death ==
          test::run_one(trace, spec, {}).ledger.death);
  }
}

TEST_CASE("a budget that holds everything is the full cache", "[conformance]") {
  const Trace trace = random_trace(60, 40, 8);
  for (const PolicyEntry& entry : registry()) {
    if (!takes(entry, "budget") || entry.needs_file) continue;
    INFO(entry.name);
    const std::string spec = entry.name + "(budget=60)";
    const RunResult run = test::run_one(trace, spec, {});
    CHECK(run.metrics.footprint == 1.0);
    CHECK(run.fidelity->all->mass_min == 1.0);
    // Whoever holds entries in fewer bits does so at any budget.
    if (make_policy(spec, geometry_of(trace, {})).representations.size() > 1) continue;
    CHECK(run.fidelity->all->error_max == 0.0);
  }
}

TEST_CASE("retained mass never falls as a nested budget grows", "[conformance]") {
  const Trace trace = random_trace(80, 70, 9);
  for (const char* name : {"random", "snapkv", "streaming_llm"}) {
    double last = 0;
    for (const int budget : {2, 5, 10, 20, 40, 70}) {
      INFO(name << " " << budget);
      const RunResult run = test::run_one(trace, fmt::format("{}(budget={})", name, budget), {});
      CHECK(run.fidelity->decode->mass_mean >= last - 1e-9);
      last = run.fidelity->decode->mass_mean;
    }
  }
}

TEST_CASE("every parameter refuses what it cannot be", "[conformance]") {
  const Geometry geometry = geometry_of(random_trace(20, 16, 1), {});
  for (const PolicyEntry& entry : registry()) {
    const std::string inner = entry.wrapper ? "tova," : "";
    CHECK_THROWS_AS(
        make_policy(fmt::format("{}({}no_such_parameter=1)", entry.name, inner), geometry),
        ConfigError);
    for (const Parameter& p : entry.parameters) {
      INFO(entry.name << "(" << p.name << ")");
      CHECK_FALSE(p.help.empty());
      if (p.kind == Parameter::Kind::text) continue;
      CHECK_THROWS_AS(
          make_policy(fmt::format("{}({}{}=\"?\")", entry.name, inner, p.name), geometry),
          ConfigError);
      if (p.kind == Parameter::Kind::count || p.kind == Parameter::Kind::real) {
        CHECK_THROWS_AS(
            make_policy(fmt::format("{}({}{}=-1)", entry.name, inner, p.name), geometry),
            ConfigError);
        CHECK_THROWS_AS(
            make_policy(fmt::format("{}({}{}=1e300)", entry.name, inner, p.name), geometry),
            ConfigError);
      }
    }
    CHECK_FALSE(entry.summary.empty());
    CHECK_FALSE(entry.source.empty());
    CHECK_FALSE(entry.needs.empty());
  }
}

TEST_CASE("a policy that does not look at attention gives the same ledger without it",
          "[conformance]") {
  // Probabilities of no row at all: only policies that need none may run.
  const Trace trace = random_trace(40, 30, 3);
  test::TraceSpec blind;
  blind.meta = trace.meta();
  for (int l = 0; l < 2; ++l) {
    test::LayerSpec layer;
    layer.rows = {39};
    layer.dense.assign(4 * 40, 0.025);
    layer.lse.assign(4, 0.0);
    blind.layers.push_back(layer);
  }
  const Trace nothing = test::make_trace(blind);
  int ran = 0;
  for (const std::string& spec : subjects()) {
    INFO(spec);
    try {
      const RunResult run = test::run_one(nothing, spec, {});
      CHECK(run.ledger.death == test::run_one(trace, spec, {}).ledger.death);
      ++ran;
    } catch (const TraceError& e) {
      CHECK(std::string(e.what()).find("needs") != std::string::npos);
    }
  }
  CHECK(ran >= 10);
}

TEST_CASE("replay equals the closed form of every policy that has one", "[conformance][analytic]") {
  test::Random random(99);
  int compared = 0;
  const int rounds = test::share_of_cases(25);
  for (int round = 0; round < rounds; ++round) {
    const int prompt = test::pick(random, 1, 60);
    const int generated = test::pick(random, 0, 20);
    const Trace trace = random_trace(prompt + generated, prompt, random());
    EngineOptions options;
    options.chunk = test::pick(random, 0, 1) == 0 ? 0 : test::pick(random, 1, 30);
    options.fidelity = false;
    for (const std::string& spec : subjects()) {
      Accounting accounting;
      accounting.layerwise = test::pick(random, 0, 1) == 0;
      if (!make_policy(spec, geometry_of(trace, options)).closed_form) continue;
      INFO(spec << " n=" << prompt << " m=" << generated << " C=" << options.chunk
                << " layerwise=" << accounting.layerwise);
      CHECK(test::off_closed_form(trace, spec, options, accounting) == "");
      ++compared;
    }
  }
  CHECK(compared > 20 * rounds);
}
