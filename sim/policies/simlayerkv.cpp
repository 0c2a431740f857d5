// SPDX-License-Identifier: Apache-2.0
// SimLayerKV: a layer is lazy if its rows give more than `threshold` of their attention to the
// first `sinks` tokens and to recent ones (mean over query heads). A lazy layer is cut once to
// these and grows again; the other layers keep everything.
//   variant=code    the authors': the first decode row judges, over the sinks and the newest
//                   `recent` columns, its own among them; after it `sinks` + `recent` entries stay
//   variant=kvpress the prompt's `last` rows judge at its end, over the sinks and the `recent`
//                   tokens before those rows; `sinks` + `recent` - `last` entries stay. Prompts of
//                   at most sinks + recent + last tokens are left alone
// decode=stream keeps lazy layers at that size while tokens are generated, as neither source does.
// Source: Zhang et al., arXiv 2410.13846; code sail-sg/SimLayerKV; kvpress SimLayerKVPress.
// Thresholds of the authors' code: 0.9 Llama-3 (the default here), 0.85 Qwen2, 0.8 Mistral, 0.65
// Llama-2; kvpress' default of 1 never fires. Not copied: with fewer than sinks + recent entries
// the authors count the overlap twice, and then hold it twice.
#include <algorithm>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

struct SimLayerSettings {
  double threshold = 0.9;
  TokenCount sinks = 4;
  TokenCount recent = 1024;
  RowIndex last = 1;
  bool code = true;
  [[nodiscard]] TokenCount window() const { return code ? recent : recent - last; }
  [[nodiscard]] Protect kept() const { return {sinks, window()}; }
};

// Once, after the row of the first generated token.
Schedule first_decode_row(const Geometry& geometry) {
  constexpr RowIndex kNever = 1'000'000'000'000;
  return {false, false, kNever, kNever - 1 - (geometry.prompt - geometry.evict_point)};
}

// Ranks by position; asks for the rows that the budget judges a layer by.
class Watch final : public Scorer {
 public:
  explicit Watch(RowIndex rows) : rows_(rows) {}
  Needs needs() const override { return {.last_rows = rows_}; }
  double score(const View& /*view*/, int /*head*/, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    std::copy(entries.begin(), entries.end(), out.begin());
    return 0;
  }

 private:
  RowIndex rows_;
};

// What a lazy layer keeps; the trace decides which layers are. `streams`: those that were cut.
class LazyLayers final : public Budget {
 public:
  LazyLayers(const SimLayerSettings& settings, bool streams)
      : settings_(settings), streams_(streams) {}
  bool content_free() const override { return false; }
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& /*sizing*/) const override {
    return kAll;
  }
  void counts(const View& view, const Scores& /*scores*/, const Sizing& /*sizing*/,
              std::span<TokenCount> keep) const override {
    const bool cut = std::ssize(view.resident(0)) < view.pass().end;  // alike in all heads
    std::fill(keep.begin(), keep.end(),
              (streams_ ? cut : lazy(view)) ? settings_.sinks + settings_.window() : kAll);
  }

 private:
  [[nodiscard]] bool lazy(const View& view) const {
    const RowIndex rows = settings_.code ? 1 : settings_.last;
    const RowIndex end = view.pass().end - (settings_.code ? 0 : rows);  // of what is recent
    if (end <= settings_.sinks + settings_.recent) return false;
    const LayerShape& shape = view.shape();
    double mass = 0;
    for (int q = 0; q < shape.query_heads; ++q) {
      std::vector<TokenIndex> near;
      for (const TokenIndex t : view.resident(q / shape.group())) {
        if (t < settings_.sinks || (t >= end - settings_.recent && t < end)) near.push_back(t);
      }
      std::vector<double> votes(near.size());
      view.votes(q, rows, near, votes);
      for (const double p : votes) mass += p;
    }
    mass /= static_cast<double>(shape.query_heads) * static_cast<double>(rows);
    return static_cast<double>(static_cast<float>(mass)) > settings_.threshold;
  }

  SimLayerSettings settings_;
  bool streams_;
};

