// SPDX-License-Identifier: Apache-2.0
#include "sim/optimum/output_error.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <numeric>

#include <fmt/format.h>

#include "sim/attention/kernels.h"
#include "sim/base/error.h"
#include "sim/optimum/head_rows.h"
#include "sim/optimum/heads.h"

namespace kvspan::optimum {
namespace {

double norm_of(std::span<const double> x) {
  return std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
}

double length_between(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

// Outputs of one row.
class Outputs {
 public:
  Outputs(const Trace& trace, const HeadRows& rows)
      : dim_(trace.meta().v_head_dim),
        values_(rows.values()),
        everything_(index(trace.meta().tokens)) {
    std::iota(everything_.begin(), everything_.end(), 0);
  }

  // o, or o' of some entries, ascending: their weighted values / `total`.
  [[nodiscard]] std::vector<double> of(const HeadRows::Row& row,
                                       std::span<const std::int32_t> entries, double total) const {
    std::vector<double> out(index(dim_));
    double* const to = out.data();
    kernels::weighted_values(&row.terms, 1, entries.data(), std::ssize(entries), values_, dim_,
                             dim_, &to);
    for (double& x : out) x /= total;
    return out;
  }
  [[nodiscard]] std::vector<double> full(const HeadRows::Row& row) const {
    return of(row, std::span(everything_).first(index(row.row) + 1), row.sum + row.sink);
  }

  // |v_t - o|
  [[nodiscard]] double from(const std::vector<double>& o, std::size_t t) const {
    const float* const v = values_ + t * index(dim_);
    double sum = 0;
    for (std::size_t i = 0; i < o.size(); ++i) {
      const double d = static_cast<double>(v[i]) - o[i];
      sum += d * d;
    }
    return std::sqrt(sum);
  }

 private:
  int dim_;
  const float* values_;  // [tokens, dim]
  std::vector<std::int32_t> everything_;
};

void require_values(const Trace& trace) {
  if (trace.is_qkv() && trace.has_v()) return;
  throw TraceError(fmt::format(
      "{}: output errors need what every row reads, which {}; expected a trace with "
      "layers.*.q, .k and .v",
      trace.name(),
      trace.is_qkv() ? "a trace without v does not hold" : "a score trace does not hold"));
}

PlanErrors& operator+=(PlanErrors& a, const PlanErrors& b) {
  a.retained += b.retained;
  a.weighted += b.weighted;
  a.error += b.error;
  a.bound += b.bound;
  return a;
}

PlanErrors scaled(const PlanErrors& a, double by) {
  return {a.retained * by, a.weighted * by, a.error * by, a.bound * by};
}

// Both plans of every budget, in one head.
struct HeadPlans {
  std::vector<Mass> least;
  std::vector<std::int64_t> rows;
  std::vector<std::vector<RowIndex>> deaths;  // [budgets] by error, then [budgets] by mass
};

HeadPlans plans_of(const Trace& trace, const StoredHead& stored, const SurveyRequest& request,
                   const SolverWatch& watch) {
  HeadPlans out;
  const auto solve = [&](const Values& values, bool errors) {
    std::vector<Capacities> capacities;
    for (const std::int64_t budget : request.budgets)
      capacities.push_back(constant_capacities(values, budget));
    for (const Optimum& best : proved_plans(values, capacities, watch)) {
      out.deaths.push_back(deaths_of(values, best.plan));
      if (!errors) continue;
      out.least.push_back(missing(values, best.plan));
      out.rows.push_back(rows_held(values, best.plan));
    }
  };
  solve(error_values_of_head(trace, stored, request.ends, request.counts), true);
  solve(values_of_head(trace, stored, request.ends, request.counts), false);
  return out;
}

}  // namespace

Values error_values_of_head(const Trace& trace, const StoredHead& stored,
                            const std::vector<RowIndex>& ends, std::span<const char> counts) {
  HeadRows rows(trace, stored);
  const Outputs outputs(trace, rows);
  return values_of_rows(ends, [&](RowIndex begin, RowIndex end, std::vector<double>& sums) {
    rows.for_each(begin, end, counts, [&](const HeadRows::Row& row) {
      const std::vector<double> o = outputs.full(row);
      const double norm = norm_of(o);
      if (norm == 0) return;
      const double scale = 1 / ((row.sum + row.sink) * norm * rows.query_heads());
      for (std::size_t t = 0; t <= index(row.row); ++t) {
        if (row.terms[t] > 0)
          sums[t] += static_cast<double>(row.terms[t]) * scale * outputs.from(o, t);
      }
    });
  });
}

Mass missing(const Values& values, const Plan& plan) {
  Mass sum = 0;
  for (int entry = 0; entry < values.entries(); ++entry) {
    const std::span<const Mass> gains = values.gains(entry);
    sum += gains.back() - gains[index(plan[index(entry)] - values.born(entry))];
  }
  return sum;
}

std::vector<PlanErrors> errors_of_head(const Trace& trace, const StoredHead& stored,
                                       std::span<const char> counts,
                                       std::span<const std::vector<RowIndex>> deaths) {
  HeadRows rows(trace, stored);
  const Outputs outputs(trace, rows);
  std::vector<PlanErrors> sums(deaths.size());
  std::vector<std::int32_t> kept;
  rows.for_each(0, trace.meta().tokens, counts, [&](const HeadRows::Row& row) {
    const std::vector<double> o = outputs.full(row);
    const double norm = norm_of(o);
    const double all = row.sum + row.sink;
    std::vector<double> lack(index(row.row) + 1);  // p_i |v_i - o| / |o|
    for (std::size_t t = 0; t < lack.size(); ++t)
      lack[t] = norm > 0 ? static_cast<double>(row.terms[t]) / all * outputs.from(o, t) / norm : 0;
    for (std::size_t plan = 0; plan < deaths.size(); ++plan) {
      kept.clear();
      double gone = 0;
      double left = row.sink;
      for (std::size_t t = 0; t < lack.size(); ++t) {
        if (deaths[plan][t] > row.row) {
          kept.push_back(static_cast<std::int32_t>(t));
          left += static_cast<double>(row.terms[t]);
        } else {
          gone += lack[t];
        }
      }
      // What a row bears it reads, so that something is left unless its term underflows.
      if (norm == 0 || left == 0) continue;
      const double retained = left / all;
      const double error = length_between(outputs.of(row, kept, left), o) / norm;
      sums[plan] +=
          scaled({retained, retained * error, error, gone / retained}, 1.0 / rows.query_heads());
    }
  });
  return sums;
}

ErrorSurvey error_survey(const Trace& trace, const SurveyRequest& request) {
  require_values(trace);
  const int heads = trace.meta().kv_heads;
  ErrorSurvey out;
  out.rows = count_rows(request.counts);
  out.heads = trace.meta().layers * heads;
  out.bounds.resize(request.budgets.size());
  struct Found {
    HeadPlans plans;
    std::vector<PlanErrors> errors;  // [budgets] by error, then [budgets] by mass
  };
  std::vector<Found> found(index(out.heads));  // added up in order, whoever was first
  SharedProgress progress(request.watch.progress, found.size());
  std::mutex mutex;
  for_each_head(trace, heads, request.threads, 2 * value_bytes(request.ends),
                [&](const StoredHead& stored) {
                  const auto at = index(stored.layer * heads + stored.head);
                  Found& here = found[at];
                  here.plans = plans_of(trace, stored, request, {request.watch.cancelled, {}});
                  here.errors = errors_of_head(trace, stored, request.counts, here.plans.deaths);
                  if (request.use_deaths) {
                    const std::lock_guard lock(mutex);
                    for (std::size_t b = 0; b < request.budgets.size(); ++b)
                      request.use_deaths(b, stored, here.plans.deaths[b]);
                  }
                  here.plans.deaths.clear();
                  progress(at, 1);
                });
  const double all = static_cast<double>(out.rows) * out.heads;
  const auto tokens = static_cast<double>(trace.meta().tokens);
  for (std::size_t b = 0; b < out.bounds.size(); ++b) {
    ErrorBounds& bounds = out.bounds[b];
    bounds.budget = request.budgets[b];
    for (const Found& head : found) {
      bounds.footprint +=
          static_cast<double>(head.plans.rows[b]) / (out.heads * tokens * (tokens + 1) / 2);
      bounds.least += to_share(head.plans.least[b]) / all;
      bounds.plan += scaled(head.errors[b], 1 / all);
      bounds.by_mass += scaled(head.errors[out.bounds.size() + b], 1 / all);
    }
    out.certified += 2 * std::ssize(found);
  }
  return out;
}

}  // namespace kvspan::optimum
