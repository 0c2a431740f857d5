// SPDX-License-Identifier: Apache-2.0
// InfiniGen: after the prompt the cache lives on the host; each layer guesses which entries a row
// needs from a few columns of skewed queries and keys, and only those are fetched.
//   s = q~ . k~ over the partial columns, for each query head over all earlier entries
//   n' = floor of the mean over query heads of #{s > max s - alpha}, at most `cap`
//   every query head reads its own n' best and the row's own entry; the model's first layer all of
//   it
// Source: Lee et al., arXiv 2406.19707; code snu-comparch/InfiniGen (kv_selection_controller.py,
// skewing_controller.py). Left out: its optional host pool that evicts (fifo, lru, counter).
// Stand-in: the authors form q~ of layer l from the *input of layer l-1*, which no trace holds;
// here it is the row's own query, so what is lost comes from the partial columns only
// (scores=partial), or from nothing but `cap` and alpha (scores=exact). The skew is the right
// singular vectors of the prompt's own queries; the authors fit it offline, per head of MHA models:
// under GQA the queries of a group share one skew and one set of columns, since they share the
// partial keys.
// alpha: 4 for OPT, 5 and more for Llama-2; columns: 20 % in the scripts, 30 % in the paper.
// line=first is a slip of the accuracy simulation of Llama (an index too many), which the published
// accuracy went through: the first head's maximum is the line of all heads, and who is on it
// counts. The simulations also take the cap from the whole length, and choose in prompt rows.
#include <algorithm>
#include <cmath>

#include "sim/base/error.h"
#include "sim/policies/infinigen_rule.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/host_store.h"
#include "sim/policies/shared/pages.h"

namespace kvspan::policies {
namespace {

struct InfinigenSettings {
  double alpha = 4;
  TokenCount cap = 1;
  int columns = 0;  // 0: exact scores
  bool first_line = false;
  RowIndex prompt = 0;
};

class Speculation final : public Selector {
 public:
  explicit Speculation(const InfinigenSettings& settings) : settings_(settings) {}
  Needs needs() const override {
    if (settings_.columns > 0) return {.q = true, .k = true};
    return {.observe = Observe::from_prompt_end};  // probabilities of the generated rows
  }

  void select(const View& view, std::span<Reads> reads) override {
    const LayerShape& shape = view.shape();
    if (!generates(view.pass()) || shape.model_layer == 0) return;
    const RowIndex row = view.pass().begin;
    const int per_kv = shape.query_heads / shape.kv_heads;
    if (settings_.columns > 0) {
      for (int h = static_cast<int>(partial_.size()); h < shape.kv_heads; ++h)
        partial_.emplace_back(view, h, settings_.prompt, settings_.columns);
      for (PartialKeys& p : partial_) p.extend(view, static_cast<TokenIndex>(row));
    }
    std::vector<std::vector<double>> scores(index(shape.query_heads));
    std::int64_t critical = 0;
    double highest = 0;
    for (int q = 0; q < shape.query_heads; ++q) {
      const std::span<const TokenIndex> past = past_of(view, q);
      std::vector<double>& s = scores[index(q)];
      s.resize(past.size());
      if (settings_.columns > 0) {
        partial_[index(q / per_kv)].score(view.query(q, row), view.score_scale(), past, s);
      } else {
        (void)view.probabilities(q, row, past, s);  // exp(s) up to a factor
      }
      if (s.empty()) continue;
      if (q == 0 || !settings_.first_line) highest = *std::max_element(s.begin(), s.end());
      // Of probabilities, those at the line on paper may lie a rounding above it.
      constexpr double kRounding = 1 + 1e-6;
      const double threshold = settings_.columns > 0
                                   ? highest - settings_.alpha
                                   : highest * std::exp(-settings_.alpha) * kRounding;
      critical += std::count_if(s.begin(), s.end(), [&](double x) {
        return settings_.first_line ? x >= threshold : x > threshold;
      });
    }
    const TokenCount fetched = std::min<TokenCount>(critical / shape.query_heads, settings_.cap);
    for (int q = 0; q < shape.query_heads; ++q) {
      const std::span<const TokenIndex> past = past_of(view, q);
      if (static_cast<TokenCount>(past.size()) <= fetched) continue;
      const std::vector<double>& s = scores[index(q)];
      const std::vector<float> rounded(s.begin(), s.end());
      std::vector<TokenIndex> attended;
      for (const std::int32_t i : best_of(rounded, index(fetched)))
        attended.push_back(past[index(i)]);
      attended.push_back(static_cast<TokenIndex>(row));
      reads[index(q)].attended = std::move(attended);
    }
  }

