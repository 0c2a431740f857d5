// SPDX-License-Identifier: Apache-2.0
// Fast KVzip: a gate on the hidden state says, when an entry is born, what KVzip would find out by
// asking the context back; once, after the prompt, the best entries of all layers and heads stay
// (cut=layer: of each layer). The first `sinks` tokens stay, and the newest `window`: 2 % of a
// prompt of less than 32,000 tokens, at least one; 4,096 of a longer one.
// Source: arXiv 2601.17668; code Janghyun1230/FastKVzip, NVIDIA/kvpress FastKVzipPress by the first
// author. The gate (per layer 16-dimensional queries and keys of the hidden state against 16
// learned sinks) is trained on KVzip's scores and gives numbers in (0, 1).
// scorer=ridge: a stand-in, for no trace holds hidden states: ridge of the log of KVzip's score on
// k and v, from rows of `kvspan capture --replay`, which asks after the whole prompt.
// scorer=file: `scores`, the authors' gate's own outputs.
#include <algorithm>

#include "sim/policies/shared/birth_models.h"
#include "sim/policies/shared/one_list.h"

namespace kvspan::policies {
namespace {

constexpr RowIndex kLongPrompt = 32000;
constexpr TokenCount kLongWindow = 4096;

TokenCount window_of(RowIndex prompt) {
  if (prompt >= kLongPrompt) return kLongWindow;
  return std::max<TokenCount>(1, static_cast<TokenCount>(static_cast<double>(prompt) * 0.02));
}

// Numbers of the gate of one layer, on a hidden size of query heads x head_dim: both projections,
// their norms, constants and sinks.
std::int64_t published_numbers(const Geometry& geometry) {
  constexpr std::int64_t kDim = 16, kSinks = 16;
  const std::int64_t queries = geometry.query_heads, keys = geometry.kv_heads;
  return (queries * geometry.k_dim) * kDim * (queries + keys) + queries * kDim + 2 * kDim +
         keys * kSinks * kDim + queries;
}

}  // namespace

FittedScorer fast_kvzip_fit() { return ridge_of_replay("fast_kvzip", false); }

PolicyEntry fast_kvzip() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "fast_kvzip";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps what a gate at birth says that KVzip would, over all layers and heads";
  entry.source = "Kim et al. 2026, arXiv 2601.17668; code Janghyun1230/FastKVzip, NVIDIA/kvpress";
  entry.evidence = "code read; weights fitted here";
  entry.differs =
      "the gate reads hidden states, here k and v; kvpress counts what leaves, int(ratio x all "
      "entries); the authors' program also cuts chunks of a prompt, and in decode";
  entry.needs =
      "k and v, and q and replayed rows to fit on, or `weights` of another trace (file: nothing)";
  entry.needs_file = true;
  entry.parameters = {budget_parameter("20%", "entries kept per layer and KV head, on average")};
  for (Parameter& p : birth_model_parameters()) entry.parameters.push_back(p);
  entry.parameters.push_back({.name = "cut",
                              .kind = Kind::word,
                              .fallback = "model",
                              .help = "who shares one ranking",
                              .choices = {"model", "layer"}});
  entry.parameters.push_back(
      {.name = "sinks", .fallback = "4", .unit = "tokens", .help = "first, kept"});
  entry.parameters.push_back({.name = "window",
                              .fallback = "auto",
                              .unit = "tokens",
                              .help = "newest, kept; auto: 2 % of the prompt, of 32,000 on 4096"});
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    if (!arguments.has("window"))
      arguments.set("window", std::to_string(window_of(geometry.evict_point)));
    const BirthModel model = replay_model(arguments, geometry);
    Recipe recipe = budgeted(arguments, geometry, own(birth_model_scoring(model)));
    recipe.notes = model.notes;
    recipe.protect = own(ProtectRule(
        [sinks = arguments.count("sinks"), window = arguments.count("window")](TokenCount) {
          return Protect{sinks, window};
        }));
    share_out_by_one_ranking(recipe, geometry, 0,
                             arguments.is("cut", "model") ? Over::model : Over::layer);
    recipe.charge.once += geometry.layers() * geometry.kv_bytes * published_numbers(geometry);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
