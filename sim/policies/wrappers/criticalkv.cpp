// SPDX-License-Identifier: Apache-2.0
// criticalkv(policy): the first `ratio` of the budget goes to the policy's best, the rest to the
// best of (score + epsilon) * ||Wo v||_1, mean over the query heads of the group: by how much an
// entry can move the layer's output.
// Source: Feng et al., arXiv 2502.03805; kvpress CriticalKVPress, whose defaults these are. Entries
// that the policy protects count towards the first part. Votes are divided by the rows of the
// observation window, so that epsilon is compared with probabilities, as there. Wo comes from the
// trace (layers.{l}.wo), or from a safetensors file (wo=FILE: the same names, or a checkpoint's
// model.layers.{l}.self_attn.o_proj.weight); without it ||v||_1 is a stand-in.
#include <algorithm>

#include <fmt/format.h>

#include "sim/policies/shared/trace_reads.h"
#include "sim/policies/shared/wrapping.h"
#include "sim/policies/wrappers/criticalkv_rule.h"

namespace kvspan::policies {
namespace {

class WithValues final : public Scorer {
 public:
  explicit WithValues(std::unique_ptr<Scorer> inner) : inner_(std::move(inner)) {}
  Needs needs() const override {
    Needs out = inner_->needs();
    out.v = true;
    return out;
  }
  void observe(const View& view, RowIndex begin, RowIndex end) override {
    inner_->observe(view, begin, end);
  }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    return inner_->score(view, head, entries, out);
  }

 private:
  std::unique_ptr<Scorer> inner_;
};

struct TwoStages {
  double ratio = 0;
  double epsilon = 0;
  TokenCount sinks = 0;  // that the policy protects
  RowIndex window = 0;   // rows that the policy's votes are summed over; 0: none
  std::string inner;     // its name
  std::shared_ptr<ValueNorms> norms;

  void operator()(const View& view, int head, std::span<const TokenIndex> entries,
                  std::span<const double> scores, TokenCount keep,
                  std::vector<char>& leaves) const {
    // Protected entries of the domain: sinks below the first candidate, the window behind the last.
    const auto all = view.resident(head);
    const auto held =
        (std::lower_bound(all.begin(), all.end(), std::min<TokenCount>(sinks, entries.front())) -
         all.begin()) +
        (all.end() - std::upper_bound(all.begin(), all.end(), entries.back()));
    const auto total = static_cast<double>(keep + held);
    const TokenCount first = std::clamp<TokenCount>(
        std::max<TokenCount>(1, static_cast<TokenCount>(total * ratio)) - held, 0, keep);
    pick_top(view, head, entries, scores, first, leaves);
    std::vector<std::size_t> rest;
    std::vector<TokenIndex> tokens;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (leaves[i] == 0) continue;
      rest.push_back(i);
      tokens.push_back(entries[i]);
    }
    const auto rows = static_cast<double>(std::max<RowIndex>(1, std::min(window, view.pass().end)));
    std::vector<double> second(rest.size());
    norms->of(view, head, tokens, second);
    for (std::size_t i = 0; i < rest.size(); ++i) {
      const double score = scores[rest[i]];
      if (score < 0) {
        throw ConfigError(fmt::format(
            "criticalkv({}) has no meaning: it multiplies scores by norms of values, and {} ranks "
            "by negative numbers ({:g} for token {})",
            inner, inner, score, tokens[i]));
      }
      second[i] *= score / rows + epsilon;
    }
    round_sums(second);
    std::vector<char> out(rest.size(), 0);
    pick_top(view, head, tokens, second, keep - first, out);
    for (std::size_t i = 0; i < rest.size(); ++i) leaves[rest[i]] = out[i];
  }
};

}  // namespace

PolicyEntry criticalkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "criticalkv";
  entry.kind = MethodKind::wrapper;
  entry.summary = "spends half of a policy's budget on entries that can move the output most";
  entry.source = "Feng et al. 2025, arXiv 2502.03805; code NVIDIA/kvpress";
  entry.evidence = "code read (kvpress)";
  entry.needs = "what the inner policy needs, and v; Wo in the trace or in a file, else a stand-in";
  entry.wrapper = true;
  entry.parameters = {{.name = "ratio",
                       .kind = Kind::real,
                       .fallback = "0.5",
                       .help = "share of the budget picked by the policy alone",
                       .range = {0, 1}},
                      {.name = "epsilon",
                       .kind = Kind::real,
                       .fallback = "1e-4",
                       .help = "added to the policy's scores",
                       .range = {0, 1e6}},
                      {.name = "wo",
                       .kind = Kind::text,
                       .fallback = "auto",
                       .unit = "file",
                       .help = "file of output projections; auto: the trace's"}};
  entry.wrap = [](Arguments& arguments, const Geometry& geometry, Recipe inner) {
    require_plain_pick(arguments, inner);
    Scoring& scoring = inner.scorer.value;
    require_scores_of_heads(arguments, inner);
    std::function<OutputProjection(int)> load = [](int) { return OutputProjection(); };
    if (arguments.has("wo")) {
      const std::string file = arguments.text("wo");
      if (geometry.trace != nullptr) load = projections(TensorSet::open(file), file, geometry);
    } else if (geometry.trace != nullptr && geometry.trace->has_wo()) {
      load = projections(geometry.trace->tensors(), geometry.trace->name(), geometry);
    } else if (geometry.trace != nullptr) {
      inner.notes.emplace_back(
          "stand-in: criticalkv without output projections (wo) takes ||v||_1 for ||Wo v||_1");
    }
    scoring.make = [make = scoring.make](const LayerShape& shape) {
      return std::make_unique<WithValues>(make(shape));
    };
    TwoStages pick{arguments.real("ratio"),
                   arguments.real("epsilon"),
                   0,
                   scoring.window,
                   inner.name,
                   std::make_shared<ValueNorms>(load, geometry.layers())};
    if (inner.protect) pick.sinks = inner.protect.value(kAll / 2).sinks;
    inner.pick = own_of<Pick>(arguments, pick);
    inner.terms = wrapped_terms(inner, arguments);
    return inner;
  };
  return entry;
}

}  // namespace kvspan::policies
