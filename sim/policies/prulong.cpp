// SPDX-License-Identifier: Apache-2.0
// PruLong: DuoAttention's full and streaming heads, with gates trained by next-token prediction
// under hard-concrete L0 pruning to a target sparsity. What is its own here: of all gates of the
// model the highest int(count * (1 - sparsity)) become full heads, as in the authors'
// save_prulong_masks.py. Their evaluation feeds that mask of zeros and ones, with noise, through
// DuoAttention's quantile, by which a random head of the zeros may turn full: of 256 at 0.7 the
// file has 76, and 77 are run (full=quantile; here the one with the next gate). Streaming heads
// hold 128 sinks and 1,024 recent tokens. heads=FILE holds gates or their log alpha: the
// hard-concrete map is monotone, so only the order matters. The authors break ties at random; here
// the lower (layer, head) is full. Without a file the gates are fitted on a trace as for
// duoattention: a stand-in, not the authors' weights.
// Source: Bhaskar et al., arXiv 2506.17121; code princeton-pli/PruLong.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "sim/policies/shared/head_masks.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

std::int64_t full_heads(std::int64_t heads, double sparsity, bool quantile) {
  if (quantile) return heads - below_quantile(sparsity, heads);
  return static_cast<std::int64_t>(static_cast<double>(heads) * (1 - sparsity));
}

// Half a head below the sparsity that gives `full` exactly, so that rounding cannot lose it.
Knob sparsity_knob(std::int64_t heads, bool quantile) {
  const std::int64_t whole = quantile ? std::max<std::int64_t>(1, heads - 1) : heads;
  return {"sparsity", quantile ? 1 : 0, heads, true, [heads, whole](TokenCount full) {
            const double missing = static_cast<double>(heads - full) - 0.5;
            return fmt::format("{:.12g}", std::max(0.0, missing) / static_cast<double>(whole));
          }};
}

// True if equal gates stand on both sides of the cut.
bool cut_within_a_tie(const HeadScores& gates, const Mask& mask) {
  double lowest_full = HUGE_VAL;
  double highest_streaming = -HUGE_VAL;
  for (std::size_t l = 0; l < gates.size(); ++l) {
    for (std::size_t h = 0; h < gates[l].size(); ++h) {
      if (mask[l][h]) {
        lowest_full = std::min(lowest_full, gates[l][h]);
      } else {
        highest_streaming = std::max(highest_streaming, gates[l][h]);
      }
    }
  }
  return lowest_full == highest_streaming;
}

}  // namespace

PolicyEntry prulong() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "prulong";
  entry.kind = MethodKind::head_budget;
  entry.summary = "full and streaming heads by gates trained on next-token prediction";
  entry.source = "Bhaskar et al. 2025, arXiv 2506.17121";
  entry.evidence = "code read (save_prulong_masks.py)";
  entry.differs =
      "the hard-concrete constants of paper and code differ; only the order of the gates "
      "counts here, and the code's random ties go to the lower (layer, head). The evaluation cuts "
      "the mask file at a quantile again, which may turn one random head of the zeros full "
      "(full=quantile): a slip, and the default is the file's count (full=mask)";
  entry.needs =
      "nothing with heads=FILE or TRACE; else q and k, or probabilities of the last half of the "
      "rows";
  entry.parameters = {
      {.name = "sparsity",
       .kind = Kind::real,
       .fallback = "0.7",
       .help = "share of streaming heads",
       .range = {0, 1}},
      {.name = "heads",
       .kind = Kind::text,
       .fallback = "auto",
       .unit = "file",
       .help = "file of gates or log alpha, [layers][kv_heads], JSON or TSV, or a trace to fit "
               "gates on; "
               "auto: this trace"},
      {.name = "sinks", .fallback = "128", .unit = "tokens", .help = "kept by streaming heads"},
      {.name = "window",
       .fallback = "1024",
       .unit = "tokens",
       .help = "newest kept by streaming heads"},
      {.name = "full",
       .kind = Kind::word,
       .fallback = "mask",
       .help = "number of full heads: the mask file's, or the evaluation's quantile of that file",
       .choices = {"mask", "quantile"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const Protect protect{arguments.count("sinks"), arguments.count("window")};
    const HeadSource source = head_source(arguments, "heads", geometry);
    const std::int64_t heads = std::int64_t{geometry.layers()} * geometry.kv_heads;
    const double sparsity = arguments.real("sparsity");
    const bool quantile = arguments.is("full", "quantile");
    std::vector<std::string> notes;
    HeadScores gates(index(geometry.layers()), std::vector<double>(index(geometry.kv_heads), 0.0));
    std::int64_t total = heads;
    if (!source.fitted()) {
      gates = read_head_scores("prulong", source.file, geometry);
      total = static_cast<std::int64_t>(gates.size()) * geometry.kv_heads;
    } else if (source.trace == nullptr) {
      notes.emplace_back("which heads stream is fitted on a trace; only their number matters here");
    } else if (const std::int64_t full = full_heads(heads, sparsity, quantile);
               full > 0 && full < heads) {
      gates = stored_layers(fitted_gates(*source.trace, protect), geometry);
      notes.push_back(fmt::format(
          "stand-in: streaming heads fitted on {}, not the authors' weights", source.fitted_on()));
    }
    const Mask mask = cut_highest(gates, full_heads(total, sparsity, quantile));
    if (!source.fitted() && cut_within_a_tie(gates, mask))
      notes.emplace_back("equal gates at the cut: the lower (layer, head) is full");
    Recipe recipe = streaming_heads(stored_layers(mask, geometry), protect, geometry);
    recipe.notes = std::move(notes);
    recipe.knob = sparsity_knob(total, quantile);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
