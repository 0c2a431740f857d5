// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/open_loop.h"

#include <algorithm>
#include <cmath>

#include "sim/report/listing.h"
#include "sim/run/run.h"
#include "sim/sweep/curves.h"

namespace kvspan::tracegen {
namespace {

double agreement(const std::vector<std::uint32_t>& a, const std::vector<std::uint32_t>& b,
                 std::uint32_t never) {
  std::int64_t both = 0;
  std::int64_t either = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    both += a[i] >= never && b[i] >= never ? 1 : 0;
    either += a[i] >= never || b[i] >= never ? 1 : 0;
  }
  return either > 0 ? static_cast<double>(both) / static_cast<double>(either) : 1.0;
}

OpenLoop figures_of(const RunResult& run, const std::vector<std::uint32_t>& deaths) {
  OpenLoop out;
  if (const PhaseFidelity* phase = judged_phase(run)) {
    out.retained = phase->mass_mean;
    if (phase->has_error) out.output_error = phase->error_mean;
  }
  if (run.fidelity && !run.fidelity->spans.empty()) {
    double sum = 0;
    for (const SpanResult& span : run.fidelity->spans) sum += span.resident_share;
    out.spans = sum / static_cast<double>(run.fidelity->spans.size());
  }
  const auto never = static_cast<std::uint32_t>(run.ledger.plan.tokens);
  out.agreement = agreement(run.ledger.death, deaths, never);
  out.drift =
      agreement_by_row(run.ledger.death, deaths, run.ledger.plan.tokens, run.ledger.plan.prompt);
  return out;
}

}  // namespace

std::vector<double> agreement_by_row(const std::vector<std::uint32_t>& a,
                                     const std::vector<std::uint32_t>& b, RowIndex rows,
                                     RowIndex first) {
  // Entries are born one a row and head; they leave one set, then the other.
  std::vector<std::int64_t> left_one(index(rows) + 1, 0);
  std::vector<std::int64_t> left_both(index(rows) + 1, 0);
  for (std::size_t i = 0; i < a.size(); ++i) {
    ++left_one[std::min(index(rows), std::size_t{std::min(a[i], b[i])})];
    ++left_both[std::min(index(rows), std::size_t{std::max(a[i], b[i])})];
  }
  const std::int64_t heads = std::ssize(a) / rows;
  std::int64_t both = 0;
  std::int64_t either = 0;
  std::vector<double> out;
  for (RowIndex row = 0; row < rows; ++row) {
    both += heads - left_one[index(row)];
    either += heads - left_both[index(row)];
    if (row >= first)
      out.push_back(either > 0 ? static_cast<double>(both) / static_cast<double>(either) : 1.0);
  }
  return out;
}

std::vector<std::optional<OpenLoop>> open_loop(const Trace& full,
                                               const std::vector<RecipeSpec>& specs,
                                               const EngineOptions& options,
                                               std::span<const std::vector<std::uint32_t>> deaths) {
  std::vector<std::optional<OpenLoop>> out(specs.size());
  Entrants entrants;
  entrants.lineup.geometry = geometry_of(full, options);
  std::vector<std::size_t> places;
  for (std::size_t s = 0; s < specs.size(); ++s) {
    if (deaths[s].empty() || why_not_enter(full, specs[s], entrants)) continue;
    places.push_back(s);
  }
  const std::vector<RunResult> runs = run_policies(full, entrants, options, {});
  for (std::size_t i = 0; i < runs.size(); ++i)
    out[places[i]] = figures_of(runs[i], deaths[places[i]]);
  return out;
}

double rank_correlation(const std::vector<double>& x, const std::vector<double>& y) {
  const std::vector<double> a = sweep::ranks_of(x);
  const std::vector<double> b = sweep::ranks_of(y);
  const auto n = static_cast<double>(a.size());
  const double middle = (n + 1) / 2;
  double ab = 0;
  double aa = 0;
  double bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - middle) * (b[i] - middle);
    aa += (a[i] - middle) * (a[i] - middle);
    bb += (b[i] - middle) * (b[i] - middle);
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0;
}

}  // namespace kvspan::tracegen
