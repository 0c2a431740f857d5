// SPDX-License-Identifier: Apache-2.0
//
// Brute-force twins of policies that act while tokens are generated: they evict in decode, or
// choose what a row reads. Plain loops in double precision, from written definitions alone; slow.
// Source: the papers and codes named in the head of each policy's file.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tests/twin/twin.h"

namespace kvspan::twin::decode {

// Arguments of a policy by name, as text. A share of the prompt is written "12.5%".
using Parameters = std::map<std::string, std::string>;

// Facts of the text beside q, k and v.
struct Text {
  std::vector<std::string> pieces;  // [tokens], empty: none
  std::vector<int> special;         // tokens with a special id
  bool knows_special = false;       // the trace names special ids
};

// Bytes are summed over layers and stored heads, while a row attends; 2 bytes an element.
struct Outcome {
  int heads = 0;                         // stored heads
  std::vector<int> death;                // [layers, heads, tokens]
  std::vector<std::vector<int>> active;  // [layers, query_heads, tokens] tokens read, ascending
  std::vector<long long> loaded;         // [tokens] union over a KV head's query heads, summed
  std::vector<double> row_mass;          // [tokens] mean over layers and query heads
  double mass = 0, error = 0;            // means over decode rows, NaN: there are none
  double prefill_mass = 0, prefill_error = 0;
  double logit_error = 0;  // decode rows: distance of logits read from the full cache's, by its p
  std::vector<long long> payload, overhead;  // [tokens]
  long long decisions = 0, near_ties = 0;
  std::vector<char> near;  // [layers] some decision hung on less than 1e-5, relative
};

// Policies: streaming_llm lambda scissorhands keyformer r_kv sagekv fastgen h2o quest rocketkv
// retroattention refreshkv infinigen minference clusterkv; and a+quest, a+minference, where `a`
// evicts by what is read. There, Quest's parameters are written "quest.page".
// REQUIRES: shapes as in twin::Trace, v present; every parameter is given that the
// policy has no plain default for.
// Errors: std::invalid_argument for an unknown policy or a missing parameter.
[[nodiscard]] Outcome simulate(const Trace& trace, const std::string& policy,
                               const Parameters& parameters, const Plan& plan,
                               const Text& text = {});

}  // namespace kvspan::twin::decode
