// SPDX-License-Identifier: Apache-2.0
// Random cases of the post-fill policies: a small trace, a policy with random parameters, as text
// for the engine and as parameters for the twin.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/twin_bridge.h"
#include "tests/twin/catalogue_postfill.h"

namespace kvspan::test {

[[nodiscard]] bool coin(Random& random, int of = 2);

// 2 layers (of up to 5), 1 to 3 KV heads of up to 2 query heads, `tokens` to 3 times as many.
[[nodiscard]] TraceSpec small_trace(Random& random, bool integers, int tokens = 20);

struct Drawn {
  TraceSpec trace;
  TraceMeta meta;
  std::string policy;
  twin::postfill::Parameters parameters;
  twin::postfill::Tables tables;
  twin::Plan plan;
  std::vector<std::pair<std::string, std::string>> own, inner;  // in the order of the text
  std::string before, after;                                    // of a sum with others
  bool ties = false;                                            // the trace is made of them

  void set(const std::string& key, const std::string& value) {
    own.emplace_back(key, value);
    parameters[key] = value;
  }
  void set(const std::string& key, int value) { set(key, std::to_string(value)); }
  void set_inner(const std::string& key, const std::string& value) {
    inner.emplace_back(key, value);
    parameters["inner." + key] = value;
  }
  void set_inner(const std::string& key, int value) { set_inner(key, std::to_string(value)); }
  // For the engine alone: a file.
  void set_file(const std::string& key, const std::string& path) {
    own.emplace_back(key, "\"" + path + "\"");
  }

  [[nodiscard]] std::string text() const;
  [[nodiscard]] int prompt() const { return static_cast<int>(meta.prompt_tokens); }
};

// The trace for the engine, replayed rows included.
[[nodiscard]] Trace traced(const Drawn& d);

// Random parameters of one policy, for the trace and plan drawn already.
using Draw = std::function<void(Random&, Drawn&, const std::string& folder)>;
using Draws = std::vector<std::pair<std::string, Draw>>;

[[nodiscard]] std::string some_budget(Random& random, const Drawn& d, int heads = 0,
                                      bool no_share = false);
// A random number of each entry, as a tensor of a file in `folder`; its path.
[[nodiscard]] std::string some_table(Random& random, Drawn& d, const std::string& tensor,
                                     const std::string& folder);
void inner_policy(Random& random, Drawn& d, const std::string& name, bool sized);

[[nodiscard]] const Draws& postfill_draws();
// Of methods of 2025 and 2026.
[[nodiscard]] const Draws& recent_draws();
// Of methods that look at replayed rows, at values, or at numbers in a file.
[[nodiscard]] const Draws& asked_draws();
// What needs traces of 100 to 300 tokens: the baselines of arXiv 2506.17121, whose programs round
// to 64 tokens, and foresightkv's longest sums.
[[nodiscard]] const Draws& long_draws();

}  // namespace kvspan::test