SimLayerSettings settings_of(Arguments& arguments) {
  SimLayerSettings out{arguments.real("threshold"), arguments.count("sinks"),
                       arguments.count("recent"), 1, arguments.is("variant", "code")};
  if (out.code) {
    if (arguments.given("last")) {
      throw ConfigError(
          "simlayerkv(last): variant=code judges by the first decode row alone; leave it out, or "
          "use variant=kvpress");
    }
    return out;
  }
  if (!arguments.has("last")) arguments.set("last", "1");
  out.last = arguments.count("last");
  const TokenCount least = std::max<TokenCount>(out.last, out.last + 1 - out.sinks);
  if (out.recent < least) {
    throw ConfigError(
        fmt::format("simlayerkv(recent): found {}, expected at least {} with last={} and "
                    "sinks={}: a lazy layer keeps sinks + recent - last tokens",
                    out.recent, least, out.last, out.sinks));
  }
  return out;
}

}  // namespace

PolicyEntry simlayerkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "simlayerkv";
  entry.kind = MethodKind::layer_budget;
  entry.summary = "layers that look at sinks and recent tokens keep these alone, others keep all";
  entry.source = "Zhang et al. 2024, arXiv 2410.13846";
  entry.evidence = "code read";
  entry.differs =
      "the authors judge by the first decode row, its own column included (the default), kvpress "
      "by the prompt's last rows (variant=kvpress); kvpress' default threshold 1.0 never fires, "
      "the authors use 0.65 to 0.9 a model";
  entry.needs =
      "q and k, or probabilities of the first decode row (variant=kvpress: of the last `last` "
      "prompt rows)";
  entry.parameters = {{.name = "threshold",
                       .kind = Kind::real,
                       .fallback = "0.9",
                       .help = "a layer above it is lazy",
                       .range = {0, 1}},
                      {.name = "sinks",
                       .fallback = "4",
                       .unit = "tokens",
                       .help = "first tokens that a lazy layer keeps"},
                      {.name = "recent",
                       .fallback = "1024",
                       .unit = "tokens",
                       .help = "window that a lazy layer looks at",
                       .range = {.lowest = 1}},
                      {.name = "last",
                       .fallback = "auto",
                       .unit = "rows",
                       .help = "prompt rows that judge a layer with variant=kvpress; auto: 1",
                       .range = {1, 1e6}},
                      {.name = "decode",
                       .kind = Kind::word,
                       .fallback = "append",
                       .help = "lazy layers in decode: grow, or go on streaming",
                       .choices = {"append", "stream"}},
                      {.name = "variant",
                       .kind = Kind::word,
                       .fallback = "code",
                       .help = "who judges: code: the first decode row; kvpress: the prompt's last",
                       .choices = {"code", "kvpress"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const SimLayerSettings settings = settings_of(arguments);
    Recipe recipe;
    Scoring scoring;
    scoring.make = [last = settings.last](const LayerShape&) {
      return std::make_unique<Watch>(last);
    };
    recipe.scorer = own(scoring);
    recipe.shape = own(std::make_shared<LazyLayers>(settings, false));
    recipe.schedule = own(settings.code ? first_decode_row(geometry) : Schedule::at_evict_point());
    recipe.protect = own(ProtectRule([settings](TokenCount) { return settings.kept(); }));
    if (arguments.is("decode", "stream")) {
      Rule rule;
      rule.schedule = Schedule::each_decode_row();
      rule.scorer = position_scoring().make;
      rule.budget = std::make_shared<LazyLayers>(settings, true);
      rule.sizing = [prompt = geometry.evict_point](const Pass&) { return Sizing{kAll, prompt}; };
      rule.protect = [settings](const Pass&, TokenCount) { return settings.kept(); };
      recipe.more_rules.push_back(std::move(rule));
    }
    recipe.charge.once = (geometry.layers() + 7) / 8;  // one bit a layer
    recipe.closed_form = false;
    recipe.knob = Knob{"threshold", 0, 1000, true, [](TokenCount thousandths) {
                         return fmt::format("{:.3f}", static_cast<double>(thousandths) / 1000);
                       }};
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
