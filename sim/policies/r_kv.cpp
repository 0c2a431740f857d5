// SPDX-License-Identifier: Apache-2.0
// R-KV: for long reasoning: keeps what is important and not said twice. Acts after the prompt and
// after the row that follows a length (prompt included) which `buffer` divides (the flag is set at
// the end of a call, and used in the next), if the budget or more is held.
//   importance  logits of the last `window` rows, maximum over the group's query heads, softmax
//               over the entries before the window, mean over the rows, max-pooled along the
//               entries
//   redundancy  c_ij = cos(k_i, k_j), 0 on the diagonal; in each row i the last column with c_ij >
//               `similarity` is set to 0, so that of near-duplicates the last is spared (if there
//               is none, column 0 is, as in the code); r = softmax_j(mean_i c_ij)
//   score       lambda importance - (1 - lambda) r; the window itself stays, inside the budget
// "Along" and "last" go by place in the cache. The code gathers what topk returns: survivors lie in
// falling order of their scores, the window behind them (order=cache; equal scores, whose order is
// the device's there, keep their places). The paper's words mean tokens (order=token).
// Source: Cai et al., arXiv 2505.24133; code Zefan-Cai/R-KV (rkv/compression/r1_kv.py,
// rkv/utils.py). lambda is 0.1 in its README and scripts, 0.07 as the default of the class.
//
// The N x N matrix is never held: the mean of column j is (sum_i u_i - u_j) . u_j less the cells
// that were set to 0, and these are searched from the newest entry backwards, which ends early
// where keys resemble each other. The authors hold it, and are charged for it.
#include <algorithm>
#include <cmath>
#include <limits>

#include "sim/policies/r_kv_rule.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policy/passes.h"

namespace kvspan::policies {
namespace {

struct RKvSettings {
  RowIndex window;
  int kernel;
  double lambda, similarity;
};

void softmax(std::span<double> values) {
  const double highest = *std::max_element(values.begin(), values.end());
  if (highest == -std::numeric_limits<double>::infinity()) {  // nobody can be read
    std::fill(values.begin(), values.end(), 0.0);
    return;
  }
  double sum = 0;
  for (double& v : values) sum += v = std::exp(v - highest);
  for (double& v : values) v /= sum;
}

class Redundancy final : public Scorer {
 public:
  explicit Redundancy(const RKvSettings& settings) : settings_(settings) {}
  Needs needs() const override { return {.last_rows = settings_.window, .q = true, .k = true}; }

  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    importance(view, head, entries, out);
    const std::span<const TokenIndex> all = view.cached(head);
    const std::vector<double> r = redundancy(view, head, all);
    std::size_t place = 0;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      while (all[place] != entries[i]) ++place;
      out[i] = settings_.lambda * out[i] - (1 - settings_.lambda) * r[place];
    }
    round_sums(out);
    return 0;
  }

 private:
  void importance(const View& view, int head, std::span<const TokenIndex> entries,
                  std::span<double> out) const {
    std::fill(out.begin(), out.end(), 0.0);
    const RowIndex end = view.pass().end;
    const RowIndex rows = std::min(settings_.window, end);
    std::vector<double> z(entries.size());
    for (RowIndex row = end - rows; row < end; ++row) {
      (void)reduce_group(view.shape(), head, Group::max, z, [&](int q, std::span<double> logits) {
        view.logits(q, row, entries, logits);
        return 0.0;
      });
      softmax(z);
      for (std::size_t i = 0; i < out.size(); ++i) out[i] += z[i] / static_cast<double>(rows);
    }
    pool(Pool::max, settings_.kernel, out);
  }

  [[nodiscard]] std::vector<double> redundancy(const View& view, int head,
                                               std::span<const TokenIndex> all) const {
    const LayerShape& shape = view.shape();
    UnitKeys keys(view, shape.kv_head(head), all);
    std::vector<double> r(keys.size());
    for (std::size_t j = 0; j < r.size(); ++j) r[j] = keys.column(j);
    for (std::size_t i = 0; i < r.size(); ++i) {
      const auto [j, cosine] = keys.last_above(i, settings_.similarity);
      r[j] -= cosine;
    }
    for (double& value : r) value /= static_cast<double>(r.size());
    softmax(r);
    return r;
  }

