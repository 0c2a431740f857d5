// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/fidelity.h"

#include <cmath>

#include <catch2/catch.hpp>

#include "sim/ledger/ledger.h"
#include "sim/replay/options.h"

using namespace kvspan;

namespace {

std::vector<RowIndex> measured(const FidelityPlan& plan) {
  std::vector<RowIndex> out;
  for (RowIndex row = 0; row < static_cast<RowIndex>(plan.measured.size()); ++row) {
    if (plan.measures(row)) out.push_back(row);
  }
  return out;
}

// One layer, one head, 8 prompt rows and 4 decode rows; nothing ever leaves.
Ledger ledger_of_twelve() {
  Ledger ledger;
  ledger.plan = make_passes(12, 8, 8, 0);
  ledger.layers = ledger.model_layers = ledger.heads = ledger.query_heads = 1;
  ledger.death.assign(12, 12);
  return ledger;
}

}  // namespace

TEST_CASE("rows of a sample lie evenly in each phase, and stand for the others", "[fidelity]") {
  const FidelityPlan plan = plan_fidelity(12, 8, 2, 0);
  CHECK(measured(plan) == std::vector<RowIndex>{2, 6, 8, 9, 10, 11});
  CHECK(plan.weight(2) == 4.0);
  CHECK(plan.weight(9) == 1.0);
  CHECK(measured(plan_fidelity(12, 8, 9, 1)) == std::vector<RowIndex>{0, 1, 2, 3, 4, 5, 6, 7, 10});
  CHECK(plan_fidelity(12, 8, 9, 1).weight(10) == 4.0);
  CHECK(measured(plan_fidelity(4, 4, 0, 3)) == std::vector<RowIndex>{0, 1, 2, 3});
}

TEST_CASE("only prompts beyond a length are sampled, where nobody says how many rows",
          "[fidelity]") {
  EngineOptions options;
  CHECK(options.prompt_rows_measured(kLongPrompt + 1) == 0);
  options.sample_long_prompts = true;
  CHECK(options.prompt_rows_measured(kLongPrompt) == 0);
  CHECK(options.prompt_rows_measured(kLongPrompt + 1) == kSampledRows);
  options.fidelity_rows = 7;
  CHECK(options.prompt_rows_measured(kLongPrompt + 1) == 7);
}

TEST_CASE("of all rows together a sampled one counts for those that it stands for", "[fidelity]") {
  FidelityPlan plan = plan_fidelity(12, 8, 2, 0);
  plan.output_error = true;
  plan.spans = {{"early", 0, 2}};
  LayerFidelity layer(plan, 1);
  const std::vector<double> mass = {0.25, 0.5, 1, 1, 0.75, 0.125};
  const std::vector<RowIndex> rows = measured(plan);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    layer.add_mass(0, rows[i], {mass[i], mass[i]});
    layer.add_error(0, rows[i], 1 - mass[i]);
    layer.add_span_loss(0, rows[i], {rows[i] == 2 ? 0.5 : 0.0, 0.0});
  }
  FidelityTotal total(plan, 1, 1);
  total.add(std::move(layer));
  const Fidelity fidelity = total.finish(ledger_of_twelve());
  CHECK(fidelity.rows_measured == 6);
  CHECK(fidelity.prefill_sample == 2);
  CHECK_FALSE(fidelity.decode_sample.has_value());
  CHECK(fidelity.prefill->mass_mean == Approx(0.375));
  CHECK(fidelity.decode->mass_mean == Approx(2.875 / 4));
  // Twelve rows: 4 x 0.25, 4 x 0.5, and four of decode.
  CHECK(fidelity.all->values == 6);
  CHECK(fidelity.all->mass_mean == Approx((1 + 2 + 2.875) / 12));
  CHECK(fidelity.all->mass_min == 0.125);
  CHECK(fidelity.all->mass_p5 == 0.125);  // the first of twelve
  CHECK(fidelity.all->error_mean == Approx(1 - (1 + 2 + 2.875) / 12));
  CHECK(fidelity.all->error_p95 == 0.875);
  // Two prompt rows behind the span were measured, for eight; and four of decode.
  CHECK(fidelity.spans.at(0).mass_lost == Approx(4 * 0.5 / 12));
}

TEST_CASE("percentiles of weighted values are those of as many values", "[fidelity]") {
  Distribution few(1.0F);
  Distribution many(1.0F);
  for (const float value : {0.1F, 0.4F}) few.add(value);
  for (const float value : {0.2F, 0.3F, 0.5F, 1.0F, 1.0F}) many.add(value);
  // 0.1 x 3, 0.2, 0.3, 0.4 x 3, 0.5, 1 x 2: eleven values.
  const Distribution::Part parts[] = {{&few, 3}, {&many, 1}};
  const std::vector<float> sorted = {0.1F, 0.1F, 0.1F, 0.2F, 0.3F, 0.4F,
                                     0.4F, 0.4F, 0.5F, 1.0F, 1.0F};
  for (std::size_t rank = 1; rank <= sorted.size(); ++rank) {
    CHECK(Distribution::percentile(parts, static_cast<double>(rank) / 11) ==
          static_cast<double>(sorted[rank - 1]));
  }
}
