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

// Death rows of one (layer, head).
[[nodiscard]] std::vector<int> deaths(const Trace& trace, const std::string& policy,
                                      const EngineOptions& options = {}, int layer = 0,
                                      int head = 0);

// In what a replay differs from its policy's closed form; "": in nothing.
[[nodiscard]] std::string off_closed_form(const Trace& trace, const std::string& policy,
                                          const EngineOptions& options,
                                          const Accounting& accounting = {});

// Llama-3.1-8B in fp16, one prefill pass.
[[nodiscard]] Geometry llama_8b(std::int64_t prompt, std::int64_t generated);

}  // namespace kvspan::test
