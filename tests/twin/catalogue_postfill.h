// SPDX-License-Identifier: Apache-2.0
// Brute-force twin of the policies that rank, spread and admit entries of the prompt: plain loops
// in double precision, from the papers and the registry's definitions alone. See twin.h.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tests/twin/twin.h"

namespace kvspan::twin::postfill {

// A policy's parameters as text; absent: the registry's default. Of a wrapper, `inner` names the
// policy inside and `inner.X` its parameters. Sizes are tokens ("12"), a share ("33%") or bytes
// ("640B").
using Parameters = std::map<std::string, std::string>;

// What a user's files or extra tensors hold.
struct Tables {
  std::vector<std::vector<double>> wo;     // [layers][hidden, query_heads * v_head_dim]
  std::vector<std::vector<double>> gates;  // [model layers][heads] headkv, prulong, baklava
  // [layers, kv_heads, tokens] locret, write_gate; trimkv: log beta
  std::vector<double> scores;
  std::vector<double> curve;  // [99, layers, kv_heads] lukv

  // Rows that the model was asked beside the sequence.
  struct Probe {
    int begin = 0, end = 0, at = 0, rows = 0, first = 0;
  };
  std::vector<Probe> probes;
  // [layers][rows, query_heads, head_dim], [layers][rows, kv_heads, head_dim], [layers][rows]
  std::vector<std::vector<double>> probe_q, probe_k, probe_norm;
};

// Bytes of the whole model while a row attends.
struct Bytes {
  long long payload = 0, overhead = 0;
};

struct Outcome {
  int heads = 0;                // stored heads of a layer
  std::vector<int> death;       // [layers, heads, tokens] row at which the entry dies; N: never
  std::vector<char> near;       // [layers, heads] some decision was a near tie
  Near near_count;              // decisions, and near ties among them
  std::vector<long long> read;  // [tokens] entries read, summed over layers and heads, if a policy
                                // chooses what the prompt's rows read; else empty
  double mass_prefill = 0, mass_decode = 0;       // means over rows, layers and query heads
  double error_decode = 0, error_decode_max = 0;  // relative output error; NaN without rows or v
  std::vector<Bytes> bytes;                       // [tokens]; the last is what is there at the end
};

// Policies: kvzip kvcompose finch vase trimkv caote global cake lava triattention qfilter cap
// compactor leverage noncausal lookahead knorm keydiff lagkv expected_attention cur
// observed_attention simlayerkv adakv (pyramid: under it, its beta) chunkkv dbudgetkv headkv
// prulong baklava pyramidkv criticalkv chunk block dms decoding judgeq write_gate (quest.X: pages
// of it) locret foresightkv (feature, feature_head: the statistic that scores); snapkv inside
// wrappers, and with preset=prulong; chunked over such. lukv=1: under its curve.
// Errors: std::invalid_argument for a policy, parameter value or plan without meaning.
[[nodiscard]] Outcome simulate(const Trace& trace, const std::string& policy,
                               const Parameters& parameters, const Plan& plan,
                               const Tables& tables = {});

}  // namespace kvspan::twin::postfill
