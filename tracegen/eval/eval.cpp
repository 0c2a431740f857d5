// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/eval.h"

#include <algorithm>
#include <map>
#include <tuple>
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

// A policy may be refused at one sample and not at another (memory), or run in one file of several:
// what ran on all of them stays, in the order of the first.
void keep_common_runs(TaskResult& task) {
  std::vector<std::string> order;
  std::map<std::string, std::size_t> samples;
  for (const SampleResult& sample : task.samples) {
    for (const RunResult& run : sample.report.runs) {
      if (samples[run.label]++ == 0) order.push_back(run.label);
    }
  }
  std::erase_if(order, [&](const std::string& label) {
    const std::size_t have = samples.at(label);
    if (have < task.samples.size()) task.left_out.push_back({label, have});
    return have < task.samples.size();
  });
  for (SampleResult& sample : task.samples) {
    std::vector<RunResult> runs;
    std::vector<Outcome> outcomes;
    for (const std::string& label : order) {
      const auto at = std::ranges::find(sample.report.runs, label, &RunResult::label);
      outcomes.push_back(std::move(sample.outcomes[index(at - sample.report.runs.begin())]));
      runs.push_back(std::move(*at));
    }
    sample.report.runs = std::move(runs);
    sample.outcomes = std::move(outcomes);
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

bool belong_together(const SampleResult& a, const SampleResult& b) {
  const auto setting = [](const SampleResult& s) {
    const Accounting& accounting = s.report.accounting;
    return std::tie(s.task, s.report.trace.model, s.evict_at, s.report.chunk, accounting.kv_bytes,
                    accounting.layerwise, accounting.layout);
  };
  return setting(a) == setting(b);
}

std::vector<TaskResult> by_task(std::vector<SampleResult> samples, const FigureOptions& options) {
  std::vector<TaskResult> out;
  for (SampleResult& sample : samples) {
    auto at = std::ranges::find_if(
        out, [&](const TaskResult& task) { return belong_together(task.samples.front(), sample); });
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
