// SPDX-License-Identifier: Apache-2.0
// KVzip: keeps what a context can be repeated from. After the context the model is asked for it,
// chunk by chunk (kvspan capture --replay); with p the softmax of such a row over
//   the first `sinks` tokens, the chunk that is asked for, and the rows of the pass up to itself
// an entry's score is the largest p that it gets from a row of a query head of its group, and the
// best entries of all layers and heads stay (cut=model; of a layer, or of each head).
//   plus   p / ||h|| x ||Wo v||: h what the row's projections read, Wo v what the entry adds to the
//          output of the query head (KVzip+)
// The first `sinks` tokens stay; so do tokens behind the context, a question, which have no score.
// Source: Kim et al., arXiv 2505.23416; code snu-mllab/KVzip (sinks: all tokens before the context,
// a system prompt; chunks of 2,000; cut=model is its level "pair", cut=head "pair-uniform") and
// NVIDIA/kvpress KVzipPress by the first author (4 sinks, chunks of 2,048, cut=layer: layerwise).
// The model's window and soft cap play no part in p. While the model is asked, its cache holds the
// rows of a pass, too.
#include <algorithm>

#include <fmt/format.h>

#include "sim/policies/shared/one_list.h"
#include "sim/policies/shared/replay_scores.h"

namespace kvspan::policies {
namespace {

// Where no trace says more: rows of a pass that asks for 2,000 tokens, as the authors' do, at most.
constexpr RowIndex kWords = 64;
constexpr RowIndex kMostRows = 2000 + kWords;

std::vector<Parameter> kvzip_parameters() {
  using Kind = Parameter::Kind;
  return {budget_parameter("20%", "entries kept per layer and KV head, on average"),
          {.name = "plus",
           .kind = Kind::flag,
           .fallback = "false",
           .help = "weigh by what a row reads and what an entry adds to the output"},
          {.name = "cut",
           .kind = Kind::word,
           .fallback = "model",
           .help = "who shares one ranking",
           .choices = {"model", "layer", "head"}},
          {.name = "sinks",
           .fallback = "auto",
           .unit = "tokens",
           .help = "first, kept; auto: all before what is asked for"}};
}

}  // namespace

PolicyEntry kvzip() {
  PolicyEntry entry;
  entry.name = "kvzip";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps what the model looks at when it is asked to repeat the context";
  entry.source = "Kim et al. 2025, arXiv 2505.23416; code snu-mllab/KVzip, NVIDIA/kvpress";
  entry.evidence = "code read";
  entry.differs =
      "the authors leave the system prompt out of the budget, and keep one entry less than a share "
      "gives; kvpress keeps 4 sinks (sinks=4) and counts what leaves, int(ratio x all entries); "
      "scores have the model's type there";
  entry.needs = "q, k and replayed rows (kvspan capture --replay); plus: v and wo, too";
  entry.parameters = kvzip_parameters();
  entry.needs_file = true;
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    ReplaySettings settings{.policy = "kvzip", .plus = arguments.flag("plus")};
    settings.sinks = arguments.has("sinks") ? arguments.count("sinks") : 0;
    settings.at = geometry.evict_point;
    RowIndex rows = std::min(kMostRows, geometry.evict_point + kWords);
    if (geometry.trace != nullptr) {
      rows = read_replay(geometry, settings);
      if (!arguments.has("sinks")) settings.sinks = settings.probes.front().begin;
      arguments.set("sinks", std::to_string(settings.sinks));
    }
    Scoring scoring;
    scoring.make = [settings, geometry](const LayerShape&) {
      return std::make_unique<ReplayScores>(settings, geometry);
    };
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    recipe.protect = own(ProtectRule(
        [sinks = settings.sinks, behind = geometry.evict_point - settings.at](TokenCount) {
          return Protect{sinks, behind};
        }));
    charge_replay(recipe, geometry, rows);
    recipe.closed_form = geometry.trace != nullptr;  // else the words of the replay are not known
    if (geometry.trace == nullptr)
      recipe.notes.push_back(fmt::format("at most {} rows at a time ask for the context", rows));
    if (arguments.is("cut", "model")) {
      share_out_by_one_ranking(recipe, geometry, 0, Over::model);
    } else {  // every pass of the replay adds to the scores of all layers
      charge_shown_scores(recipe, geometry, geometry.evict_point);
      if (arguments.is("cut", "layer")) share_out_by_one_ranking(recipe, geometry, 0, Over::layer);
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