  RKvSettings settings_;
};

// Side of the similarity matrix after each row, under a uniform budget; 0: below the budget. The
// prompt's own can be taken in blocks, as attention is (H2O's n x n scores are not charged either).
//   returns [tokens]
std::vector<TokenCount> compared(TokenCount budget, const Schedule& schedule, RowIndex buffer,
                                 const Geometry& g) {
  std::vector<TokenCount> out(index(g.tokens), 0);
  const PassPlan plan = make_passes(g.tokens, g.prompt, g.evict_point, 0);
  TokenCount held = 0;
  for (std::size_t i = 0; i + 1 < plan.ends.size(); ++i) {  // nothing is decided after the last row
    const Pass pass = pass_at(plan, i);
    held += pass.rows();
    if (!schedule.due(pass) || held < budget) continue;
    out[index(pass.end - 1)] = std::min<TokenCount>(held, budget + buffer);
    held = budget;
  }
  return out;
}

}  // namespace

PolicyEntry r_kv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "r_kv";
  entry.kind = MethodKind::eviction;
  entry.summary = "in decode, every 128 tokens: keeps important entries that are not redundant";
  entry.source = "Cai et al. 2025, arXiv 2505.24133";
  entry.evidence = "code read";
  entry.differs =
      "lambda is 0.1 in the README and 0.07 in the code's signature; here 0.1. The code pools and "
      "looks for the last duplicate in the order of its cache (order=cache, the published one), "
      "the paper means tokens (order=token). The code's counter of tokens runs on from sample to "
      "sample, which moves or loses later prompts' cuts: a slip, here each starts at 0";
  entry.needs = "q and k";
  entry.parameters = {budget_parameter(),
                      {.name = "buffer",
                       .fallback = "128",
                       .unit = "tokens",
                       .help = "acts a row after lengths that it divides",
                       .range = {1, 1e6}},
                      {.name = "window",
                       .fallback = "8",
                       .unit = "rows",
                       .help = "observing rows, kept inside the budget",
                       .range = {1, 1e6}},
                      {.name = "kernel",
                       .fallback = "7",
                       .unit = "entries",
                       .help = "pooling kernel, odd",
                       .range = {1, 1e6}},
                      {.name = "lambda",
                       .kind = Kind::real,
                       .fallback = "0.1",
                       .help = "weight of importance against redundancy",
                       .range = {0, 1}},
                      {.name = "similarity",
                       .kind = Kind::real,
                       .fallback = "0.5",
                       .help = "cosine of near-duplicates",
                       .range = {0, 1}},
                      {.name = "order",
                       .kind = Kind::word,
                       .fallback = "cache",
                       .help = "in which entries are pooled and compared: the cache's (falling "
                               "scores, then the window), or the tokens'",
                       .choices = {"cache", "token"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const RKvSettings settings{arguments.count("window"), odd_count(arguments, "kernel"),
                               arguments.real("lambda"), arguments.real("similarity")};
    const RowIndex buffer = arguments.count("buffer");
    Scoring scoring;
    scoring.make = [settings](const LayerShape&) { return std::make_unique<Redundancy>(settings); };
    scoring.window = settings.window;
    scoring.evicts_in_decode = true;
    scoring.by_place = true;
    if (arguments.is("order", "cache")) scoring.order = {.by_score = true, .when_full = true};
    const Schedule schedule =
        Schedule::from_evict_point(buffer, (geometry.evict_point + buffer - 1) % buffer);
    Recipe recipe = budgeted(arguments, geometry, own(scoring), own(schedule));
    recipe.protect = own(protect_recent(settings.window));
    // Beside the entries: queries of the last `window` rows in every layer, and in the rows after
    // which it acts one layer's fp32 similarities, KV heads x (budget + buffer)^2.
    recipe.charge.once = settings.window * geometry.layers() * geometry.query_heads *
                         geometry.k_dim * geometry.kv_bytes;
    const TokenCount tokens = entries_of(arguments, "budget", geometry);
    recipe.charge.during = [heads = geometry.kv_heads,
                            held = compared(tokens, schedule, buffer, geometry)](RowIndex row) {
      const TokenCount n = held[index(row)];
      return heads * n * n * 4;
    };
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
