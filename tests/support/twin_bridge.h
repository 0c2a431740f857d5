// SPDX-License-Identifier: Apache-2.0
// From a random case to both sides of the comparison: a trace and policy text for the engine, plain
// numbers for the brute-force twin.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "sim/replay/engine.h"
#include "sim/run/result.h"
#include "tests/support/trace_builder.h"
#include "tests/twin/twin.h"

namespace kvspan::test {

struct Case {
  TraceSpec trace;
  twin::Spec policy;
  twin::Plan plan;
  std::string text;  // the same policy for the engine
  std::string what;  // one line for a failure message
};

using Random = std::mt19937_64;
// How many of the random cases of a twin or a property run: half; all with KVSPAN_DEEP, which
// `./build.sh test all` sets; a quarter where KVSPAN_SIMD chooses lesser instructions, which share
// everything with the best ones but last bits.
[[nodiscard]] int share_of_cases(int all);
[[nodiscard]] int pick(Random& random, int lowest, int highest);  // both included
template <class T>
[[nodiscard]] T one_of(Random& random, const std::vector<T>& choices) {
  return choices[static_cast<std::size_t>(pick(random, 0, static_cast<int>(choices.size()) - 1))];
}
[[nodiscard]] inline std::string one_of(Random& random, const std::vector<std::string>& choices) {
  return one_of<std::string>(random, choices);
}

// A small random trace; `integers`: q and k from {-1, 0, 1}, with repeated keys, so that ties
// abound.
[[nodiscard]] TraceSpec random_trace(Random& random, bool integers);
[[nodiscard]] twin::Trace twin_trace(const TraceSpec& spec);
// A random policy for that trace. Files that it needs are written into `folder`.
[[nodiscard]] Case random_case(Random& random, bool integers, const std::string& folder);

[[nodiscard]] EngineOptions engine_options(const Case& c);
// One policy through the engine, metrics included.
[[nodiscard]] RunResult run_one(const Trace& trace, const std::string& policy,
                                const EngineOptions& options, const Accounting& accounting = {});

}  // namespace kvspan::test
