// SPDX-License-Identifier: Apache-2.0
// dms(policy): the policy's score becomes an admission: an entry whose score is below `threshold`
// dies when it leaves a window of the newest tokens. Heads keep as many as pass, so there is no
// budget.
// Source: Lancucki et al., arXiv 2506.05345; code NVIDIA/Model-Optimizer, experimental/dms
// (dms/attention_prefill.py, dms/cache_paged.py). There the score is a learned gate's; here it is
// that of a policy that knows it when the entry is born (scores(file=...): a gate's own output, as
// minus the authors' logit; knorm: minus the norm of the key; random: uniform in [0, 2^53)).
//   variant=code: what token i+1 says decides on token i, which is written over before row i +
//   window attends: a row reads `window` entries with itself. Rows of the prompt do so, too. (At a
//   chunk's end the code holds the entry that leaves next until the next chunk's end; nobody reads
//   it.)
//   variant=kvpress: DMSPress. The token's own score decides, a row reads `window` entries and
//   itself, and the prompt attends in full.
#include <cmath>
#include <limits>

#include "sim/policies/shared/wrapping.h"

namespace kvspan::policies {
namespace {

// How the score of a policy is turned into a decision on an entry.
struct Decider {
  ScorerFactory make;
  bool by_next = false;    // on a token decides what the next one says
  bool per_layer = false;  // head 0 decides for all heads
};

class Decisions final : public Scorer {
 public:
  Decisions(const Decider& decider, const LayerShape& shape)
      : scorer_(decider.make(shape)), decider_(decider) {}
  Needs needs() const override { return scorer_->needs(); }
  // REQUIRES: decider.by_next: the token after each entry is born.
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    std::vector<TokenIndex> says(entries.begin(), entries.end());
    for (TokenIndex& t : says) t += decider_.by_next ? 1 : 0;
    return scorer_->score(view, decider_.per_layer ? 0 : head, says, out);
  }

 private:
  std::unique_ptr<Scorer> scorer_;
  Decider decider_;
};

// A row of the prompt reads its window, and what passes before it.
class WindowAndPassing final : public Selector {
 public:
  WindowAndPassing(const Decider& decider, const Admission& gate, const LayerShape& shape)
      : decisions_(decider, shape),
        threshold_(gate.threshold),
        window_(gate.window + 1),
        passes_(index(shape.heads)) {}
  Needs needs() const override { return decisions_.needs(); }
  bool by_row() const override { return true; }
  void mask(const View& view, int query_head, RowIndex row, std::span<float> mask) override {
    const int head = query_head / view.shape().group();
    const std::vector<float>& passes = extended(view, head, row - window_ + 1);
    for (RowIndex i = 0; i <= row - window_; ++i) mask[index(i)] *= passes[index(i)];
  }

 private:
  const std::vector<float>& extended(const View& view, int head, RowIndex end) {
    std::vector<float>& passes = passes_[index(head)];
    std::vector<TokenIndex> entries;
    for (auto t = static_cast<TokenIndex>(passes.size()); t < end; ++t) entries.push_back(t);
    std::vector<double> scores(entries.size());
    if (!entries.empty()) decisions_.score(view, head, entries, scores);
    for (const double score : scores) passes.push_back(score > threshold_ ? 1.0F : 0.0F);
    return passes;
  }

  Decisions decisions_;
  double threshold_;
  RowIndex window_;
  std::vector<std::vector<float>> passes_;  // [heads][tokens so far] 1: stays
};

void refuse_what_has_no_meaning(const Arguments& arguments, const Recipe& inner, bool code) {
  require_ranking(arguments, inner);
  const Scoring& scoring = inner.scorer.value;
  const auto no = [&](const std::string& why) { refuse(arguments, inner, why); };
  if (!scoring.at_birth) {
    no(
        fmt::format("the score of {} is not known when an entry is born; knorm, random and scores "
                    "are",
                    inner.name));
  }
  if (scoring.per_query_head)
    no(fmt::format("{} scores every query head, and admission is one per KV head", inner.name));
  if (inner.admission) no(fmt::format("{} admits entries already", inner.name));
  if (code && inner.prefill_reads)
    no(fmt::format("{} masks the prompt already", inner.prefill_reads.owner));
  for (const BudgetSlot& spread : {inner.layers, inner.shape}) {
    if (spread.is_own()) no(fmt::format("there is no budget for {} to spread", spread.owner));
  }
  if (!arguments.has("threshold") && inner.scorer.owner != "scores") {
    no(
        fmt::format("found no threshold, expected a score of {} below which entries die, as in "
                    "dms({},threshold=-2); only scores(file=...), a gate's own output, has one: 0",
                    inner.name, inner.name));
  }
  if (code && arguments.has("window") && arguments.count("window") < 2)
    no("the next token decides: found window=" + arguments.text("window") + ", expected 2 or more");
}

}  // namespace

