// SPDX-License-Identifier: Apache-2.0
// The samples of an evaluation, many at a time in bounded memory, each journalled when it is done:
// killed at any moment, an evaluation loses the samples in flight; started again, it does what is
// left.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tracegen/eval/eval.h"

namespace kvspan::tracegen {

struct TaskSample {
  std::string task;
  Sample sample;
  ReadSample read;
};

struct SamplesDone {
  std::vector<SampleResult> samples;  // in the order that was asked for
  std::int64_t memory_bytes = 0;      // bound on what was taken at once
  std::size_t at_once = 1;            // side by side
  std::size_t resumed = 0;            // from the journal
};
// The first one runs alone, on all threads, and says what one takes; the others as many at a time
// as there are threads and memory. One that does not fit beside others waits until it is alone, and
// so do all when proxies are asked for, whose replays take memory of their own.
// Errors: as evaluate().
[[nodiscard]] SamplesDone run_samples(const Checkpoint& checkpoint, const Tokenizer& tokenizer,
                                      const EvalRequest& request,
                                      std::span<const TaskSample> samples);

// The first 16 hex digits of the SHA-256 of what the model is given, and when it may stop.
[[nodiscard]] std::string input_digest(const LoopInput& input);

// The same of all that a sample's document depends on.
[[nodiscard]] std::string sample_id(const EvalRequest& request, const TaskSample& sample);

// Takes the journal's files away, and the folder, if nothing else is in it.
void remove_journal(const std::filesystem::path& folder);

}  // namespace kvspan::tracegen
