// SPDX-License-Identifier: Apache-2.0
// The one list of policies. Explicit: self-registration silently fails in static libraries.
#include "sim/recipe.h"

namespace kvspan {
namespace policies {
PolicyEntry full();
PolicyEntry random();
PolicyEntry streaming_llm();
PolicyEntry h2o();
PolicyEntry tova();
PolicyEntry snapkv();
PolicyEntry pyramidkv();
PolicyEntry pyramid();
PolicyEntry duoattention();
PolicyEntry scores();
PolicyEntry deaths();
PolicyEntry chunked();
PolicyEntry foresightkv();
PolicyEntry write_gate();
PolicyEntry judgeq();
PolicyEntry locret();
}  // namespace policies

const std::vector<PolicyEntry>& registry() {
  static const std::vector<PolicyEntry> entries = {
      policies::full(),        policies::random(),     policies::streaming_llm(),
      policies::h2o(),         policies::tova(),       policies::snapkv(),
      policies::pyramidkv(),   policies::pyramid(),    policies::duoattention(),
      policies::scores(),      policies::deaths(),     policies::chunked(),
      policies::foresightkv(), policies::write_gate(), policies::judgeq(),
      policies::locret(),
  };
  return entries;
}

}  // namespace kvspan