PolicyEntry dms() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "dms";
  entry.kind = MethodKind::wrapper;
  entry.summary =
      "drops entries whose score at birth is below a threshold once they leave a window";
  entry.source =
      "Lancucki et al. 2025, arXiv 2506.05345; code NVIDIA/Model-Optimizer, experimental/dms";
  entry.evidence = "code read";
  entry.differs =
      "the score of another policy stands in for the learned gate; kvpress (variant=kvpress) lets "
      "a token decide on itself, counts the row on top of the window, masks and frees nothing: "
      "here entries leave";
  entry.needs = "what the inner policy needs";
  entry.wrapper = true;
  entry.parameters = {
      {.name = "threshold",
       .kind = Kind::real,
       .fallback = "auto",
       .unit = "of the score",
       .help = "entries below it die; auto: 0 for scores, whose file holds minus the gate's logit",
       .range = {-1e300, 1e300}},
      {.name = "window",
       .fallback = "auto",
       .unit = "tokens",
       .help = "newest tokens, not judged yet, the row itself included; auto: 512 (kvpress: 128, "
               "and the row)"},
      {.name = "variant",
       .kind = Kind::word,
       .fallback = "code",
       .help = "the authors' code: the next token decides; kvpress: its DMSPress",
       .choices = {"code", "kvpress"}},
      {.name = "per",
       .kind = Kind::word,
       .fallback = "head",
       .help = "one decision per KV head, or head 0's for the layer",
       .choices = {"head", "layer"}}};
  entry.wrap = [](Arguments& arguments, const Geometry& geometry, Recipe inner) {
    const bool code = arguments.is("variant", "code");
    refuse_what_has_no_meaning(arguments, inner, code);
    if (inner.size.filling == Slot<Amount>::Filling::own)
      inner.notes.push_back(
          fmt::format("dms: the threshold stands in for the budget of {}", inner.size.owner));
    if (!arguments.has("threshold")) arguments.set("threshold", "0");
    if (!arguments.has("window")) arguments.set("window", code ? "512" : "128");
    const TokenCount window = arguments.count("window");
    const Decider decider{inner.scorer.value.make, code, arguments.is("per", "layer")};
    Admission admission;
    admission.make = [decider](const LayerShape& shape) {
      return std::make_unique<Decisions>(decider, shape);
    };
    // Admission drops what scores at most its threshold; here equality stays.
    admission.threshold =
        std::nextafter(arguments.real("threshold"), -std::numeric_limits<double>::infinity());
    admission.window = code ? window - 1 : window;
    if (code) {
      inner.prefill_reads =
          own_of(arguments, SelectorFactory([decider, admission](const LayerShape& shape) {
                   return std::make_unique<WindowAndPassing>(decider, admission, shape);
                 }));
    }
    inner.terms = wrapped_terms(inner, arguments);
    inner.name = fmt::format("dms({})", inner.name);
    inner.admission = own_of(arguments, std::move(admission));
    inner.scorer = {};
    inner.size = {};
    inner.layers = {};
    inner.shape = {};
    inner.schedule = {};
    inner.protect = {};
    inner.pick = {};
    inner.knob.reset();
    // One bit per token of the window, in every layer and head.
    const std::int64_t bits = std::min<std::int64_t>(window, geometry.tokens);
    inner.charge.once += std::int64_t{geometry.layers()} * geometry.kv_heads * ((bits + 7) / 8);
    return inner;
  };
  return entry;
}

}  // namespace kvspan::policies
