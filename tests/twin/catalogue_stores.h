// SPDX-License-Identifier: Apache-2.0
// Brute-force twin of the policies that hold entries in fewer bytes, or fold them into a state:
// plain loops in double precision, from the papers and the registry's definitions alone. See
// twin.h.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tests/twin/twin.h"

namespace kvspan::twin::stores {

// Parameters as text under "policy.parameter"; absent: the registry's default. Sizes are tokens
// ("12"), a share ("33%") or bytes ("640B").
using Parameters = std::map<std::string, std::string>;

struct Outcome {
  std::vector<int> death;   // [layers, kv_heads, tokens] row at which the entry dies; N: never
  std::vector<char> near;   // [layers, kv_heads] some decision of the head was a near tie
  long long decisions = 0;  // (layer, head, pass) at which something left or was demoted
  long long near_ties = 0;  // those with an unequal kept and lost score within 1e-5 relative
  // Roundings (to a code, to fp16, of a channel's rank) so near a tie that fp32 may go the other
  // way.
  long long near_codes = 0, codes = 0;

  double mass_decode = 0;       // mean retained mass of decode rows
  double error_decode = 0;      // mean relative output error
  double error_decode_max = 0;  // the largest
  double logit_decode = 0;      // mean distance of logits, nats

  std::vector<long long> payload,
      overhead;                          // [tokens] bytes of the whole model while a row attends
  long long layerwise_peak = 0;          // of prefill, layer by layer, and of decode
  std::vector<std::vector<int>> folded;  // [layers * kv_heads] tokens in the state (less)
};

// Policies: kivi qpruningkv think mikv less kvquant turboquant, each alone or as "evictor+store",
// cam and merge so only, with snapkv, h2o, streaming_llm, or "given": deaths from `given` (the same
// shape as Outcome.death).
// Errors: std::invalid_argument for a policy or parameter without meaning.
[[nodiscard]] Outcome simulate(const Trace& trace, const std::string& policy,
                               const Parameters& parameters, const Plan& plan,
                               const std::vector<int>& given = {});

}  // namespace kvspan::twin::stores
