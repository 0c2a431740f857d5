// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/eval.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "tracegen/eval/sample_runs.h"

namespace kvspan::tracegen {
namespace {

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

std::vector<TaskResult> by_task(std::vector<SampleResult> samples, const FigureOptions& options) {
  std::vector<TaskResult> out;
  for (SampleResult& sample : samples) {
    auto at = std::ranges::find(out, sample.task, &TaskResult::task);
    if (at == out.end()) {
      out.emplace_back().task = sample.task;
      at = out.end() - 1;
    }
    for (const Refusal& refusal : sample.refused) {
      if (std::ranges::find(at->refused, refusal.label, &Refusal::label) == at->refused.end())
        at->refused.push_back(refusal);
    }
    at->samples.push_back(std::move(sample));
  }
  for (TaskResult& task : out) {
    keep_common_runs(task);
    summarise(task, options);
  }
  return out;
}

EvalResult evaluate(const Checkpoint& checkpoint, const Tokenizer& tokenizer,
                    const EvalRequest& request) {
  EvalResult out;
  out.options = request.figures;
  std::vector<TaskSample> samples;  // all of them first: wrong tasks cost no work
  for (const std::string& task : request.tasks) {
    if (std::ranges::count(request.tasks, task) > 1)
      throw ConfigError(fmt::format("--task: {} stands there twice", in_quotes(task)));
    const auto tokens = [&](std::string_view text) {
      return std::ssize(tokenizer.encode(text)) + (request.bos ? 1 : 0);
    };
    for (Sample& sample : make_samples({task, request.samples, request.seed, tokens})) {
      ReadSample read = read_sample(tokenizer, sample, request);
      samples.push_back({task, std::move(sample), std::move(read)});
    }
  }
  SamplesDone done = run_samples(checkpoint, tokenizer, request, samples);
  out.memory_bytes = done.memory_bytes;
  out.at_once = done.at_once;
  out.resumed = done.resumed;
  out.tasks = by_task(std::move(done.samples), request.figures);
  return out;
}

}  // namespace kvspan::tracegen
