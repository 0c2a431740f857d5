// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/sample_runs.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <exception>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/build_info.h"
#include "sim/base/digest.h"
#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/replay/memory_plan.h"
#include "sim/sweep/journal.h"
#include "tracegen/eval/eval_record.h"
#include "tracegen/eval/shared_prompt.h"

namespace kvspan::tracegen {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

template <class Value>
std::optional<double> mean_of(const std::vector<Value>& values) {
  if (values.empty()) return std::nullopt;
  double sum = 0;
  for (const Value value : values) sum += static_cast<double>(value);
  return sum / static_cast<double>(values.size());
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
                        const EvalRequest& request, const TaskSample& asked, LoopOptions options) {
  const auto begin = std::chrono::steady_clock::now();
  options.evict_point = asked.read.evict_point;
  options.seed = request.seed;
  LoopResult loop = run_closed_loop(checkpoint, asked.read.input, request.specs, options);
  SampleResult out;
  out.task = asked.task;
  out.sample = asked.sample;
  out.evict_at = request.evict_at;
  out.input_sha256 = input_digest(asked.read.input);
  out.prompt_tokens = std::ssize(asked.read.input.prompt.ids);
  out.reference_tokens = std::ssize(asked.read.input.reference);
  out.report = std::move(loop.report);
  out.refused = std::move(loop.refused);
  out.memory_bytes = loop.memory_bytes;
  for (const LoopRun& run : loop.runs) {
    out.outcomes.push_back(
        outcome_of(tokenizer, asked.sample, asked.read.input, run, loop.runs.front()));
  }
  for (LoopRun& run : loop.runs) out.report.runs.push_back(std::move(run.run));
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return out;
}

// What the model reads, and when it may stop.
json given(const LoopInput& input) {
  return {{"prompt", input.prompt.ids},
          {"reference", input.reference},
          {"generate", input.generate},
          {"stop", input.stop}};
}

std::string digest_of(const json& value) {
  constexpr std::size_t kDigits = 16;
  return sha256_of_text(value.dump(-1, ' ', false, json::error_handler_t::replace))
      .substr(0, kDigits);
}

class SampleRuns {
 public:
  SampleRuns(const Checkpoint& checkpoint, const Tokenizer& tokenizer, const EvalRequest& request,
             std::span<const TaskSample> samples)
      : checkpoint_(checkpoint),
        tokenizer_(tokenizer),
        request_(request),
        samples_(samples),
        // Half of the memory at most goes to weights that need not be widened for every token.
        dense_(StableDense::kept_bytes(checkpoint) <= request.loop.memory / 2),
        kept_bytes_(dense_.keeps() ? StableDense::kept_bytes(checkpoint) : 0),
        journal_(request.journal),
        shares_(samples.size(), 0.0) {
    out_.samples.resize(samples.size());
  }

  SamplesDone run() {
    recall();
    if (left_.empty()) return std::move(out_);
    EngineOptions engine;
    engine.threads = request_.loop.threads;
    const int threads = threads_of(engine);
    alone(left_.front(), threads);
    side_by_side({left_.begin() + 1, left_.end()}, threads);
    std::sort(waiting_.begin(), waiting_.end());
    for (const std::size_t i : waiting_) alone(i, threads);
    return std::move(out_);
  }

 private:
  // What the journal has; the rest is left.
  void recall() {
    std::map<std::string, std::size_t> wanted;
    if (!request_.journal.empty()) {
      for (std::size_t i = 0; i < samples_.size(); ++i)
        wanted.emplace(sample_id(request_, samples_[i]), i);
      for (const fs::path& file : sweep::journals_in(request_.journal)) {
        const MappedFile mapped = map_file(file);
        (void)sweep::read_journal(
            {reinterpret_cast<const char*>(mapped.bytes.data()), mapped.bytes.size()},
            [&](const json& record) {
              const auto at = wanted.find(record.value("sample", ""));
              if (at == wanted.end()) return;
              take(at->second, record);
              ++out_.resumed;
              wanted.erase(at);
            });
      }
    }
    for (std::size_t i = 0; i < samples_.size(); ++i) {
      if (out_.samples[i].document.empty()) left_.push_back(i);
    }
    done_ = out_.resumed;
  }

  void take(std::size_t i, const json& record) {
    const json& document = record.at("document");
    out_.samples[i] = sample_of(document);
    out_.samples[i].document = document.dump();
    out_.samples[i].memory_bytes = record.at("memory_bytes").get<std::int64_t>();
    out_.samples[i].seconds = record.at("seconds").get<double>();
  }

  void alone(std::size_t i, int threads) {
    finish(i, threads, 0);
    out_.memory_bytes = std::max(out_.memory_bytes, out_.samples[i].memory_bytes);
  }

