// SPDX-License-Identifier: Apache-2.0
// DBudgetKV (later versions: ReFreeKV): once, after the prompt, every layer keeps the first tokens
// and as long a recent window as it takes to hold nearly all of the attention's norm. Nothing
// leaves in decode; the first two layers of the model stay whole.
//
// Order: the sinks, then from the newest token to the oldest. a_h is the mean attention of the
// prompt's last `rows` rows in query head h, over the rows that see a key. One cut for all heads
// of the layer:
//
//   norm=code   the sinks are outside of the norms: keep from the largest j with
//               1 - mean_h ||a_h[j:]|| / mean_h ||a_h[sinks:]|| <= threshold
//   norm=paper  the sinks count: a is averaged over heads first; keep the first i of the order,
//               the smallest i with 1 - ||a[first i]|| / ||a|| < threshold. Strong sinks leave
//               little else
//
// The paper's budgets (15 to 93 %) look like the code's norm, so that is the default. threshold=0
// keeps all.
// Source: Ni et al., arXiv 2502.16886; code Patrick-Ni/ReFreeKV (StreamingLLMKVCluster).
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

struct DBudgetSettings {
  double threshold;
  TokenCount sinks;
  RowIndex rows;
  int skip;
  bool sinks_in_norm;
};

// First the sinks, from the first on, then the newest. That order is certain, but how far the
// budget cuts into it rests on attention: where a score trace hides some, no cut is decided.
class SinksThenNewest final : public Scorer {
 public:
  SinksThenNewest(TokenCount sinks, RowIndex rows) : sinks_(sinks), rows_(rows) {}
  Needs needs() const override { return {.last_rows = rows_}; }
  double score(const View& view, int /*head*/, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const auto newest = static_cast<double>(view.pass().end);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const TokenIndex t = entries[i];
      out[i] = t < sinks_ ? newest + static_cast<double>(sinks_ - t) : static_cast<double>(t);
    }
    std::vector<double> attention(entries.size());
    double slack = 0;
    for (int q = 0; q < view.shape().query_heads; ++q) {
      slack = std::max(slack, view.votes(q, std::min(rows_, view.pass().end), entries, attention));
    }
    return slack > 0 ? newest + static_cast<double>(sinks_) : 0;  // beyond any difference of scores
  }

 private:
  TokenCount sinks_;
  RowIndex rows_;
};

class NormCut final : public Budget {
 public:
  explicit NormCut(const DBudgetSettings& settings) : settings_(settings) {}
  bool content_free() const override { return false; }
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& /*sizing*/) const override {
    return kAll;
  }

  void counts(const View& view, const Scores& scores, const Sizing& /*sizing*/,
              std::span<TokenCount> keep) const override {
    std::fill(keep.begin(), keep.end(), kAll);
    if (view.shape().model_layer < settings_.skip || !(settings_.threshold > 0)) return;
    const std::span<const TokenIndex> entries = scores.entries[0];  // alike in all heads
    const auto sinks = static_cast<std::size_t>(
        std::lower_bound(entries.begin(), entries.end(), settings_.sinks) - entries.begin());
    if (sinks >= entries.size()) return;
    std::fill(keep.begin(), keep.end(),
              settings_.sinks_in_norm ? kept_of_paper(view, entries, sinks)
                                      : kept_of_code(view, entries, sinks));
  }

 private:
  // Mean attention of the last rows in one query head; a row counts where it sees the key.
  std::vector<double> last_rows(const View& view, int query_head,
                                std::span<const TokenIndex> entries) const {
    std::vector<double> out(entries.size());
    const RowIndex end = view.pass().end;
    const RowIndex rows = std::min(settings_.rows, end);
    view.votes(query_head, rows, entries, out);
    for (std::size_t i = 0; i < out.size(); ++i)
      out[i] /= static_cast<double>(std::min<RowIndex>(rows, end - entries[i]));
    return out;
  }

  TokenCount kept_of_code(const View& view, std::span<const TokenIndex> entries,
                          std::size_t sinks) const {
    std::vector<double> norm(entries.size(), 0.0);  // of the window that begins here, mean of heads
    const int heads = view.shape().query_heads;
    for (int q = 0; q < heads; ++q) {
      const std::vector<double> a = last_rows(view, q, entries);
      double squares = 0;
      for (std::size_t j = entries.size(); j-- > sinks;) {
        squares += a[j] * a[j];
        norm[j] += std::sqrt(squares) / heads;
      }
    }
    if (!(norm[sinks] > 0)) return kAll;
    std::size_t begin = entries.size() - 1;
    while (begin > sinks && (norm[sinks] - norm[begin]) / norm[sinks] > settings_.threshold)
      --begin;
    return static_cast<TokenCount>(sinks + entries.size() - begin);
  }

  TokenCount kept_of_paper(const View& view, std::span<const TokenIndex> entries,
                           std::size_t sinks) const {
    std::vector<double> a(entries.size(), 0.0);
    const int heads = view.shape().query_heads;
    for (int q = 0; q < heads; ++q) {
      const std::vector<double> one = last_rows(view, q, entries);
      for (std::size_t j = 0; j < a.size(); ++j) a[j] += one[j] / heads;
    }
    std::reverse(a.begin() + static_cast<std::ptrdiff_t>(sinks), a.end());
    double whole = 0;
    for (const double x : a) whole += x * x;
    if (!(whole > 0)) return kAll;
    double squares = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      squares += a[i] * a[i];
      if (1 - std::sqrt(squares) / std::sqrt(whole) < settings_.threshold)
        return static_cast<TokenCount>(i + 1);
    }
    return kAll;
  }

  DBudgetSettings settings_;
};

}  // namespace

