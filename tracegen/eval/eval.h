// SPDX-License-Identifier: Apache-2.0
// Policies at tasks: every sample of every task under every policy, and what follows: scores beside
// footprints, and the critical footprint, the smallest that keeps a share of the full cache's
// score.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "sim/report/json.h"
#include "sim/sweep/curves.h"
#include "tracegen/eval/closed_loop.h"
#include "tracegen/eval/task.h"
#include "tracegen/tokenizer/tokenizer.h"

namespace kvspan::tracegen {

// What figures over samples depend on, beside these.
struct FigureOptions {
  double least = 0.9;      // share of the full cache's score that a critical footprint keeps
  int draws = 2000;        // of the bootstrap
  std::uint64_t seed = 0;  // of it
};

struct EvalRequest {
  std::vector<std::string> tasks;
  std::int64_t samples = 5;
  std::uint64_t seed = 0;         // of samples, and of policies that draw
  std::vector<RecipeSpec> specs;  // specs[0] is `full`
  std::string evict_at;           // a span of the samples; empty: the prompt's end
  bool chat = false;              // a prompt is a user's turn
  std::optional<std::int32_t> bos;
  FigureOptions figures;
  LoopOptions loop;  // evict_point, share, dense and progress are this one's own
  Timelines timelines = Timelines::all;  // of the documents of samples
  // A folder where each sample is kept once it is done, and from where it is taken when the same is
  // asked for again; empty: none.
  std::filesystem::path journal;
  std::string inputs_sha256;  // of model and policies' files, for the journal
  // Told how many samples are done, and the share of all work. From any thread, one at a time.
  std::function<void(const std::string& what, double done)> progress;
};

// One policy at one sample.
struct Outcome {
  std::string answer;  // as text, without the stop
  std::int64_t answer_tokens = 0;
  double score = 0;
  std::optional<double> nll;         // mean over the reference's tokens, nats
  std::optional<double> delta_nll;   // against the full cache's
  std::optional<double> divergence;  // KL(full cache || policy), mean over its rows, nats
  std::optional<OpenLoop> open;      // what a replay says
};

struct SampleResult {
  std::string task;
  Sample sample;
  std::string evict_at;      // a span of it; empty: the prompt's end
  std::string input_sha256;  // see input_digest()
  std::int64_t prompt_tokens = 0, reference_tokens = 0;
  RunReport report;               // with its runs
  std::vector<Outcome> outcomes;  // [runs]
  std::vector<Refusal> refused;
  std::string document;           // eval_record.h, as text
  std::int64_t memory_bytes = 0;  // bound on what it took, and how long: not in the document,
  double seconds = 0;             // which is the same however it was computed
};

// A policy over the samples of a task: means, and 95 % bootstrap intervals.
struct PolicyFigures {
  std::string label, method, klass;
  std::vector<std::string> notes;  // as of its run: what stands in for what, above all
  double score = 0, footprint = 0, peak_kv = 0, peak_bytes = 0;
  sweep::Interval score_interval, footprint_interval;
  std::optional<double> nll, delta_nll, divergence;
  std::optional<double> retained;  // of decode rows, along its own run
};

// A method at all its budgets. Intervals are of the crossing; an open end is where draws have none.
struct CriticalFigures {
  std::string method;
  std::vector<std::string> notes;    // of its first budget
  std::vector<std::size_t> budgets;  // in TaskResult::policies
  sweep::Critical footprint, peak_kv, peak_bytes;
  std::optional<double> low, high;  // of the footprint
};

// How well a figure of the replay ranks policies and budgets by what came of them on the model:
// Spearman's correlation of means over samples, 1: in the same order, better is better.
struct ProxyFigures {
  std::string proxy, outcome;
  double correlation = 0;
  sweep::Interval interval;  // 95 % bootstrap over samples
};

// A run that some samples of a task do not have.
struct LeftOut {
  std::string label;
  std::size_t samples = 0;  // that have it
};

// A task of a model in one setting, which the samples say.
struct TaskResult {
  std::string task;
  std::vector<SampleResult> samples;
  std::vector<PolicyFigures> policies;    // in the order of the specifications
  std::vector<CriticalFigures> critical;  // empty: see `why_not`
  std::string why_not;                    // no critical footprint is given
  std::vector<ProxyFigures> proxies;      // where they were asked for, of three runs at least
  std::vector<Refusal> refused;
  std::vector<LeftOut> left_out;
};

struct EvalResult {
  std::vector<TaskResult> tasks;
  FigureOptions options;
  std::int64_t memory_bytes = 0;  // bound on what was taken at once
  std::size_t at_once = 1;        // samples side by side
  std::size_t resumed = 0;        // samples that the journal had
};

// Samples run side by side, as many as threads and memory allow; what comes of them depends on
// neither.
// Errors: ConfigError, TraceError, CheckpointError, PolicyError, Interrupted; Error of the disk.
[[nodiscard]] EvalResult evaluate(const Checkpoint& checkpoint, const Tokenizer& tokenizer,
                                  const EvalRequest& request);

// The tokens of a sample as the model reads them. Errors: ConfigError when `evict_at` names no
// span.
struct ReadSample {
  LoopInput input;
  RowIndex evict_point = 0;  // 0: the prompt's end
};
[[nodiscard]] ReadSample read_sample(const Tokenizer& tokenizer, const Sample& sample,
                                     const EvalRequest& request);

// They are of one task, model and setting.
[[nodiscard]] bool belong_together(const SampleResult& a, const SampleResult& b);

// Samples that belong together, in the order of the tasks: runs that all of them have, who was
// refused, and the figures.
[[nodiscard]] std::vector<TaskResult> by_task(std::vector<SampleResult> samples,
                                              const FigureOptions& options);
// Figures of finished samples. REQUIRES: they have the same runs in the same order, `full` first.
void summarise(TaskResult& task, const FigureOptions& options);
// Its part that holds proxies against outcomes.
void judge_proxies(TaskResult& task, const FigureOptions& options);

}  // namespace kvspan::tracegen
