// SPDX-License-Identifier: Apache-2.0
// Reports built without trace, engine or metrics: deaths follow a simple rule, figures follow from
// the deaths by counting, fidelity is made up.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/run/result.h"

namespace kvspan::test {

struct FakeRun {
  enum class Rule : std::uint8_t {
    keep_all,    // never evicts
    window,      // after every pass: 4 sinks and the newest `budget`
    prompt_end,  // at the prompt's end: `budget` of the prompt; decode appends
    rolling      // the same, and one leaves in every decode row
  };
  std::string spec;
  Rule rule = Rule::keep_all;
  std::int64_t budget = 0;
  std::int64_t overhead_per_entry = 0;
  std::string label = {};  // empty: spec
  bool bound = false;
  std::vector<std::string> notes = {};
};

struct FakeShape {
  std::int64_t tokens = 64;
  std::int64_t prompt = 48;
  std::int64_t chunk = 0;
  int layers = 2;
  int heads = 2;
  bool fidelity = true;
};

[[nodiscard]] RunReport fake_report(const FakeShape& shape, const std::vector<FakeRun>& runs);

// full, and `count` - 1 others: four rules of names at growing budgets.
[[nodiscard]] RunReport fake_sweep(const FakeShape& shape, int count);

// Four runs of 64 tokens, two layers: snapkv, full, an oracle and h2o with overhead and a note.
[[nodiscard]] RunReport small_report();

// The lines of a text, without their ends.
[[nodiscard]] std::vector<std::string> lines_of(const std::string& text);

}  // namespace kvspan::test
