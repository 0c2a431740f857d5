// SPDX-License-Identifier: Apache-2.0
// What tests of policies start from: traces small enough to reckon by hand, and their outcome.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/replay/engine.h"
#include "sim/run/result.h"
#include "tests/support/trace_builder.h"

namespace kvspan::test {

// One layer, one head, head_dim 1, scale 1: the logit of row i at key j is q[i] * k[j]. Keys are
// logits, and q is 1 unless given, so key j has weight exp(k[j]) in every row.
[[nodiscard]] TraceSpec weights_spec(const std::vector<double>& keys, int prompt,
                                     std::vector<double> queries = {},
                                     std::vector<double> values = {});
[[nodiscard]] Trace weights(const std::vector<double>& keys, int prompt,
                            std::vector<double> queries = {}, std::vector<double> values = {});

// Normal numbers: 4 query heads, 2 KV heads of 4.
[[nodiscard]] Trace random_trace(int tokens, int prompt, std::uint64_t seed, int layers = 2);

// head_dim 1, scale 1, q = 1: key j of a head has weight exp(k[j]) in every row.
//   keys [layers][heads][tokens]
[[nodiscard]] Trace head_weights(const std::vector<std::vector<std::vector<double>>>& keys,
                                 int prompt, int query_heads_per_head = 1);

using Vectors = std::vector<std::vector<double>>;  // [tokens][dim]
// One layer, one head, scale 1. Without queries these are zero: all attention weights are equal.
[[nodiscard]] Trace one_head(const Vectors& keys, int prompt, const Vectors& values = {},
                             const Vectors& queries = {});
// Vectors of one dimension.
[[nodiscard]] Vectors column(const std::vector<double>& numbers);
// Queries of 1: the logit of every row at key j is the key itself.
[[nodiscard]] Trace logits(const std::vector<double>& keys, int prompt, const Vectors& values = {});

// Normal numbers.
[[nodiscard]] Trace random_heads(int tokens, int prompt, int query_heads, int kv_heads,
                                 int layers = 2, std::uint64_t seed = 3);

// A prefill by chunks of so many tokens.
[[nodiscard]] EngineOptions chunk(RowIndex tokens);

// Death rows of one (layer, head).
[[nodiscard]] std::vector<int> deaths(const Trace& trace, const std::string& policy,
                                      const EngineOptions& options = {}, int layer = 0,
                                      int head = 0);

// Prompt tokens of one (layer, head) that outlive the prompt.
[[nodiscard]] std::vector<int> kept(const RunResult& run, int layer, int head);
[[nodiscard]] std::vector<int> kept(const Trace& trace, const std::string& policy, int layer = 0,
                                    int head = 0);
// Their numbers, [layers, heads].
[[nodiscard]] std::vector<std::size_t> kept_sizes(const Trace& trace, const std::string& policy,
                                                  const EngineOptions& options = {});
// How many of the tokens before `row` are there after it, by their death rows.
[[nodiscard]] int alive_after(const std::vector<int>& deaths, int row);

// [query_heads][rows][keys] full-cache probabilities of one layer, by the definition.
[[nodiscard]] std::vector<std::vector<std::vector<double>>> attention(const TraceSpec& spec,
                                                                      int layer);

// Why a policy is refused on a trace; "": it is not.
[[nodiscard]] std::string refusal(const Trace& trace, const std::string& policy);

// In what a replay differs from its policy's closed form; "": in nothing.
[[nodiscard]] std::string off_closed_form(const Trace& trace, const std::string& policy,
                                          const EngineOptions& options,
                                          const Accounting& accounting = {});

// A model with layers 0 .. layers - 1, head_dim 128.
[[nodiscard]] Geometry geometry(int layers, int query_heads, int kv_heads, int prompt,
                                int generated = 0);
// What the first rule of a policy lets each (layer, head) hold after the prompt.
[[nodiscard]] std::vector<TokenCount> capacities(const Policy& policy, const Geometry& g);
// Llama-3.1-8B in fp16, one prefill pass.
[[nodiscard]] Geometry llama_8b(std::int64_t prompt, std::int64_t generated);

}  // namespace kvspan::test
