// SPDX-License-Identifier: Apache-2.0
// The best plan against all plans, against Boost's flow, and by its own proof; and the family
// around it.
#include <algorithm>
#include <random>

#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "sim/optimum/bounds.h"
#include "sim/optimum/certificate.h"
#include "sim/optimum/frontier.h"
#include "sim/optimum/reference_flow.h"
#include "sim/optimum/slot_flow.h"
#include "sim/optimum/survey.h"
#include "sim/optimum/values.h"
#include "tests/sim/optimum/random_values.h"
#include "tests/support/cases.h"

using namespace kvspan;
using namespace kvspan::optimum;
using Catch::Matchers::Contains;

namespace {

// Tries every plan.
class AllPlans {
 public:
  AllPlans(const Values& values, const Capacities& capacities)
      : values_(values), free_(capacities) {
    next(0, 0);
  }
  [[nodiscard]] Mass best() const { return best_; }

 private:
  void next(int entry, Mass gain) {
    if (entry == values_.entries()) {
      best_ = std::max(best_, gain);
      return;
    }
    next(entry + 1, gain);  // dies in its own pass
    const int born = values_.born(entry);
    int end = born;
    for (; end + 1 < values_.passes() && free_[index(end)] > 0; ++end) {
      --free_[index(end)];
      next(entry + 1, gain + values_.gains(entry)[index(end + 1 - born)]);
    }
    while (end > born) ++free_[index(--end)];
  }
  const Values& values_;
  Capacities free_;
  Mass best_ = 0;
};

// Everything that can be said of one instance.
void check_instance(const Values& values, const Capacities& capacities, Mass best) {
  const Optimum found = best_plan(values, capacities);
  CHECK(found.gain == best);
  CHECK(gain_of(values, found.plan) == best);
  CHECK(why_not_best(values, capacities, found.plan, found.prices).empty());
  CHECK(gain_of(values, reference_plan(values, capacities)) == best);
  CHECK(gain_of(values, belady_mass(values, capacities)) <= best);
  const Capacities used = held(values, belady_mass(values, capacities));
  CHECK(std::equal(used.begin(), used.end(), capacities.begin(), std::less_equal<>()));
  CHECK(optimum_select(values, capacities) >= best);
}

}  // namespace

TEST_CASE("the optimum gives up what looks best now", "[optimum]") {
  // Four passes of one row. Entry 0 gains 5 in pass 1 and nothing later; entry 1 gains 3 and 3. One
  // slot: entry 0 for one pass (5), then entry 1 is gone, since both stand in line after pass 1:
  //   0 until pass 1, then 1 until the end   5 + 6   (0 leaves when 1 comes)
  Values values({1, 2, 3, 4}, {0, 1, 2, 3});
  const auto set = [&](int entry, std::vector<Mass> gains) {
    std::copy(gains.begin(), gains.end(), values.gains(entry).begin());
  };
  set(0, {0, 5, 5, 9});
  set(1, {0, 3, 6});
  set(2, {0, 7});
  // Slots of 1 after every pass. Who holds it after passes 0, 1, 2: 0 | 1 | 2 gains 5 + 3 + 7 = 15;
  // 0 throughout 9; 0, then 1 for two 11. With two slots 0 and 1 keep to the end beside nobody, 15,
  // or 0 ends at 1: 5 + 3 + 7 and one slot idle, or 1 gives way to 2: 9 + 3 + 7 = 19.
  const Optimum one = best_plan(values, constant_capacities(values, 1));
  CHECK(one.gain == 15);
  CHECK(one.plan == Plan{1, 2, 3, 3});
  const Optimum two = best_plan(values, constant_capacities(values, 2));
  CHECK(two.gain == 19);
  CHECK(two.plan == Plan{3, 2, 3, 3});
  CHECK(rows_held(values, two.plan) == 4 + 2 + 2 + 1);
  CHECK(held(values, two.plan) == Capacities{1, 2, 2});
  // No slot after pass 1: what is older may not come back.
  CHECK(best_plan(values, {1, 0, 1}).gain == 5 + 7);
  CHECK(optimum_select(values, {1, 0, 1}) == 5 + 7);
  // By mass to come after pass 0: entry 0 (9); after pass 1: entry 1 (6 > 4); after 2: 2 (7 > 3).
  CHECK(belady_mass(values, constant_capacities(values, 1)) == Plan{1, 2, 3, 3});
  // Recall takes the best of each pass: 5, 3, 7.
  CHECK(optimum_select(values, constant_capacities(values, 1)) == 15);
}

