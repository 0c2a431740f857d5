// SPDX-License-Identifier: Apache-2.0
// What holds for all policies with fitted weights.
#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "tests/support/cases.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using test::random_trace;

TEST_CASE("replay equals the closed forms of the fitted policies", "[policy][analytic]") {
  test::Random random(5);
  for (int round = 0; round < 20; ++round) {
    const int prompt = test::pick(random, 1, 70);
    const int generated = test::pick(random, 0, 20);
    const Trace trace = random_trace(prompt + generated, prompt, random());
    EngineOptions options;
    options.chunk = test::pick(random, 0, 30);
    const int budget = test::pick(random, 1, 60);
    for (const std::string& spec :
         {fmt::format("foresightkv(budget={},interval={})", budget, test::pick(random, 1, 9)),
          fmt::format("judgeq(budget={},window={},m=3)", budget, test::pick(random, 0, 9)),
          fmt::format("locret(budget={},local={},stabilizers={})", budget,
                      test::pick(random, 0, 20), test::pick(random, 0, 30)),
          fmt::format("locret(budget={}%,local={})", budget, test::pick(random, 0, 20))}) {
      INFO(spec << " n=" << prompt << " m=" << generated << " C=" << options.chunk);
      CHECK(test::off_closed_form(trace, spec, options) == "");
    }
  }
}

TEST_CASE("bounds keep more of the future than what is fitted", "[policy][fitted]") {
  double golden = 0, fitted = 0, control = 0;
  for (std::uint64_t seed = 1; seed < 6; ++seed) {
    const Trace trace = random_trace(100, 80, seed);
    const auto mass = [&](const std::string& spec) {
      return test::run_one(trace, spec, {}).fidelity->decode->mass_mean;
    };
    golden += mass("foresightkv(scorer=golden,budget=20,interval=5)");
    fitted += mass("foresightkv(scorer=ridge,select=topk,budget=20,interval=5)");
    control += mass("random(budget=20)");
    CHECK(mass("write_gate(gate=oracle,rate=25%,window=8)") >
          mass("write_gate(gate=random,rate=25%,window=8)"));
  }
  CHECK(golden > fitted);
  CHECK(golden > control);
}
