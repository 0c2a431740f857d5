// SPDX-License-Identifier: Apache-2.0
// SimLayerKV: after the prompt, a layer is lazy if its last rows give more than `threshold` of
// their attention (mean over query heads and rows) to the first `sinks` tokens and the `recent`
// tokens before those rows. A lazy layer keeps the first `sinks` and the newest `recent` - `last`
// tokens, and goes on streaming in decode; the other layers keep everything.
// Source: Zhang et al., arXiv 2410.13846; code sail-sg/SimLayerKV; kvpress SimLayerKVPress.
// Thresholds of the authors' code: 0.9 Llama-3 (the default here), 0.85 Qwen2, 0.8 Mistral, 0.65
// Llama-2; kvpress' default of 1 never fires. What is counted and kept is kvpress'; the authors
// judge the first decode row, its own column included, and keep sinks + recent. Both cut once and
// let lazy layers grow in decode: decode=append. Prompts of at most sinks + recent + last tokens
// are left alone.
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
  [[nodiscard]] TokenCount kept() const { return sinks + recent - last; }
};

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

// The trace decides: any layer may keep everything.
class Undecided : public Budget {
 public:
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& /*sizing*/) const final {
    return kAll;
  }
  bool content_free() const final { return false; }
};

class LazyLayers final : public Undecided {
 public:
  explicit LazyLayers(const SimLayerSettings& settings) : settings_(settings) {}
  void counts(const View& view, const Scores& /*scores*/, const Sizing& /*sizing*/,
              std::span<TokenCount> keep) const override {
    std::fill(keep.begin(), keep.end(), lazy(view) ? settings_.kept() : kAll);
  }

 private:
  [[nodiscard]] bool lazy(const View& view) const {
    const RowIndex end = view.pass().end;
    if (end <= settings_.sinks + settings_.recent + settings_.last) return false;
    const LayerShape& shape = view.shape();
    double mass = 0;
    for (int q = 0; q < shape.query_heads; ++q) {
      std::vector<TokenIndex> near;
      for (const TokenIndex t : view.resident(q / shape.group())) {
        const bool recent =
            t >= end - settings_.last - settings_.recent && t < end - settings_.last;
        if (t < settings_.sinks || recent) near.push_back(t);
      }
      std::vector<double> votes(near.size());
      view.votes(q, settings_.last, near, votes);
      for (const double p : votes) mass += p;
    }
    mass /= static_cast<double>(shape.query_heads) * static_cast<double>(settings_.last);
    return static_cast<double>(static_cast<float>(mass)) > settings_.threshold;
  }

  SimLayerSettings settings_;
};

// In decode: a layer that has lost entries is a lazy one.
class KeepStreaming final : public Undecided {
 public:
  explicit KeepStreaming(TokenCount kept) : kept_(kept) {}
  void counts(const View& view, const Scores& /*scores*/, const Sizing& /*sizing*/,
              std::span<TokenCount> keep) const override {
    for (std::size_t h = 0; h < keep.size(); ++h) {
      const auto held = static_cast<RowIndex>(view.resident(static_cast<int>(h)).size());
      keep[h] = held < view.pass().end ? kept_ : kAll;
    }
  }

 private:
  TokenCount kept_;
};

}  // namespace

PolicyEntry simlayerkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "simlayerkv";
  entry.kind = MethodKind::layer_budget;
  entry.summary = "layers whose last row looks at sinks and recent tokens stream, others keep all";
  entry.source = "Zhang et al. 2024, arXiv 2410.13846";
  entry.evidence = "code read";
  entry.differs = "kvpress' default threshold 1.0 never fires; the authors use 0.65 to 0.9 a model";
  entry.needs = "q and k, or probabilities of the last `last` prompt rows";
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
                       .fallback = "1",
                       .unit = "rows",
                       .help = "prompt rows that judge a layer",
                       .range = {1, 1e6}},
                      {.name = "decode",
                       .kind = Kind::word,
                       .fallback = "stream",
                       .help = "lazy layers in decode: go on streaming, or grow",
                       .choices = {"stream", "append"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const SimLayerSettings settings{arguments.real("threshold"), arguments.count("sinks"),
                                    arguments.count("recent"), arguments.count("last")};
    const TokenCount least =
        std::max<TokenCount>(settings.last, settings.last + 1 - settings.sinks);
    if (settings.recent < least) {
      throw ConfigError(
          fmt::format("simlayerkv(recent): found {}, expected at least {} with last={} and "
                      "sinks={}: a lazy layer keeps sinks + recent - last tokens",
                      settings.recent, least, settings.last, settings.sinks));
    }
    Recipe recipe;
    Scoring scoring;
    scoring.make = [last = settings.last](const LayerShape&) {
      return std::make_unique<Watch>(last);
    };
    const Protect protect{settings.sinks, settings.recent - settings.last};
    recipe.scorer = own(scoring);
    recipe.shape = own(std::make_shared<LazyLayers>(settings));
    recipe.schedule = own(Schedule::at_evict_point());
    recipe.protect = own(ProtectRule([protect](TokenCount) { return protect; }));
    if (arguments.is("decode", "stream")) {
      Rule rule;
      rule.schedule = Schedule::each_decode_row();
      rule.scorer = position_scoring().make;
      rule.budget = std::make_shared<KeepStreaming>(settings.kept());
      rule.sizing = [prompt = geometry.evict_point](const Pass&) { return Sizing{kAll, prompt}; };
      rule.protect = [protect](const Pass&, TokenCount) { return protect; };
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
