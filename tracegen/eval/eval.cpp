// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/eval.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/text.h"

namespace kvspan::tracegen {
namespace {

template <class Value>
std::optional<double> mean_of(const std::vector<Value>& values) {
  if (values.empty()) return std::nullopt;
  double sum = 0;
  for (const Value value : values) sum += static_cast<double>(value);
  return sum / static_cast<double>(values.size());
}

// Tokens that cover bytes [begin, end) of the text.
Span tokens_of(const TextSpan& span, std::size_t offset, const std::vector<std::string>& pieces) {
  Span out{span.name, -1, 0};
  std::size_t at = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const std::size_t end = at + pieces[i].size();
    if (end > span.begin + offset && at < span.end + offset) {
      if (out.begin < 0) out.begin = static_cast<std::int64_t>(i);
      out.end = static_cast<std::int64_t>(i) + 1;
    }
    at = end;
  }
  return out;
}

Outcome outcome_of(const Tokenizer& tokenizer, const Sample& sample, const LoopInput& input,
                   const LoopRun& run, const LoopRun& full) {
  Outcome out;
  std::vector<std::int32_t> said = run.answer;
  if (!said.empty() && std::ranges::count(input.stop, said.back()) > 0) said.pop_back();
  out.answer = tokenizer.decode(said);
  out.answer_tokens = std::ssize(run.answer);
  out.nll = mean_of(run.nll);
  out.divergence = mean_of(run.divergence);
  out.open = run.open;
  if (out.nll) out.delta_nll = *out.nll - *mean_of(full.nll);
  out.score = sample.scoring == Scoring::log_likelihood
                  ? std::exp(-out.nll.value_or(0))
                  : score(sample.scoring, out.answer, sample.answers);
  return out;
}

SampleResult run_sample(const Checkpoint& checkpoint, const Tokenizer& tokenizer,
                        const EvalRequest& request, const Sample& sample, StableDense& dense,
                        TaskResult& task, const std::function<void(double)>& progress) {
  const auto begin = std::chrono::steady_clock::now();
  const ReadSample read = read_sample(tokenizer, sample, request);
  LoopOptions options = request.loop;
  options.evict_point = read.evict_point;
  options.seed = request.seed;
  options.dense = &dense;
  options.progress = progress;
  LoopResult loop = run_closed_loop(checkpoint, read.input, request.specs, options);
  SampleResult out;
  out.sample = sample;
  out.prompt_tokens = std::ssize(read.input.prompt.ids);
  out.reference_tokens = std::ssize(read.input.reference);
  out.report = std::move(loop.report);
  out.memory_bytes = loop.memory_bytes;
  for (LoopRun& run : loop.runs) {
    out.outcomes.push_back(outcome_of(tokenizer, sample, read.input, run, loop.runs.front()));
    run.run.ledger.death = {};  // figures are taken; entries would fill the memory
    run.run.ledger.changes = {};
  }
  for (LoopRun& run : loop.runs) out.report.runs.push_back(std::move(run.run));
  for (Refusal& refusal : loop.refused) {
    const auto known = std::ranges::find(task.refused, refusal.label, &Refusal::label);
    if (known == task.refused.end()) task.refused.push_back(std::move(refusal));
  }
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return out;
}

// A policy may be refused at one sample and not at another (memory): what ran on all of them stays.
void keep_common_runs(TaskResult& task) {
  const auto ran = [](const SampleResult& sample, const std::string& label) {
    return std::ranges::find(sample.report.runs, label, &RunResult::label);
  };
  for (SampleResult& sample : task.samples) {
    for (std::size_t r = sample.report.runs.size(); r-- > 0;) {
      const std::string label = sample.report.runs[r].label;
      const bool common = std::ranges::all_of(task.samples, [&](const SampleResult& other) {
        return ran(other, label) != other.report.runs.end();
      });
      if (common) continue;
      sample.report.runs.erase(sample.report.runs.begin() + static_cast<std::ptrdiff_t>(r));
      sample.outcomes.erase(sample.outcomes.begin() + static_cast<std::ptrdiff_t>(r));
    }
  }
}

}  // namespace

