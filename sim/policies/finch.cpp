// SPDX-License-Identifier: Apache-2.0
// FINCH: SnapKV with the question as the window. The rows of the question, the prompt's last, vote;
// each vote is multiplied by the row's index (normalise), about the number of keys that share the
// row's attention, so that later rows count as much as earlier ones; mean over rows and group, no
// pooling. The question stays, inside the budget. Its rows are those from the trace's span
// "question" on (window=auto).
// Source: Corallo & Papotti, TACL 2024; NVIDIA/kvpress FinchPress (a delimiter token marks the
// question there; its kept keys are rotated to their places in the cache: positions=cache, which
// changes outputs and no lifetime; its chunk_length is not offered).
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/whole_trace.h"

namespace kvspan::policies {
namespace {

constexpr RowIndex kWindow = 32;  // where nobody says what the question is

class QuestionVotes final : public Scorer {
 public:
  QuestionVotes(RowIndex window, bool normalise) : window_(window), normalise_(normalise) {}
  Needs needs() const override { return {.last_rows = window_}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const RowIndex end = view.pass().end;
    const RowIndex first = std::max<RowIndex>(0, end - window_);
    std::vector<double> p(entries.size());
    const double slack =
        reduce_group(view.shape(), head, Group::mean, out, [&](int q, std::span<double> votes) {
          std::fill(votes.begin(), votes.end(), 0.0);
          double most = 0;
          for (RowIndex row = first; row < end; ++row) {
            const double weight =
                (normalise_ ? static_cast<double>(row) : 1.0) / static_cast<double>(end - first);
            most += weight * view.probabilities(q, row, entries, p);
            for (std::size_t i = 0; i < p.size(); ++i) votes[i] += weight * p[i];
          }
          return most;
        });
    round_sums(out);
    return slack;
  }

 private:
  RowIndex window_;
  bool normalise_;
};

// Rows of the question: 0: the trace names none.
RowIndex question_of(const Geometry& geometry) {
  if (geometry.trace == nullptr) return 0;
  for (const Span& span : geometry.trace->meta().spans) {
    if (span.name == "question" && span.begin < geometry.evict_point)
      return geometry.evict_point - span.begin;
  }
  return 0;
}

}  // namespace

PolicyEntry finch() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "finch";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps what the question's rows attend to, each row weighed by its keys";
  entry.source = "Corallo & Papotti 2024, TACL, FINCH; code NVIDIA/kvpress";
  entry.evidence = "code read (kvpress)";
  entry.differs =
      "kvpress rotates kept keys to their places in the cache (positions=cache; default original, "
      "deaths are equal); it wants a delimiter token before the question, here a span";
  entry.needs =
      "q and k, or probabilities of the question's rows; positions=cache: the rope_* fields";
  entry.parameters = {
      budget_parameter(),
      {.name = "window",
       .fallback = "auto",
       .unit = "rows",
       .help = "of the question, inside the budget; auto: from the span 'question' on",
       .range = {1, 1e6}},
      {.name = "normalise",
       .kind = Kind::flag,
       .fallback = "true",
       .help = "multiply a row's attention by its index"},
      {.name = "positions",
       .kind = Kind::word,
       .fallback = "original",
       .help = "original: the trace's; cache: places in the cache, as in kvpress",
       .choices = {"original", "cache"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    RowIndex window = arguments.has("window") ? arguments.count("window") : question_of(geometry);
    const bool unknown = window == 0;
    if (unknown) window = kWindow;
    arguments.set("window", std::to_string(window));
    Scoring scoring;
    scoring.make = [window, normalise = arguments.flag("normalise")](const LayerShape&) {
      return std::make_unique<QuestionVotes>(window, normalise);
    };
    scoring.window = window;
    scoring.sharing = Sharing::always;
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    recipe.protect = own(protect_recent(window));
    recipe.renumbers = arguments.is("positions", "cache");
    if (unknown && geometry.trace != nullptr) {
      recipe.notes.push_back("stand-in: no span 'question' in the trace, the last " +
                             std::to_string(window) + " rows vote");
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