TEST_CASE("the optimum is the best of all plans, in every budget and capacity", "[optimum]") {
  const auto seed = std::random_device()();
  INFO("seed " << seed);
  Random random(seed);
  for (int round = 0; round < 500; ++round) {
    const std::vector<RowIndex> ends =
        random_passes(random, 2 + draw(random, 6), 1 + draw(random, 3));
    const Values values = random_values(random, ends, 9);
    Capacities any(ends.size() - 1, 0);
    for (std::int64_t& slots : any) slots = draw(random, 5);
    check_instance(values, any, AllPlans(values, any).best());
    std::vector<std::int64_t> budgets;
    for (std::int64_t budget = 0; budget <= ends.back(); ++budget) budgets.push_back(budget);
    const std::vector<Mass> gains =
        best_plans_by_budget(values, budgets, [&](std::int64_t budget, const Optimum& best) {
          const Capacities slots = constant_capacities(values, budget);
          CHECK(why_not_best(values, slots, best.plan, best.prices).empty());
        });
    REQUIRE(gains.size() == budgets.size());
    for (const std::int64_t budget : budgets) {
      CHECK(gains[index(budget)] == AllPlans(values, constant_capacities(values, budget)).best());
    }
  }
}

TEST_CASE("ten entries, one a pass, with every budget", "[optimum]") {
  Random random(7);
  std::vector<RowIndex> ends;
  for (RowIndex end = 1; end <= 10; ++end) ends.push_back(end);
  const Values values = random_values(random, ends, 1000);
  for (std::int64_t budget = 0; budget <= 4; ++budget) {
    const Capacities slots = constant_capacities(values, budget);
    check_instance(values, slots, AllPlans(values, slots).best());
  }
}

TEST_CASE("on larger heads the solver equals Boost's min-cost flow", "[optimum]") {
  Random random(11);
  for (const int longest : {1, 6}) {
    const Values values = random_values(random, random_passes(random, 48, longest), 100000);
    Capacities slots(index(values.passes() - 1), 0);
    for (std::int64_t& of : slots) of = 4 + draw(random, 8);
    check_instance(values, slots, best_plan(values, slots).gain);
  }
  std::vector<RowIndex> many;
  for (RowIndex row = 0; row <= kReferenceEntries; ++row) many.push_back(row);
  CHECK_THROWS_WITH(reference_plan(Values({kReferenceEntries + 1}, many), {}),
                    Contains("at most 512 entries, and there are 513"));
}

TEST_CASE("a false claim is not certified", "[optimum]") {
  Random random(3);
  const Values values = random_values(random, random_passes(random, 20, 2), 50);
  const Capacities slots = constant_capacities(values, 3);
  const Optimum best = best_plan(values, slots);
  REQUIRE(why_not_best(values, slots, best.plan, best.prices).empty());
  const auto why = [&](const Plan& plan, const std::vector<Mass>& prices) {
    return why_not_best(values, slots, plan, prices);
  };
  Plan plan = best.plan;
  const auto kept = std::find_if(plan.begin(), plan.end(), [&](std::int32_t& end) {
    return end > values.born(static_cast<int>(&end - plan.data()));
  });
  REQUIRE(kept != plan.end());
  const auto entry = static_cast<int>(kept - plan.begin());
  *kept = values.born(entry);  // what it gained is missing, unless that was nothing
  REQUIRE(gain_of(values, plan) < best.gain);
  CHECK_THAT(why(plan, best.prices), Contains("and the bound is"));
  *kept = values.born(entry) - 1;
  CHECK_THAT(why(plan, best.prices), Contains("dies at the end of pass"));
  CHECK_THAT(why(Plan(plan.size(), values.passes() - 1), best.prices),
             Contains("entries in 3 slots"));
  std::vector<Mass> prices = best.prices;
  prices[4] += 1000;
  CHECK_THAT(why(best.plan, prices), Contains("and the bound is"));
  prices[4] = -1;
  CHECK_THAT(why(best.plan, prices), Contains("costs -1"));
}

