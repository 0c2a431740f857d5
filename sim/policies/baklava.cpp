// SPDX-License-Identifier: Apache-2.0
// BaKlaVa-like: fixed budgets per (layer, KV head) from how much a head changes what it reads;
// sinks and a recent window in every head, after every pass. A labelled stand-in: of BaKlaVa only
// the abstract and secondary accounts could be read, and they leave open what a head's input is,
// how importance becomes tokens, and which eviction runs inside.
//
//   importance   I = mean over the group of 1 - mean over rows of cos(v_row, o_row), from the
//                values and the full cache's outputs; in a trace without values 1 - mean attention
//                of a row to itself
//   budgets      B heads I^p / sum I^p, at least sinks + 4 and at most the prompt (water-filling:
//                what the bounds cut off goes to the others), rounded by largest remainder: the
//                sum is B heads. A bound that B itself does not meet gives way
//   power        p from a grid: least attention mass lost outside sinks and windows, the windows
//                scaled to the calibration's length (in place of the perplexity that the authors
//                search with)
//
// The calibration is the first half of the replayed prompt, or the whole prompt of another trace
// that profile= names: at most 256 rows of it, evenly spaced.
// Source: Gulhan et al., arXiv 2502.13176. No code was published.
#include <algorithm>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/baklava_rule.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/trace_reads.h"
#include "sim/policy/memo.h"

namespace kvspan::policies {

PolicyEntry baklava() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "baklava";
  entry.kind = MethodKind::head_budget;
  entry.summary = "baklava-like: sinks and recent windows, longer in heads that change values more";
  entry.source = "Gulhan et al. 2025, arXiv 2502.13176";
  entry.evidence = "secondary";
  entry.differs =
      "no public code; the cosine's input, the GQA operator and the map from importance to "
      "tokens are unpublished, so that this is a stand-in by name";
  entry.needs =
      "nothing with profile=TRACE, or profile=FILE and power; else q, k and v, or probabilities of "
      "the prompt's first half";
  entry.parameters = {
      budget_parameter(),
      {.name = "profile",
       .kind = Kind::text,
       .fallback = "auto",
       .unit = "file",
       .help = "file of importance, [layers][kv_heads], JSON or TSV, or a trace to "
               "calibrate on; auto: this trace"},
      {.name = "power",
       .kind = Kind::real,
       .fallback = "auto",
       .help = "exponent of the importance; auto: least mass lost on a grid",
       .range = {0, 100}},
      {.name = "sinks", .fallback = "4", .unit = "tokens", .help = "first tokens, always kept"}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const TokenCount sinks = arguments.count("sinks");
    const HeadSource source = head_source(arguments, "profile", geometry);
    const Trace* base = source.other ? source.other.get() : geometry.trace;
    const std::optional<double> power =
        arguments.has("power") ? std::optional(arguments.real("power")) : std::nullopt;
    Recipe recipe =
        budgeted(arguments, geometry, own(position_scoring()), own(Schedule::every_pass()));
    HeadScores importance(index(geometry.layers()),
                          std::vector<double>(index(geometry.kv_heads), 1.0));
    std::shared_ptr<const Calibration> calibration;
    const bool known = !source.fitted() && power;  // nothing to calibrate
    if (base != nullptr && !known) {
      const RowIndex end = source.other ? base->meta().prompt_tokens : geometry.evict_point / 2;
      calibration = remembered<Calibration>(
          geometry.memo, fmt::format("baklava {} {} {}", base->name(), end, sinks),
          [&] { return calibrate(*base, end, sinks, geometry); });
      importance = calibration->importance;
      recipe.notes.push_back(fmt::format(
          "baklava-like stand-in: {} calibrated on the {}{}", source.fitted() ? "budgets" : "power",
          source.other ? "prompt of " + source.fitted_on()
                       : "first half of this prompt" + truncation(base),
          !source.fitted() || base->has_v()
              ? ""
              : "; the trace holds no values, so heads count by how little a row reads itself"));
    } else {
      recipe.notes.emplace_back("baklava-like stand-in");
    }
    if (!source.fitted()) {
      importance = stored_layers(read_head_scores("baklava", source.file, geometry), geometry);
      for (const auto& layer : importance) {
        for (const double i : layer) {
          if (i < 0) {
            throw TraceError(
                fmt::format("baklava: '{}' holds the importance {:g}, expected none "
                            "below 0",
                            source.file, i));
          }
        }
      }
    }
    if (base == nullptr && !known) {
      recipe.closed_form = false;
      recipe.notes.emplace_back(source.fitted() ? "importance is fitted on a trace; equal here"
                                                : "the power is fitted on a trace; 1 here");
    }
    const auto allocation = std::make_shared<Allocation>(std::move(importance), calibration, sinks,
                                                         power, geometry.evict_point);
    if (calibration != nullptr && !power) {
      recipe.notes.back() += fmt::format(
          ", power {:g}", allocation->power_of(entries_of(arguments, "budget", geometry)));
    }
    recipe.shape = own(allocation);
    recipe.protect = own(ProtectRule([sinks](TokenCount budget) {
      const TokenCount first = std::min(sinks, budget);
      return Protect{first, budget - first};
    }));
    recipe.charge.once = 4LL * geometry.layers() * geometry.kv_heads;  // the length of every head
    recipe.knob->monotone = power.has_value();
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
