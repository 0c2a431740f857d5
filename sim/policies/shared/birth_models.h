// SPDX-License-Identifier: Apache-2.0
// Shared by policies whose published form scores an entry once, when it is born, by a network on
// hidden states, which no trace holds (locret, kvzap, fast_kvzip): a model fitted on k and v stands
// in for it, or a file says the scores.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sim/policies/shared/fitted.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

// Features k and v of tokens [from, last) of every KV head, at most some thousands of them evenly.
//   label   of a token of a KV head; not a number: no sample
using EntryLabel = std::function<double(int kv_head, RowIndex token)>;
[[nodiscard]] std::vector<Samples> samples_of_entries(const Trace& trace, int layer, RowIndex from,
                                                      RowIndex last, const EntryLabel& label);
// What `kvspan fit NAME` does with them: ridge regression, judged by Kendall's tau.
[[nodiscard]] FittedScorer ridge_of_entries(
    const std::string& name, const std::string& label,
    std::function<std::vector<Samples>(const Trace&, int layer, RowIndex from, RowIndex end,
                                       const FitOptions&)>
        gather);

// The same, labelled by the log of what rows of the trace's replay give to an entry: KVzip's score,
// or KVzip+'s (`plus`). Errors of its use: TraceError where the trace has no replay.
[[nodiscard]] FittedScorer ridge_of_replay(const std::string& name, bool plus);

struct BirthModel : FitSource {
  std::string policy;
  std::shared_ptr<const LayerTable> table;  // of scorer=file; null: fitted
  std::vector<std::string> notes;           // what is to be said of it
};
// The parameters `scorer` and `weights`, and what they say.
// Errors: ConfigError when the file is missing, or of query heads.
[[nodiscard]] std::vector<Parameter> birth_model_parameters();
[[nodiscard]] BirthModel birth_model(const Arguments& arguments, const Geometry& geometry);
// The same where ridge_of_replay() fits.
[[nodiscard]] BirthModel replay_model(const Arguments& arguments, const Geometry& geometry);
// Ranks by it.
[[nodiscard]] Scoring birth_model_scoring(const BirthModel& model);

}  // namespace kvspan::policies