TEST_CASE("values are the attention received, pass by pass", "[optimum]") {
  // Weights 1 in every row: row r gives 1 / (r + 1) to each of its keys. Passes of rows 0-1, 2, 3.
  const Trace trace = test::weights({0, 0, 0, 0}, 2);
  const std::vector<RowIndex> ends{2, 3, 4};
  const Values all = values_of_head(trace, {0, 0, 1}, ends, std::vector<char>(4, 1));
  CHECK(to_share(all.own()) == Approx(1 + 1.0 + 1.0 / 3 + 1.0 / 4));  // rows 0 and 1 wholly
  CHECK(to_share(all.gains(0)[1]) == Approx(1.0 / 3));
  CHECK(to_share(all.gains(0)[2]) == Approx(1.0 / 3 + 1.0 / 4));
  CHECK(to_share(all.gains(2)[1]) == Approx(1.0 / 4));
  CHECK(all.born(1) == 0);
  CHECK(all.born(2) == 1);
  CHECK(all.rows_held(1, 0) == 1);
  CHECK(all.rows_held(1, 2) == 3);
  const Values last = values_of_head(trace, {0, 0, 1}, ends, std::vector<char>{0, 0, 0, 1});
  CHECK(to_share(last.own()) == Approx(1.0 / 4));
  CHECK(last.gains(0)[1] == 0);
  CHECK(to_share(last.gains(0)[2]) == Approx(1.0 / 4));
  // Deaths at rows 2 and 3 are deaths at the ends of passes 0 and 1.
  const std::vector<std::uint32_t> deaths{4, 2, 3, 4};
  CHECK(occupancy(all, deaths) == Capacities{1, 1});

  const Trace scores = Trace::open(std::string(KVSPAN_TRACES_DIR) + "/tiny-scores.safetensors");
  const RowIndex tokens = scores.meta().tokens;
  CHECK_THROWS_AS(values_of_head(scores, {0, 0, scores.meta().kv_heads}, {tokens},
                                 std::vector<char>(index(tokens), 1)),
                  TraceError);
}

TEST_CASE("the frontier takes the steepest edges of all hulls", "[optimum]") {
  // Entry 0 gains 1, 5, 6 in its three later rows: corners (2, 5) and (3, 6), as (1, 1) lies below
  // the line to (2, 5). Entry 1 gains 4, 5: corners (1, 4), (2, 5). In units of 2^32 / 16.
  Values values({1, 2, 3, 4}, {0, 1, 2, 3});
  const Mass unit = Mass{1} << 28U;
  const auto set = [&](int entry, std::vector<Mass> gains) {
    for (std::size_t j = 0; j < gains.size(); ++j) values.gains(entry)[j] = gains[j] * unit;
  };
  set(0, {0, 1, 5, 6});
  set(1, {0, 4, 5});
  values.add_own(5 * unit);
  Frontier frontier;
  frontier.add(values);
  frontier.finish(1, 1);  // 16 units of mass, all of them
  // From 4 rows (each entry its own) and 5 units: + 1 row 4, + 2 rows 5, twice + 1 row 1; of 10.
  const std::vector<std::pair<double, double>> corners{{4, 5}, {5, 9}, {7, 14}, {8, 15}, {9, 16}};
  for (const auto& [rows, mass] : corners) {
    CHECK(frontier.retained_at(rows / 10) == Approx(mass / 16));
    CHECK(frontier.footprint_at(mass / 16) == Approx(rows / 10));
  }
  CHECK(frontier.retained_at(0.6) == Approx(11.5 / 16));  // half of two rows that gain 5
  CHECK(frontier.footprint_at(11.5 / 16) == Approx(0.6));
  CHECK(frontier.footprint_at(0) == Approx(0.4));
  CHECK(frontier.retained_at(1) == Approx(1));
  const std::vector<Frontier::Point> points = frontier.points(100);
  REQUIRE(points.size() == 5);
  CHECK(points[2].footprint == Approx(0.7));
}

