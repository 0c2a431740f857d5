// SPDX-License-Identifier: Apache-2.0
// The solver against two programs that share nothing with it: the best of all plans, by the sets of
// entries that may be held after each pass, and a linear program, by the simplex method.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>

#include <catch2/catch.hpp>

#include "sim/optimum/bounds.h"
#include "sim/optimum/certificate.h"
#include "sim/optimum/slot_flow.h"
#include "tests/sim/optimum/random_values.h"

using namespace kvspan;
using namespace kvspan::optimum;

namespace {

// The most that any plan gains: over every set S of entries that may be held after pass k, the most
// so far. From S the next pass goes to any set of at most c entries out of S and its newborns.
Mass best_of_all(const Values& values, const Capacities& capacities) {
  const auto entries = static_cast<unsigned>(values.entries());
  const auto newborns = [&](int pass) {
    unsigned set = 0;
    for (unsigned i = 0; i < entries; ++i)
      set |= values.born(static_cast<int>(i)) == pass ? 1U << i : 0U;
    return set;
  };
  // What the entries of S, held after pass k, receive in pass k + 1.
  const auto receive = [&](unsigned set, int pass) {
    Mass sum = 0;
    for (unsigned i = 0; i < entries; ++i) {
      if ((set >> i & 1U) == 0) continue;
      const int entry = static_cast<int>(i);
      const auto at = static_cast<std::size_t>(pass - values.born(entry));
      sum += values.gains(entry)[at + 1] - values.gains(entry)[at];
    }
    return sum;
  };
  std::vector<Mass> best(std::size_t{1} << entries, -1);
  best[0] = 0;
  for (int pass = 0; pass + 1 < values.passes(); ++pass) {
    std::vector<Mass> next(best.size(), -1);
    for (unsigned from = 0; from < best.size(); ++from) {
      if (best[from] < 0) continue;
      const unsigned there = from | newborns(pass);
      for (unsigned set = there;; set = (set - 1) & there) {  // its subsets
        if (__builtin_popcount(set) <= capacities[static_cast<std::size_t>(pass)])
          next[set] = std::max(next[set], best[from]);
        if (set == 0) break;
      }
    }
    for (unsigned set = 0; set < next.size(); ++set) {
      if (next[set] >= 0) next[set] += receive(set, pass);
    }
    best = std::move(next);
  }
  return *std::max_element(best.begin(), best.end());
}

// max c x, A x <= b, x >= 0, for b >= 0: the simplex method on a dense tableau, by Bland's rule,
// which cannot cycle. Here all pivots are 1 or -1 (the rows are a network's), so that doubles are
// exact.
class Simplex {
 public:
  Simplex(std::vector<std::vector<double>> rows, std::vector<double> limits,
          std::vector<double> worth)
      : columns_(worth.size()), rows_(std::move(rows)), basis_(rows_.size()) {
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      rows_[r].resize(columns_ + rows_.size() + 1, 0);
      rows_[r][columns_ + r] = 1;  // its slack
      rows_[r].back() = limits[r];
      basis_[r] = columns_ + r;
    }
    for (double& of : worth) of = -of;
    worth.resize(columns_ + rows_.size() + 1, 0);
    rows_.push_back(std::move(worth));
  }

  double solve() {
    while (step()) {
    }
    return rows_.back().back();
  }

 private:
  bool step() {
    const std::vector<double>& worth = rows_.back();
    const auto enters = static_cast<std::size_t>(
        std::find_if(worth.begin(), worth.end() - 1, [](double x) { return x < 0; }) -
        worth.begin());
    if (enters + 1 == worth.size()) return false;
    std::size_t leaves = rows_.size();
    for (std::size_t r = 0; r + 1 < rows_.size(); ++r) {
      if (rows_[r][enters] <= 0) continue;
      if (leaves == rows_.size()) leaves = r;
      const double a = rows_[r].back() / rows_[r][enters];
      const double b = rows_[leaves].back() / rows_[leaves][enters];
      if (a < b || (a == b && basis_[r] < basis_[leaves])) leaves = r;
    }
    REQUIRE(leaves < rows_.size());  // bounded
    basis_[leaves] = enters;
    std::vector<double>& pivot = rows_[leaves];
    const double by = pivot[enters];
    for (double& x : pivot) x /= by;
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      const double times = rows_[r][enters];
      if (r == leaves || times == 0) continue;
      for (std::size_t c = 0; c < pivot.size(); ++c) rows_[r][c] -= times * pivot[c];
    }
    return true;
  }

  std::size_t columns_;
  std::vector<std::vector<double>> rows_;  // [constraints + 1][columns + slacks + 1]; last: worth
  std::vector<std::size_t> basis_;
};

