// SPDX-License-Identifier: Apache-2.0
// KVzap: what KVzip+ would find out by asking the context back is predicted when an entry is born,
// by a linear model or a small network on the hidden state: the log of KVzip+'s score. As a policy
// it ranks by it, once, after the prompt (kvpress KVzapPress, each head by itself). As published, a
// threshold decides when an entry leaves a window of 128, in the prompt's end and in decode:
//   dms(kvzap(...),threshold=-4,variant=kvpress)       thresholds of -3 to -9
// Source: arXiv 2601.07891; code NVIDIA/kvpress (kvzap_press.py, dms_press.py, kvzap/train.py).
// scorer=ridge: a stand-in, for no trace holds hidden states: ridge of the same label on k and v.
// Labels come from rows of `kvspan capture --replay --wo`, which asks after the whole prompt; their
// softmax is over a chunk of the context, where the training's is over all of it.
// scorer=file: `scores`, the authors' model's own outputs (logs).
#include "sim/policies/shared/birth_models.h"

namespace kvspan::policies {
namespace {

constexpr std::int64_t kHiddenUnits = 512;  // of the published network

// Numbers of the published model of one layer, on a hidden size of query heads x head_dim.
std::int64_t published_numbers(const Geometry& geometry, bool mlp) {
  const std::int64_t hidden = std::int64_t{geometry.query_heads} * geometry.k_dim;
  if (mlp) return kHiddenUnits * (hidden + 1) + geometry.kv_heads * (kHiddenUnits + 1);
  return geometry.kv_heads * (hidden + 1);
}

}  // namespace

FittedScorer kvzap_fit() { return ridge_of_replay("kvzap", true); }

PolicyEntry kvzap() {
  PolicyEntry entry;
  entry.name = "kvzap";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps what a model at birth says that KVzip+ would; dms(kvzap) by threshold";
  entry.source = "arXiv 2601.07891; code NVIDIA/kvpress";
  entry.evidence = "code read (kvpress); weights fitted here";
  entry.differs =
      "the published form is dms(kvzap,threshold=-4,variant=kvpress); the model reads hidden "
      "states, here k and v";
  entry.needs =
      "k and v, and q, wo and replayed rows to fit on, or `weights` of another trace (file: "
      "nothing)";
  entry.needs_file = true;
  entry.parameters = {budget_parameter()};
  for (Parameter& p : birth_model_parameters()) entry.parameters.push_back(p);
  entry.parameters.push_back({.name = "model",
                              .kind = Parameter::Kind::word,
                              .fallback = "mlp",
                              .help = "the published one whose weights are charged",
                              .choices = {"mlp", "linear"}});
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const BirthModel model = replay_model(arguments, geometry);
    Recipe recipe = budgeted(arguments, geometry, own(birth_model_scoring(model)));
    recipe.notes = model.notes;
    recipe.charge.once = geometry.layers() * geometry.kv_bytes *
                         published_numbers(geometry, arguments.is("model", "mlp"));
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
