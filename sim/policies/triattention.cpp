// SPDX-License-Identifier: Apache-2.0
// TriAttention: ranks keys without any attention, by where queries of a head lie on average. With
// q, k before rotation, pair by pair of the rotary embedding (frequency w), Q the mean query of
// the head and A its mean magnitude:
//   s(k at pos, now) = mean over d = 1, 2, 4, .., 65,536 of
//                        sum |Q| |k| cos((now - pos + d) w + arg Q - arg k)  +  sum (A - |Q|) |k|
// standardised over the candidates of each query head, then the largest of the group. When `every`
// entries more than the budget are held, in decode, a head is cut to the budget. Nothing is
// protected but, with prompt=stay, the prompt.
// Source: Mao et al., arXiv 2604.04921; code WeianMao/triattention (methods/triattention.py with
// per_layer_perhead_pruning; the settings of scripts/cli.py: slack trigger, standardised scores,
// prompt tokens counted); scope=model is its per_head_pruning, one set per KV head for all layers,
// by the mean over (stored) layers of these scores in every cut. Its noise of 1e-6 against ties is
// left out: the lower token stays. Channels that the model does not rotate add mean q . k.
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/calibration.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/when_over.h"
#include "sim/policies/triattention_rule.h"

namespace kvspan::policies {
PolicyEntry triattention() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "triattention";
  entry.kind = MethodKind::eviction;
  entry.summary = "keeps keys near where a head's queries point on average, by rotary frequency";
  entry.source = "Mao et al. 2026, arXiv 2604.04921; code WeianMao/triattention";
  entry.evidence = "code read";
  entry.differs =
      "the paper's runs keep one set per KV head for all layers, by the mean over layers of these "
      "scores (scope=model; of the stored layers); its prompt stays unless told (prompt=stay); it "
      "is calibrated on a text of its own (calibration=TRACE)";
  entry.needs = "k; q, or another trace to calibrate on; the rope_* fields where keys are rotated";
  entry.parameters = {budget_parameter("20%", "entries after a cut, per layer and KV head"),
                      {.name = "every",
                       .fallback = "128",
                       .unit = "rows",
                       .help = "a cut is due when so many more than the budget are held",
                       .range = {1, 1e9}},
                      {.name = "prompt",
                       .kind = Kind::word,
                       .fallback = "compete",
                       .help = "whether entries of the prompt may leave",
                       .choices = {"compete", "stay"}},
                      {.name = "scope",
                       .kind = Kind::word,
                       .fallback = "layer",
                       .help = "whose set a head has: its own, or one for all layers",
                       .choices = {"layer", "model"}},
                      calibration_parameter()};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const QueryCalibration calibration = calibration_of(arguments, geometry);
    const auto centres_of = [calibration](int layer) {
      if (!calibration.readable()) return std::vector<QueryCentre>{};
      return query_centres(calibration.trace(), calibration.layer(layer), calibration.rows());
    };
    std::shared_ptr<CutsOfModel> cuts;
    if (arguments.is("scope", "model") && geometry.trace != nullptr)
      cuts = std::make_shared<CutsOfModel>(*geometry.trace, centres_of);
    Scoring scoring;
    scoring.make = [calibration, centres_of,
                    cuts](const LayerShape& shape) -> std::unique_ptr<Scorer> {
      if (cuts) return std::make_unique<OverLayers>(cuts, calibration.other());
      return std::make_unique<Trigonometric>(centres_of(shape.layer), calibration.other());
    };
    scoring.evicts_in_decode = true;
    Recipe recipe = budgeted(arguments, geometry, own(scoring), own(Schedule::each_decode_row()));
    recipe.shape = own(std::make_shared<WhenOver>(arguments.count("every")));
    recipe.competing = true;
    recipe.reads_trace = arguments.is("scope", "model");
    recipe.knob->monotone = false;  // when cuts are due changes with the budget
    if (arguments.is("prompt", "stay")) {
      const TokenCount tokens = entries_of(arguments, "budget", geometry);
      if (tokens <= geometry.evict_point) {
        throw ConfigError(fmt::format(
            "triattention(prompt=stay): the prompt's {} tokens leave nothing of a budget of {}; "
            "nearest: budget={}",
            geometry.evict_point, tokens, geometry.evict_point + 1));
      }
      recipe.protect = own(ProtectRule([n = geometry.evict_point](TokenCount) {
        return Protect{n, 0};
      }));
    }
    calibration.note(recipe);
    if (geometry.trace != nullptr && geometry.trace->is_qkv() && !geometry.trace->meta().rope)
      recipe.notes.emplace_back("the trace has no rope_* fields: keys are taken as unrotated");
    // A mean query and a mean magnitude, pair by pair, fp32.
    recipe.charge.once =
        std::int64_t{geometry.layers()} * geometry.query_heads * (geometry.k_dim / 2) * 3 * 4;
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