// x = the share of entry i that dies at the end of pass q: at most one in all, and of all entries
// at most c_k across the end of pass k. Nothing says that shares are whole.
double by_linear_program(const Values& values, const Capacities& capacities) {
  std::vector<double> worth;
  std::vector<std::vector<double>> rows(capacities.size() +
                                        static_cast<std::size_t>(values.entries()));
  std::vector<double> limits(capacities.begin(), capacities.end());
  limits.resize(rows.size(), 1);
  for (int entry = 0; entry < values.entries(); ++entry) {
    for (int pass = values.born(entry) + 1; pass < values.passes(); ++pass) {
      worth.push_back(static_cast<double>(
          values.gains(entry)[static_cast<std::size_t>(pass - values.born(entry))]));
      for (std::size_t r = 0; r < rows.size(); ++r) {
        const bool crosses = r < capacities.size() && static_cast<int>(r) >= values.born(entry) &&
                             static_cast<int>(r) < pass;
        const bool own = r == capacities.size() + static_cast<std::size_t>(entry);
        rows[r].push_back(crosses || own ? 1 : 0);
      }
    }
  }
  return Simplex(std::move(rows), std::move(limits), std::move(worth)).solve();
}

}  // namespace

TEST_CASE("every budget of heads of up to ten entries has the best of all plans", "[optimum]") {
  // Three thousand heads with KVSPAN_DEEP=1, some 20,000 optima.
  const int heads = std::getenv("KVSPAN_DEEP") == nullptr ? 300 : 3000;
  const auto seed = std::random_device()();
  INFO("seed " << seed);
  Random random(seed);
  for (int head = 0; head < heads; ++head) {
    const Values values =
        random_values(random, random_passes(random, 2 + draw(random, 9), 1 + draw(random, 3)),
                      head % 2 == 0 ? 3 : 1000);
    std::vector<std::int64_t> budgets;
    for (int budget = 0; budget <= values.entries(); ++budget) budgets.push_back(budget);
    const std::vector<Mass> gains = best_plans_by_budget(values, budgets, nullptr);
    for (const std::int64_t budget : budgets) {
      const Capacities slots = constant_capacities(values, budget);
      const Mass best = best_of_all(values, slots);
      CHECK(gains[static_cast<std::size_t>(budget)] == best);
      const Optimum alone = best_plan(values, slots);
      CHECK(alone.gain == best);
      CHECK(why_not_best(values, slots, alone.plan, alone.prices).empty());
      CHECK(gain_of(values, belady_mass(values, slots)) <= best);
      CHECK(optimum_select(values, slots) >= best);
    }
  }
}

TEST_CASE("on larger heads a linear program finds nothing better", "[optimum]") {
  const int heads = std::getenv("KVSPAN_DEEP") == nullptr ? 4 : 60;
  Random random(17);
  for (int head = 0; head < heads; ++head) {
    const Values values =
        random_values(random, random_passes(random, 24 + 6 * (head % 5), 1 + head % 3),
                      head % 2 == 0 ? 9 : 100000);
    Capacities slots = constant_capacities(values, 2 + head % 6);
    if (head % 2 == 1) {
      for (std::int64_t& of : slots) of = draw(random, 8);
    }
    INFO("head " << head);
    CHECK(static_cast<double>(best_plan(values, slots).gain) == by_linear_program(values, slots));
  }
}
