// SPDX-License-Identifier: Apache-2.0
// The worked example of CONTRIBUTING.md, which is not in the registry: what a contributor's test of
// a new policy looks like, and proof that the example is as short as it says.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "sim/policy/registry.h"
#include "sim/replay/engine.h"
#include "tests/support/cases.h"

namespace kvspan::policies {
PolicyEntry lfu_decay();
}

using namespace kvspan;

namespace {

Policy lfu(const std::string& arguments, const Geometry& geometry) {
  const PolicyEntry entry = policies::lfu_decay();
  const RecipeSpec spec = parse_spec("lfu_decay(" + arguments + ")");
  return bind(make_recipe(entry, spec.front(), geometry), geometry);
}

std::vector<int> deaths_of_lfu(const Trace& trace, const std::string& arguments) {
  const Policy policy = lfu(arguments, geometry_of(trace, {}));
  const Ledger ledger = replay(trace, {policy}, {})[0].ledger;
  const auto deaths = ledger.deaths(0, 0);
  return {deaths.begin(), deaths.end()};
}

// A prompt of four rows: rows 0 and 1 read token 0 eight times as much as any other, rows 2 and 3
// (and both decode rows) an eighth as much.
Trace fading() { return test::weights({std::log(8.0), 0, 0, 0, 0, 0}, 4, {1, 1, -1, -1, -1, -1}); }

std::string text_of(const std::string& path) {
  std::ifstream in(std::string(KVSPAN_TESTS_DIR) + "/" + path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

}  // namespace

TEST_CASE("lfu_decay forgets a token that was read much, but long ago", "[policy][lfu_decay]") {
  // p of the prompt's rows: 1 | 8/9 1/9 | 1/17 8/17 8/17 | 1/25 8/25 8/25 8/25. With decay 1/2:
  //   f_0 = 1/8 + 8/9/4 + 1/17/2 + 1/25 = 0.417    f_1 = 1/9/4 + 8/17/2 + 8/25 = 0.583
  //   f_2 = 8/17/2 + 8/25 = 0.555                  f_3 = 8/25 = 0.320
  // so 1 and 2 stay, and each new token, read once (1/3), is below them (f_1, f_2 > 0.6).
  CHECK(deaths_of_lfu(fading(), "budget=2,decay=0.5") == std::vector<int>{4, 6, 6, 4, 5, 6});
}

TEST_CASE("lfu_decay without decay ranks by the plain sum", "[policy][lfu_decay]") {
  // f_0 = 1 + 8/9 + 1/17 + 1/25 = 1.988, f_1 = 1/9 + 8/17 + 8/25 = 0.902, f_2 = 0.791, f_3 = 0.320.
  CHECK(deaths_of_lfu(fading(), "budget=2,decay=1") == std::vector<int>{6, 6, 4, 4, 5, 6});
}

TEST_CASE("lfu_decay keeps the lower token index where sums tie", "[policy][lfu_decay]") {
  // Only the last row counts: 1, 2 and 3 have 8/25 each, then 1, 2 and 4 a third each.
  CHECK(deaths_of_lfu(fading(), "budget=2,decay=0") == std::vector<int>{4, 6, 6, 4, 5, 6});
}

TEST_CASE("lfu_decay with a budget for all keeps all, and says what it is", "[policy][lfu_decay]") {
  const Trace trace = fading();
  CHECK(deaths_of_lfu(trace, "budget=6") == std::vector<int>(6, 6));
  const Policy policy = lfu("budget=50%", geometry_of(trace, {}));
  CHECK(policy.spec == "lfu_decay(budget=50%,decay=0.9)");
  CHECK(policy.klass == "eviction");
  CHECK(policy.closed_form);
  CHECK_THROWS_AS(lfu("decay=2", geometry_of(trace, {})), ConfigError);
}

TEST_CASE("the example in CONTRIBUTING.md is the compiled one, and at most 45 lines",
          "[policy][lfu_decay]") {
  const std::string source = text_of("policies/lfu_decay.cpp");
  REQUIRE_FALSE(source.empty());
  CHECK(std::count(source.begin(), source.end(), '\n') <= 45);
  INFO("copy tests/policies/lfu_decay.cpp into the code block of CONTRIBUTING.md");
  CHECK(text_of("../CONTRIBUTING.md").find("```cpp\n" + source + "```\n") != std::string::npos);
}