  void side_by_side(const std::vector<std::size_t>& todo, int threads) {
    if (todo.empty()) return;
    const std::int64_t room = request_.loop.memory - kept_bytes_;
    const std::int64_t each = out_.samples[left_.front()].memory_bytes - kept_bytes_;
    const std::int64_t most =
        request_.loop.proxies ? 1 : std::min<std::int64_t>(threads, std::ssize(todo));
    const std::int64_t jobs = std::clamp<std::int64_t>(room / std::max<std::int64_t>(1, each), 1,
                                                       std::max<std::int64_t>(1, most));
    if (jobs == 1) {
      for (const std::size_t i : todo) alone(i, threads);
      return;
    }
    out_.at_once = static_cast<std::size_t>(jobs);
    const std::int64_t share = kept_bytes_ + room / jobs;
    const int threads_each = std::max(1, threads / static_cast<int>(jobs));
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
      try {
        for (std::size_t n = next++; n < todo.size(); n = next++) {
          if (stopped()) throw Interrupted();
          one_of_many(todo[n], threads_each, share);
        }
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
        stop_ = true;
      }
    };
    std::vector<std::thread> others;
    for (std::int64_t job = 1; job < jobs; ++job) others.emplace_back(work);
    work();
    for (std::thread& thread : others) thread.join();
    if (failure_) std::rethrow_exception(failure_);
    std::int64_t own = 0;
    for (const std::size_t i : todo)
      own = std::max(own, out_.samples[i].memory_bytes - kept_bytes_);
    out_.memory_bytes = std::max(out_.memory_bytes, kept_bytes_ + jobs * own);
  }

  void one_of_many(std::size_t i, int threads, std::int64_t share) {
    try {
      finish(i, threads, share);
    } catch (const NeedsMore&) {
      const std::lock_guard lock(mutex_);
      waiting_.push_back(i);
    }
  }

  void finish(std::size_t i, int threads, std::int64_t share) {
    LoopOptions options = request_.loop;
    options.threads = threads;
    options.share = share;
    options.dense = &dense_;
    options.progress = [this, i](double done) { show(i, done); };
    options.cancelled = [this] { return stopped(); };
    const SampleResult found = run_sample(checkpoint_, tokenizer_, request_, samples_[i], options);
    const json record{{"sample", sample_id(request_, samples_[i])},
                      {"document", document_of(found, request_.timelines)},
                      {"memory_bytes", found.memory_bytes},
                      {"seconds", found.seconds}};
    if (!request_.journal.empty()) journal_.append({&record, 1});
    take(i, record);
    ++done_;
    show(i, 1);
  }

  [[nodiscard]] bool stopped() const {
    return stop_ || (request_.loop.cancelled && request_.loop.cancelled());
  }

  void show(std::size_t i, double share) {
    if (!request_.progress) return;
    const std::lock_guard lock(mutex_);
    shown_ += share - shares_[i];
    shares_[i] = share;
    request_.progress(fmt::format("evaluating, {} of {} samples", done_.load(), samples_.size()),
                      std::clamp(shown_ / static_cast<double>(left_.size()), 0.0, 1.0));
  }

  const Checkpoint& checkpoint_;
  const Tokenizer& tokenizer_;
  const EvalRequest& request_;
  std::span<const TaskSample> samples_;
  StableDense dense_;
  std::int64_t kept_bytes_;
  sweep::Journal journal_;
  SamplesDone out_;
  std::vector<std::size_t> left_, waiting_;
  std::vector<double> shares_;  // of the samples, done
  double shown_ = 0;
  std::atomic<std::size_t> done_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::exception_ptr failure_;
};

}  // namespace

std::string input_digest(const LoopInput& input) { return digest_of(given(input)); }

std::string sample_id(const EvalRequest& request, const TaskSample& sample) {
  const LoopInput& input = sample.read.input;
  json spans = json::array();
  for (const Span& span : input.spans) spans.push_back({span.name, span.begin, span.end});
  json policies = json::array();
  for (const RecipeSpec& spec : request.specs) policies.push_back(to_text(spec));
  json all = given(input);
  all.update({{"version", build_info().version},
              {"inputs", request.inputs_sha256},
              {"policies", std::move(policies)},
              {"task", sample.task},
              {"name", sample.sample.name},
              {"answers", sample.sample.answers},
              {"scoring", scoring_name(sample.sample.scoring)},
              {"spans", std::move(spans)},
              {"evict_point", sample.read.evict_point},
              {"chunk", request.loop.chunk},
              {"seed", request.seed},
              {"kv_bytes", request.loop.accounting.kv_bytes},
              {"layout", request.loop.accounting.layout},
              {"layerwise", request.loop.accounting.layerwise},
              {"proxies", request.loop.proxies},
              {"memory", request.loop.memory},
              {"timelines", request.timelines == Timelines::all}});
  return digest_of(all);
}

void remove_journal(const fs::path& folder) {
  std::error_code ignored;  // it lies in nobody's way
  for (const fs::path& file : sweep::journals_in(folder)) fs::remove(file, ignored);
  fs::remove(folder, ignored);
}

SamplesDone run_samples(const Checkpoint& checkpoint, const Tokenizer& tokenizer,
                        const EvalRequest& request, std::span<const TaskSample> samples) {
  if (!request.journal.empty()) {
    std::error_code error;
    fs::create_directories(request.journal, error);
    if (error) {
      throw ConfigError(fmt::format("'{}' cannot be made a folder ({})", path_text(request.journal),
                                    error.message()));
    }
  }
  try {
    return SampleRuns(checkpoint, tokenizer, request, samples).run();
  } catch (...) {
    std::error_code ignored;  // a folder that nothing is in says nothing
    if (!request.journal.empty()) fs::remove(request.journal, ignored);
    throw;
  }
}

}  // namespace kvspan::tracegen
