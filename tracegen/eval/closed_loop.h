// SPDX-License-Identifier: Apache-2.0
// A model under cache policies: what leaves is gone for every later row, and what comes of it is
// measured. Of one prompt, under many policies:
//
//   prefill   the prompt runs through the model once, with the full cache
//   walk      every policy follows it, as in a replay, up to the first row whose reads may differ:
//             mostly the prompt's end
//   fork      there each gets its own copy-on-write sequence (forked_memory.h); a policy that
//             evicts inside the prompt reads the rest of it alone
//   decode    one row of every sequence at a time, as one batch: weights are read once for all of
//             them; attention is the lanes' own (sim/replay/live_replay.h)
//
// A policy runs twice at once: as it answers, greedily, and as it reads the reference answer. What
// it gives does not depend on who else runs, nor on the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sim/policy/spec.h"
#include "sim/run/result.h"
#include "tracegen/eval/open_loop.h"
#include "tracegen/eval/sequence.h"
#include "tracegen/forward/stable_dense.h"
#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

// One prompt, and what comes after it.
struct LoopInput {
  std::string name;
  Sequence::Text prompt;
  std::vector<Span> spans;
  std::vector<std::int32_t> reference;  // read after the prompt; may be empty
  std::int64_t generate = 0;            // tokens of an answer, at most
  std::vector<std::int32_t> stop;       // an answer ends with one of these
};

struct LoopOptions {
  RowIndex evict_point = 0;  // 0: the prompt's end
  RowIndex chunk = 0;        // prefill chunk, tokens; 0: one pass
  Accounting accounting;
  std::uint64_t seed = 0;
  int threads = 0;                               // 0: all
  std::int64_t memory = std::int64_t{4} << 30U;  // anonymous memory at most
  std::int64_t share = 0;  // of it, while others run beside this one; 0: all of it
  // Products that keep widened weights over several prompts (of the same checkpoint); null: an own
  // one, which keeps nothing.
  StableDense* dense = nullptr;
  bool proxies = false;  // replays the full cache's reading as well, see open_loop.h
  std::function<void(double done)> progress = {};  // in [0, 1]
  std::function<bool()> cancelled = {};            // polled; true ends it with Interrupted
};

// What became of one policy. Its ledger is that of the answer, or, if there is none, of the
// reference.
struct LoopRun {
  RunResult run;
  std::vector<std::int32_t> answer;  // the stop included
  std::vector<float> nll;            // [reference] -ln p of each token, nats
  std::vector<double> divergence;    // [reference] KL(full cache || policy) of each row, nats
  std::optional<OpenLoop> open;      // absent: not asked for, or nothing is read
};

// Which of them no model can serve, by label, and why.
struct Refusal {
  std::string label, reason;
};

struct LoopResult {
  RunReport report;  // `runs` is empty: they are below
  std::vector<LoopRun> runs;
  std::vector<Refusal> refused;
  std::int64_t memory_bytes = 0;  // bound on what this run may have used
};

// specs[0] has to be `full`, which the others are compared with. A policy that cannot be served is
// refused by name, and left out.
// Errors: ConfigError when prompt, chunk or evict point do not fit, or not even `full` can be
// served within the memory; NeedsMore, before any policy runs, when what can be served within the
// memory cannot within the share; PolicyError; CheckpointError; Interrupted.
[[nodiscard]] LoopResult run_closed_loop(const Checkpoint& checkpoint, const LoopInput& input,
                                         const std::vector<RecipeSpec>& specs,
                                         const LoopOptions& options);

}  // namespace kvspan::tracegen
