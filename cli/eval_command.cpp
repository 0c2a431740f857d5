// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <memory>
#include <optional>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/outputs.h"
#include "cli/policy_options.h"
#include "cli/validators.h"
#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/text.h"
#include "sim/ledger/layouts.h"
#include "sim/run/request.h"
#include "tracegen/eval/eval_report.h"
#include "tracegen/eval/sample_runs.h"

namespace kvspan::cli {
namespace {

using tracegen::EvalRequest;
using tracegen::EvalResult;

struct EvalSettings {
  std::string model, bos = "auto", memory = "4GiB", out, csv;
  std::vector<std::string> policies, budgets;
  EvalRequest request;
  bool quiet = false, no_timeline = false;
};

std::optional<std::int32_t> bos_of(const std::string& text, const tracegen::Tokenizer& tokenizer) {
  if (text == "none") return std::nullopt;
  if (text == "auto") return tokenizer.bos_setting().adds ? tokenizer.bos() : std::nullopt;
  std::int32_t id = -1;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (error != std::errc{} || stop != text.data() + text.size() || id < 0)
    throw ConfigError(
        fmt::format("--bos: found {}, expected auto, none or a token id", in_quotes(text)));
  return id;
}

// `full` is what all are compared with: it comes first, asked for or not.
std::vector<RecipeSpec> with_full(std::vector<RecipeSpec> specs) {
  const auto full = std::find_if(specs.begin(), specs.end(),
                                 [](const RecipeSpec& spec) { return to_text(spec) == "full"; });
  if (full != specs.end()) {
    std::rotate(specs.begin(), full, full + 1);
  } else {
    specs.insert(specs.begin(), parse_spec("full"));
  }
  return specs;
}

void print_task(const tracegen::TaskResult& task, double least) {
  double seconds = 0;
  for (const tracegen::SampleResult& sample : task.samples) seconds += sample.seconds;
  const tracegen::SampleResult& first = task.samples.front();
  fmt::print("task     {}\nsamples  {}, the first of {} tokens; scored by {}\ntook     {}\n\n",
             one_line(task.task), task.samples.size(), first.prompt_tokens,
             tracegen::scoring_name(first.sample.scoring), time_text(seconds));
  Footnotes footnotes;
  fmt::print("{}\n", align(policy_cells(task, footnotes)));
  if (!task.why_not.empty()) {
    fmt::print("no critical footprint: {}\n\n", task.why_not);
  } else if (!task.critical.empty()) {
    fmt::print("{}\n", align(critical_cells(task, least, footnotes)));
  }
  print_footnotes(footnotes);
  if (!footnotes.notes().empty()) fmt::print("\n");
  if (!task.proxies.empty()) fmt::print("{}\n", align(proxy_cells(task)));
}

// Where samples are kept until the result is written: beside it, as a capture does.
std::filesystem::path journal_of(const std::string& out) {
  const bool is_file = !out.empty() && !out.starts_with("/dev/");
  return is_file ? out + ".partial" : "";
}

EvalResult run_to_the_end(const tracegen::Checkpoint& checkpoint,
                          const tracegen::Tokenizer& tokenizer, EvalRequest request, bool quiet) {
  Progress progress("evaluating", quiet);
  request.progress = [&](const std::string& what, double done) { progress(done, what); };
  request.loop.cancelled = [] { return interrupted(); };
  if (request.journal.empty()) {
    (void)interrupted();
    return evaluate(checkpoint, tokenizer, request);
  }
  terminated_too();
  try {
    return evaluate(checkpoint, tokenizer, request);
  } catch (const Interrupted&) {
    throw Error(
        fmt::format("stopped; what was finished is kept in {}, and the same command goes on",
                    path_text(request.journal)),
        kResumable);
  }
}

void say_refused(const EvalResult& result) {
  std::vector<std::string> said;
  for (const tracegen::TaskResult& task : result.tasks) {
    for (const tracegen::Refusal& refusal : task.refused) {
      if (std::ranges::count(said, refusal.label) > 0) continue;
      said.push_back(refusal.label);
      fmt::print(stderr, "kvspan: left out: {}\n", one_line(refusal.reason));
    }
  }
}

void run(const EvalSettings& s, const Context& context) {
  EvalRequest request = s.request;
  request.figures.seed = request.seed;
  request.timelines = s.no_timeline ? Timelines::none : Timelines::all;
  std::vector<std::string> repeated;
  request.specs = with_full(expand_policies(
      s.policies.empty() ? std::vector<std::string>{"all"} : s.policies, s.budgets, &repeated));
  if (!repeated.empty() && !s.quiet)
    fmt::print(stderr, "kvspan: given more than once, run once: {}\n", fmt::join(repeated, ", "));
  (void)parse_layout(request.loop.accounting.layout);
  request.loop.memory = parse_bytes(s.memory, "--memory");
  const auto checkpoint = tracegen::Checkpoint::open(s.model);
  const auto tokenizer = tracegen::Tokenizer::open(s.model);
  request.bos = bos_of(s.bos, tokenizer);
  std::vector<std::filesystem::path> inputs = files_of_policies(s.policies, request.specs);
  inputs.insert(inputs.end(), checkpoint.files().begin(), checkpoint.files().end());
  for (const std::string& task : request.tasks) {
    const auto files = tracegen::files_of_task(task);
    inputs.insert(inputs.end(), files.begin(), files.end());
  }
  Outputs outputs({{"--out", s.out}, {"--csv", s.csv}}, inputs);
  request.journal = journal_of(s.out);
  if (!request.journal.empty()) {
    std::vector<std::filesystem::path> files = files_of_policies(s.policies, request.specs);
    files.insert(files.end(), checkpoint.files().begin(), checkpoint.files().end());
    request.inputs_sha256 = sha256_of_files(files);
  }
  const EvalResult result = run_to_the_end(checkpoint, tokenizer, request, s.quiet);
  outputs.write_text("--out", [&] { return file_text(to_json(result, context.command)); });
  outputs.write_text("--csv", [&] { return to_csv(result); });
  if (!s.quiet) say_refused(result);
  for (const tracegen::TaskResult& task : result.tasks) print_task(task, result.options.least);
  fmt::print("{} of anonymous memory at most{}{}\n", human_bytes(result.memory_bytes),
             result.at_once > 1 ? fmt::format(", {} samples at a time", result.at_once) : "",
             result.resumed > 0 ? fmt::format("; {} samples were there", result.resumed) : "");
  outputs.finish(s.quiet);
  if (!request.journal.empty()) tracegen::remove_journal(request.journal);
}

std::string task_help() {
  std::string out = "\nTasks (NAME:key=value,...; length=L tokens of prompt and answer):\n";
  for (const tracegen::TaskEntry& task : tracegen::task_list())
    out += fmt::format("  {:<16} {}\n", task.name, task.summary);
  return out +
         R"help(  FILE.jsonl       your own: a line a sample, {"prompt", "answers", "scoring", ...}

Examples:
  kvspan eval --model FOLDER --task niah_single_1:length=1024 --policy snapkv --policy h2o --budget 10%,20%,40%
  kvspan eval --model MODEL.gguf --task pass_keys.jsonl --samples 0 --policy all --budget 5%,10%,20%,40% --out eval.json
  kvspan eval --model FOLDER --task niah_multikey_1:length=2048,text=book.txt --evict-at question --policy snapkv
  kvspan eval --model FOLDER --bos 1 --task perplexity:text=book.txt,prompt=64,length=512 --policy "streaming_llm(sinks=0,window=64)"
The score is the task's own, in [0, 1]; nll is that of the reference answer, KL is from the full cache's
predictions. A critical footprint keeps --at of the full cache's score; < and >: outside of what was measured.)help";
}

}  // namespace

void add_eval(CLI::App& app, const Context& context) {
  auto s = std::make_shared<EvalSettings>();
  CLI::App* sub = app.add_subcommand(
      "eval", "Run a model under cache policies on tasks: scores beside footprints");
  sub->add_option("--model", s->model, "Hugging Face folder, or a .gguf file")->required();
  sub->add_option("--task", s->request.tasks, "A task, see below, or a .jsonl file; repeatable")
      ->required()
      ->type_name("TASK")
      ->allow_extra_args(false);
  sub->add_option("--samples", s->request.samples,
                  "Samples of each task; of a file its first ones, 0: all of them")
      ->check(CLI::Range(0, 1 << 20))
      ->type_name("K");
  add_policy_options(*sub, s->policies, s->budgets);
  sub->add_option("--chunk", s->request.loop.chunk, "Prefill chunk, tokens; 0: one pass")
      ->check(whole_number())
      ->type_name("C");
  sub->add_option("--evict-at", s->request.evict_at,
                  "Prompt-end rules act where this span of a sample begins, such as question")
      ->type_name("SPAN");
  sub->add_flag("--chat", s->request.chat, "A prompt is a user's turn, in the model's chat format");
  sub->add_option("--bos", s->bos,
                  "First token: as the tokenizer's settings say (auto), none, or a token id")
      ->type_name("auto|none|ID");
  sub->add_option("--at", s->request.figures.least, "Share of the full cache's score to be kept")
      ->check(CLI::Range(0.01, 1.0))
      ->type_name("F");
  sub->add_flag("--proxies", s->request.loop.proxies,
                "Replay the full cache's reading as well: do its figures rank policies as the "
                "model does?");
  sub->add_option("--layout", s->request.loop.accounting.layout,
                  "Storage layout that bytes are counted in")
      ->type_name("NAME");
  sub->add_option("--kv-bytes", s->request.loop.accounting.kv_bytes, "Bytes of one stored element")
      ->check(CLI::Range(1, 16))
      ->type_name("B");
  sub->add_option("--memory", s->memory,
                  "Anonymous memory at most; policies run in groups, samples side by side")
      ->type_name("SIZE");
  sub->add_option("--threads", s->request.loop.threads,
                  "Threads; 0: all cores. Results do not depend on them")
      ->check(CLI::Range(0, 4096))
      ->type_name("T");
  sub->add_option("--seed", s->request.seed, "Seed of samples, and of policies that draw")
      ->check(a_seed())
      ->type_name("S");
  sub->add_option("--out", s->out,
                  "Result as JSON; until it is written, samples that are done lie in FILE.partial, "
                  "and the same command goes on from there")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_flag("--no-timeline", s->no_timeline, "Without memory over time in that JSON");
  sub->add_option("--csv", s->csv, "Result as CSV, one line a sample and policy")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_flag("--quiet", s->quiet, "No progress on stderr");
  sub->footer(task_help());
  sub->callback([s, &context] { run(*s, context); });
}

}  // namespace kvspan::cli
