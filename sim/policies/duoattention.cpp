// SPDX-License-Identifier: Apache-2.0
// DuoAttention: retrieval heads keep everything, streaming heads keep sinks and a recent window.
// Source: Xiao et al., arXiv 2410.10819; code mit-han-lab/duo-attention. heads=FILE holds gates per
// (layer, KV head), [layers][kv_heads] as JSON or TSV: with sparsity they are cut at that quantile
// as in the authors' code, without it a gate above 0.5 is a full head. Without a file the streaming
// heads are chosen on a trace (rows [N/2, N), mean mass outside sinks and window, maximum over the
// group): a stand-in, printed as one, and one that reads the future where no other trace is named.
#include <cmath>

#include <fmt/format.h>

#include "sim/policies/shared/head_masks.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

PolicyEntry duoattention() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "duoattention";
  entry.kind = MethodKind::head_budget;
  entry.summary = "retrieval heads keep all, streaming heads keep sinks and a recent window";
  entry.source = "Xiao et al. 2024, arXiv 2410.10819";
  entry.evidence = "code read";
  entry.differs =
      "the paper rounds gates at 0.5, the code cuts at a quantile: sparsity= is the code's, a file "
      "without it the paper's; the authors' pattern files are for 128 sinks and 256 recent tokens, "
      "1024 recent ones are those of arXiv 2506.17121";
  entry.needs =
      "nothing with heads=FILE or TRACE; else q and k, or probabilities of the last half of the "
      "rows";
  entry.parameters = {
      {.name = "heads",
       .kind = Kind::text,
       .fallback = "auto",
       .unit = "file",
       .help =
           "file of gates, [layers][kv_heads], JSON or TSV, or a trace to fit them on; auto: this "
           "trace"},
      {.name = "sparsity",
       .kind = Kind::real,
       .fallback = "auto",
       .help = "share of streaming heads; auto: 0.5 without a file of gates",
       .range = {0, 1}},
      {.name = "sinks", .fallback = "128", .unit = "tokens", .help = "kept by streaming heads"},
      {.name = "window",
       .fallback = "1024",
       .unit = "tokens",
       .help = "newest kept by streaming heads"}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const Protect protect{arguments.count("sinks"), arguments.count("window")};
    const HeadSource source = head_source(arguments, "heads", geometry);
    const std::int64_t heads = static_cast<std::int64_t>(geometry.layers()) * geometry.kv_heads;
    std::vector<std::string> notes;
    Mask mask;
    if (!source.fitted()) {
      const HeadScores all = read_head_scores("duoattention", source.file, geometry);
      const auto gates_total = static_cast<std::int64_t>(all.size()) * geometry.kv_heads;
      Mask full;
      if (arguments.has("sparsity")) {
        full = cut_lowest(all, below_quantile(arguments.real("sparsity"), gates_total));
      } else {
        for (const auto& row : all) {
          full.emplace_back();
          for (const double gate : row) full.back().push_back(gate > 0.5);
        }
      }
      mask = stored_layers(full, geometry);
    } else {
      if (!arguments.has("sparsity")) arguments.set("sparsity", "0.5");
      const std::int64_t streaming =
          std::llrint(arguments.real("sparsity") * static_cast<double>(heads));
      HeadScores gates(static_cast<std::size_t>(geometry.layers()),
                       std::vector<double>(static_cast<std::size_t>(geometry.kv_heads), 0.0));
      if (source.trace != nullptr && streaming > 0 && streaming < heads) {
        gates = stored_layers(fitted_gates(*source.trace, protect), geometry);
        notes.push_back("stand-in: streaming heads fitted on " + source.fitted_on());
      } else if (source.trace == nullptr) {
        notes.emplace_back(
            "which heads stream is fitted on a trace; only their number matters here");
      }
      mask = cut_lowest(gates, streaming);
    }
    Recipe recipe = streaming_heads(std::move(mask), protect, geometry);
    recipe.notes = std::move(notes);
    if (source.fitted()) {
      recipe.knob = Knob{"sparsity", 0, heads, true, [heads](TokenCount full) {
                           return fmt::format("{:.12g}", static_cast<double>(heads - full) /
                                                             static_cast<double>(heads));
                         }};
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