PolicyEntry dbudgetkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "dbudgetkv";
  entry.kind = MethodKind::layer_budget;
  entry.summary = "sinks and a recent window as long as the attention's norm asks for (ReFreeKV)";
  entry.source = "Ni et al. 2025, arXiv 2502.16886";
  entry.evidence = "code read, paper read";
  entry.differs =
      "the paper's norm includes the sinks, the code's does not (norm=code is the default: "
      "the published budgets look like it); 1 % in the paper, 5 % in its scripts";
  entry.needs = "q and k, or probabilities of the prompt's last `rows` rows";
  entry.parameters = {
      {.name = "threshold",
       .kind = Kind::real,
       .fallback = "0.01",
       .help = "share of the norm that may be lost",
       .range = {0, 1}},
      {.name = "sinks", .fallback = "4", .unit = "tokens", .help = "first tokens, kept first"},
      {.name = "norm",
       .kind = Kind::word,
       .fallback = "code",
       .help = "norms without the sinks, as in the code, or with them",
       .choices = {"code", "paper"}},
      {.name = "rows",
       .fallback = "1",
       .unit = "rows",
       .help = "last prompt rows whose attention is averaged",
       .range = {1, 1e6}},
      {.name = "skip",
       .fallback = "2",
       .unit = "layers",
       .help = "the model's first layers, left whole",
       .range = {0, 1e6}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const DBudgetSettings settings{
        arguments.real("threshold"), arguments.count("sinks"), arguments.count("rows"),
        static_cast<int>(arguments.count("skip")), arguments.is("norm", "paper")};
    Scoring scoring;
    scoring.make = [settings](const LayerShape& shape) {
      return std::make_unique<SinksThenNewest>(
          settings.sinks, shape.model_layer < settings.skip ? 0 : settings.rows);
    };
    scoring.by_position = true;
    Recipe recipe;
    recipe.scorer = own(scoring);
    recipe.shape = own(std::make_shared<NormCut>(settings));
    recipe.schedule = own(Schedule::at_evict_point());
    recipe.closed_form = false;
    if (geometry.trace == nullptr)
      recipe.notes.emplace_back("the prompt decides how much is kept; at most everything");
    recipe.knob = Knob{"threshold", 0, 10000, true, [](TokenCount kept) {
                         return fmt::format("{:.12g}", static_cast<double>(10000 - kept) / 10000);
                       }};
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