TEST_CASE("no plan of any capacity lies above the frontier", "[optimum]") {
  Random random(5);
  for (int round = 0; round < 30; ++round) {
    const Values values = random_values(random, random_passes(random, 24, 3), 1 << 28);
    Frontier frontier;
    frontier.add(values);
    frontier.finish(1, 1);
    Capacities slots(index(values.passes() - 1), 0);
    for (std::int64_t& of : slots) of = draw(random, 12);
    const Plan plan = best_plan(values, slots).plan;
    const double footprint = static_cast<double>(rows_held(values, plan)) / (24.0 * 25 / 2);
    CHECK(to_share(gain_of(values, plan)) <= frontier.retained_at(footprint) + 1e-9);
  }
}

TEST_CASE("the family is in order, and shared slots are worth no less", "[optimum]") {
  const Trace trace = test::random_trace(40, 16, 9);
  SurveyRequest request;
  for (RowIndex end = 16; end <= 40; ++end) request.ends.push_back(end);
  request.counts.assign(40, 0);
  std::fill(request.counts.begin() + 16, request.counts.end(), char{1});
  request.budgets = {0, 3, 8, 40};
  request.shared = request.reference = true;
  const Survey found = survey(trace, request);
  CHECK(found.heads == 4);
  CHECK(found.rows == 24);
  CHECK(found.certified == 4 * (4 + 2 + 1));  // budgets, of heads, layers and the model
  REQUIRE(found.bounds.size() == 4);
  constexpr double kRounding = 1e-9;
  for (const BudgetBounds& bounds : found.bounds) {
    CHECK(bounds.belady_mass <= bounds.optimum);
    CHECK(bounds.optimum <= *bounds.optimum_layer);
    CHECK(*bounds.optimum_layer <= *bounds.optimum_global);
    CHECK(bounds.optimum <= bounds.optimum_select);
    CHECK(bounds.optimum <= bounds.optimum_footprint + kRounding);
    CHECK(found.by_budget[index(bounds.budget)] == Approx(bounds.optimum));
    double mean = 0;
    for (const std::vector<double>& layer : bounds.heads) {
      for (const double head : layer) mean += head / 4;
    }
    CHECK(mean == Approx(bounds.optimum));
  }
  CHECK(found.bounds[0].optimum == Approx(found.own));
  CHECK(found.bounds[3].optimum == Approx(1));
  CHECK(found.bounds[3].footprint == Approx(1));
  CHECK(found.bounds[1].optimum < found.bounds[2].optimum);
}

TEST_CASE("a solver stops when it is told to", "[optimum]") {
  Random random(1);
  const Values values = random_values(random, random_passes(random, 30, 1), 9);
  double last = -1;
  SolverWatch watch;
  watch.progress = [&](double done) { last = done; };
  (void)best_plan(values, constant_capacities(values, 4), watch);
  CHECK(last >= 0);
  CHECK(last < 1);
  watch.cancelled = [] { return true; };
  CHECK_THROWS_AS(best_plan(values, constant_capacities(values, 4), watch), Interrupted);
}