ReadSample read_sample(const Tokenizer& tokenizer, const Sample& sample,
                       const EvalRequest& request) {
  ReadSample out;
  std::string text = sample.prompt;
  if (request.chat) text = tokenizer.chat(std::vector<ChatTurn>{{"user", sample.prompt}});
  const std::size_t offset = text.find(sample.prompt);
  text += sample.answer_prefix;
  const auto with_bos = [&](std::vector<std::int32_t> ids) {
    if (request.bos && (ids.empty() || ids.front() != *request.bos))
      ids.insert(ids.begin(), *request.bos);
    return ids;
  };
  LoopInput& input = out.input;
  input.name = sample.name;
  input.prompt.ids = with_bos(tokenizer.encode(text));
  input.prompt.special_ids = tokenizer.special_ids();
  const auto prompt = static_cast<std::ptrdiff_t>(input.prompt.ids.size());
  // Whatever reads as one text; where tokens would join, the reference stands for itself.
  if (!sample.reference.empty()) {
    const std::vector<std::int32_t> both = with_bos(tokenizer.encode(text + sample.reference));
    const bool apart = std::ssize(both) > prompt &&
                       std::equal(input.prompt.ids.begin(), input.prompt.ids.end(), both.begin());
    input.reference =
        apart ? std::vector(both.begin() + prompt, both.end()) : tokenizer.encode(sample.reference);
  }
  for (const std::int32_t id : input.prompt.ids)
    input.prompt.pieces.emplace_back(tokenizer.piece(id));
  const bool named = request.bos && input.prompt.ids.front() == *request.bos &&
                     !text.starts_with(input.prompt.pieces.front());
  const std::size_t before = named ? input.prompt.pieces.front().size() : 0;
  if (offset != std::string::npos) {
    for (const TextSpan& span : sample.spans) {
      const Span found = tokens_of(span, offset + before, input.prompt.pieces);
      if (found.begin >= 0) input.spans.push_back(found);
    }
  }
  input.generate = sample.generate;
  if (const auto eos = tokenizer.eos()) input.stop.push_back(*eos);
  if (request.evict_at.empty()) return out;
  std::vector<std::string> names;
  for (const Span& span : input.spans) {
    if (span.name == request.evict_at) out.evict_point = span.begin;
    names.push_back(span.name);
  }
  if (out.evict_point == 0) {
    throw ConfigError(fmt::format(
        "--evict-at: {} has no span '{}'{}", one_line(sample.name), one_line(request.evict_at),
        names.empty() ? "" : "; " + nearest_hint(request.evict_at, names)));
  }
  return out;
}

EvalResult evaluate(const Checkpoint& checkpoint, const Tokenizer& tokenizer,
                    const EvalRequest& request) {
  EvalResult out;
  out.least = request.least;
  std::vector<std::vector<Sample>> samples;  // all of them first: wrong tasks cost no work
  for (const std::string& task : request.tasks) {
    const auto tokens = [&](std::string_view text) {
      return std::ssize(tokenizer.encode(text)) + (request.bos ? 1 : 0);
    };
    samples.push_back(make_samples({task, request.samples, request.seed, tokens}));
    for (const Sample& sample : samples.back()) (void)read_sample(tokenizer, sample, request);
  }
  const auto all = std::accumulate(samples.begin(), samples.end(), std::size_t{0},
                                   [](std::size_t n, const auto& task) { return n + task.size(); });
  // Half of the memory at most goes to weights that need not be widened for every token.
  StableDense dense(StableDense::kept_bytes(checkpoint) <= request.loop.memory / 2);
  std::size_t done = 0;
  for (std::size_t t = 0; t < samples.size(); ++t) {
    TaskResult& task = out.tasks.emplace_back();
    task.task = request.tasks[t];
    for (const Sample& sample : samples[t]) {
      const auto progress = [&](double share) {
        if (request.progress)
          request.progress(sample.name,
                           (static_cast<double>(done) + share) / static_cast<double>(all));
      };
      task.samples.push_back(
          run_sample(checkpoint, tokenizer, request, sample, dense, task, progress));
      ++done;
    }
    keep_common_runs(task);
    summarise(task, request);
  }
  return out;
}

}  // namespace kvspan::tracegen