 private:
  // Entries of the query head's cache before the row's own.
  static std::span<const TokenIndex> past_of(const View& view, int query_head) {
    const auto all = view.resident(query_head / view.shape().group());
    return all.first(all.size() - 1);
  }
  InfinigenSettings settings_;
  std::vector<PartialKeys> partial_;  // [kv_heads]
};

}  // namespace

PolicyEntry infinigen() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "infinigen";
  entry.kind = MethodKind::offload;
  entry.summary =
      "cache on the host; fetches what partial scores predict (with the row's own query)";
  entry.source = "Lee et al. 2024, arXiv 2406.19707";
  entry.evidence = "code read";
  entry.differs =
      "the query of a layer is guessed from the layer below, which a trace does not hold: "
      "the row's own query; r is 0.2 in the scripts, 0.3 in the paper; the speed code and the "
      "accuracy simulation of OPT draw a line per head, that of Llama draws the first head's for "
      "all (line=first)";
  entry.needs = "q and k; scores=exact: q and k, or probabilities of generated rows";
  Parameter cap = budget_parameter();
  cap.name = "cap";
  cap.help = "entries a query head fetches at most in a row";
  entry.parameters = {
      {.name = "alpha",
       .kind = Kind::real,
       .fallback = "4",
       .unit = "nats",
       .help = "an entry counts if it scores above the best less alpha",
       .range = {0, 1e6}},
      cap,
      {.name = "partial",
       .kind = Kind::amount,
       .fallback = "20%",
       .unit = "columns",
       .help = "columns of a head that scores are taken over"},
      {.name = "scores",
       .kind = Kind::word,
       .fallback = "partial",
       .help = "over the partial columns, or over all of them (no partial keys are kept)",
       .choices = {"partial", "exact"}},
      {.name = "line",
       .kind = Kind::word,
       .fallback = "own",
       .help = "a head's own best, or the first head's for all, as in Llama's accuracy simulation",
       .choices = {"own", "first"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    InfinigenSettings settings;
    settings.alpha = arguments.real("alpha");
    settings.cap = entries_of(arguments, "cap", geometry);
    settings.prompt = geometry.evict_point;
    settings.first_line = arguments.is("line", "first");
    if (settings.first_line && arguments.is("scores", "exact")) {
      throw ConfigError(
          "infinigen(line): found first with scores=exact, whose scores are probabilities that do "
          "not compare between heads; expected scores=partial, also with partial=100%");
    }
    if (arguments.is("scores", "partial")) {
      const Amount columns = arguments.amount("partial");
      if (columns.kind == Amount::Kind::bytes || columns.mantissa < 1) {
        throw ConfigError("infinigen(partial): found " + columns.text +
                          ", expected columns (38) or a share of the head dimension (20%)");
      }
      settings.columns = static_cast<int>(std::min<std::int64_t>(
          geometry.k_dim, columns.kind == Amount::Kind::share ? columns.share_of(geometry.k_dim)
                                                              : columns.mantissa));
    }
    Recipe recipe;
    recipe.selector = own(SelectorFactory(
        [settings](const LayerShape&) { return std::make_unique<Speculation>(settings); }));
    recipe.store =
        own(host_storing([](const Pass& pass) { return pass.end >= pass.evict_point; }, geometry));
    // Partial keys of every entry so far; copies in flight for the layer that attends and for the
    // next one: n' entries of each query head, charged at their cap, or the whole first layer.
    const std::int64_t layers = geometry.layers();
    const std::int64_t each = geometry.entry_bytes();
    const std::int64_t partial = layers * geometry.kv_heads * settings.columns * geometry.kv_bytes;
    const std::int64_t most = settings.cap * geometry.query_heads * each;
    const std::int64_t whole = geometry.layer_ids.front() == 0 ? geometry.kv_heads * each : 0;
    recipe.charge.during = [partial, most, whole, prompt = geometry.evict_point](RowIndex row) {
      if (row < prompt) return std::int64_t{0};
      return (row + 1) * partial + most + std::max(most, (row + 1) * whole);
    };
    recipe.notes.emplace_back(
        "stand-in: the row's own query, not one guessed from the layer below");
    recipe.notes.emplace_back("fetched copies are charged at their cap");
    recipe.knob = budget_knob(geometry);
    recipe.knob->parameter = "cap";
    recipe.closed_form = false;  // entries that left for the host
    if (geometry.trace == nullptr) recipe.notes.emplace_back(kHostNote);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
