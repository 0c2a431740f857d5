// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <set>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/capture_settings.h"
#include "cli/commands.h"
#include "cli/outputs.h"
#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/policy/spec.h"
#include "sim/trace/safetensors.h"
#include "tracegen/capture/capture.h"
#include "tracegen/capture/capture_input.h"
#include "tracegen/capture/first_tokens.h"
#include "tracegen/cuda/load.h"
#include "tracegen/model/checkpoint.h"
#include "tracegen/tokenizer/tokenizer.h"

namespace kvspan::cli {
namespace {

namespace fs = std::filesystem;
using tracegen::CaptureOptions;
using tracegen::CaptureResult;
using tracegen::Checkpoint;
using tracegen::Tokenizer;

// ---- What it is made of -------------------------------------------------------------------------

// What the result depends on beside the options.
std::string identity(const Checkpoint& checkpoint, bool cuda, bool half) {
  nlohmann::json files = nlohmann::json::array();
  for (const fs::path& file : checkpoint.files()) {
    files.push_back({fs::weakly_canonical(file).string(), fs::file_size(file),
                     fs::last_write_time(file).time_since_epoch().count()});
  }
  return nlohmann::json{
      {"checkpoint", files}, {"--device", cuda ? "cuda" : "cpu"}, {"--half", half}}
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Files of a model's folder, beside its weights, that a program reads.
constexpr std::array kModelFiles{"config.json",
                                 "generation_config.json",
                                 "model.safetensors.index.json",
                                 "tokenizer.json",
                                 "tokenizer_config.json",
                                 "tokenizer.model",
                                 "special_tokens_map.json",
                                 "added_tokens.json",
                                 "vocab.json",
                                 "merges.txt",
                                 "chat_template.jinja"};

// Whatever is written or removed is no input, and only one thing.
void check_files_of_capture(const CaptureSettings& s, const Checkpoint& checkpoint,
                            const CaptureOptions& options) {
  std::vector<fs::path> inputs(checkpoint.files());
  if (fs::is_directory(s.model)) {
    for (const char* name : kModelFiles) inputs.push_back(fs::path(s.model) / name);
  }
  if (!s.text.empty()) inputs.emplace_back(s.text);
  if (!s.tokens.empty()) {
    inputs.emplace_back(s.tokens);
    for (const fs::path& file : tracegen::token_id_files(s.tokens)) inputs.push_back(file);
  }
  std::set<std::optional<FileKey>> taken;
  for (const fs::path& input : inputs) taken.insert(file_key(input));
  std::vector<fs::path> outputs = capture_files(checkpoint.spec(), options);
  if (!s.json.empty()) outputs.emplace_back(s.json);
  std::set<std::optional<FileKey>> written;
  for (const fs::path& output : outputs) {
    const std::optional<FileKey> file = file_key(output);
    if (!file) continue;
    if (taken.contains(file)) {
      throw ConfigError(
          fmt::format("'{}' is an input of this command, and would be replaced or removed; "
                      "expected other names for --out, --scores-out and --json",
                      output.string()));
    }
    if (!written.insert(file).second) {
      throw ConfigError(
          fmt::format("'{}' would be written twice; expected different names for --out, "
                      "--scores-out and --json",
                      output.string()));
    }
  }
}

struct Device {
  std::unique_ptr<tracegen::Runner> runner;
  bool cuda = false;
};

Device make_device(const CaptureSettings& s, const Checkpoint& checkpoint,
                   tracegen::RunnerOptions options) {
  options.half_precision = s.half;
  if (s.half && s.device != "cuda") {
    throw ConfigError("--half is for --device cuda; a CPU computes in fp32");
  }
  if (s.device == "cuda") return {make_cuda_runner(checkpoint, options), true};
  if (s.device == "auto" && tracegen::why_no_gpu().empty()) {
    try {
      return {make_cuda_runner(checkpoint, options), true};
    } catch (const DeviceError& error) {
      s.say(fmt::format("on the CPU, because {}", error.what()));
    }
  }
  return {make_cpu_runner(checkpoint, options), false};
}

// Where the tokens after the prompt come from, for the trace's metadata.
std::string continuation(const CaptureOptions& o) {
  const auto given = static_cast<std::int64_t>(o.token_ids.size());
  const std::string forced = given > o.prompt ? "; teacher-forced after the prompt" : "";
  if (o.generate == 0) return forced;
  if (o.sampling.temperature == 0) return forced + "; generated greedily";
  return forced + fmt::format("; sampled (temperature {}, top-p {}, top-k {}, seed {})",
                              o.sampling.temperature, o.sampling.top_p, o.sampling.top_k,
                              o.sampling.seed);
}

// ---- What is said -------------------------------------------------------------------------------

std::string perplexity(const std::optional<tracegen::Nll>& nll) {
  return fmt::format("{:.6g} (mean nll {:.4f} over {} tokens)", std::exp(nll->mean), nll->mean,
                     nll->tokens);
}

std::string speed(std::int64_t tokens, double seconds) {
  return fmt::format("{:.1f} tokens/s ({} tokens in {:.1f} s)",
                     static_cast<double>(tokens) / std::max(seconds, 1e-9), tokens, seconds);
}

void print_result(const CaptureResult& r, const std::string& generated) {
  const auto line = [](const char* what, const std::string& value) {
    fmt::print("{:<12} {}\n", what, value);
  };
  line("tokens", fmt::format("{} = {} prompt + {}", r.tokens, r.prompt,
                             r.generated.empty() && r.tokens > r.prompt
                                 ? fmt::format("{} teacher-forced", r.tokens - r.prompt)
                                 : fmt::format("{} generated", r.tokens - r.prompt)));
  if (r.all) line("perplexity", perplexity(r.all));
  if (r.in_prompt && r.after_prompt) {
    line("  prompt", perplexity(r.in_prompt));
    line("  after it", perplexity(r.after_prompt));
  }
  line("prefill", speed(r.prefill_tokens, r.prefill_seconds));
  if (!r.generated.empty())
    line("decode", speed(static_cast<std::int64_t>(r.generated.size()), r.decode_seconds));
  if (!generated.empty()) {
    constexpr std::size_t kShown = 400;  // all of it: --json
    const bool cut = generated.size() > kShown;
    line("generated", nlohmann::json(generated.substr(0, kShown))
                              .dump(-1, ' ', false, nlohmann::json::error_handler_t::ignore) +
                          (cut ? " ..." : ""));
  }
  const std::size_t more = r.files.size() - 1;
  line("wrote",
       fmt::format("{}{}, {}", r.files.front().string(),
                   more == 0 ? "" : fmt::format(" and {} more file{}", more, more == 1 ? "" : "s"),
                   human_bytes(r.bytes)));
}

nlohmann::json nll_json(const std::optional<tracegen::Nll>& nll) {
  if (!nll) return nullptr;
  return {{"mean", nll->mean}, {"perplexity", std::exp(nll->mean)}, {"tokens", nll->tokens}};
}

nlohmann::json to_json(const CaptureResult& r, const std::string& generated,
                       const std::string& runner, const Context& context) {
  nlohmann::json files = nlohmann::json::array();
  for (const fs::path& file : r.files) files.push_back(file.string());
  return {{"schema_version", 1},
          {"command", context.command},
          {"runner", runner},
          {"tokens", r.tokens},
          {"prompt_tokens", r.prompt},
          {"generated", {{"ids", r.generated}, {"text", generated}}},
          {"nll",
           {{"all", nll_json(r.all)},
            {"prompt", nll_json(r.in_prompt)},
            {"after_prompt", nll_json(r.after_prompt)}}},
          {"prefill", {{"tokens", r.prefill_tokens}, {"seconds", r.prefill_seconds}}},
          {"decode", {{"tokens", r.generated.size()}, {"seconds", r.decode_seconds}}},
          {"resumed_layers", r.resumed_layers},
          {"files", files},
          {"bytes", r.bytes}};
}

// Stops before the work is done where it would be done for nothing.
void check_bos(const CaptureSettings& s, const tracegen::ModelSpec& spec, tracegen::Runner& runner,
               const Tokenizer& tokenizer, const CaptureOptions& options) {
  const std::optional<std::int32_t> bos = tokenizer.bos();
  if (s.bos != "auto" || !bos || options.token_ids.front() == *bos) return;
  const auto loss = tracegen::misses_bos(spec, runner, options.token_ids, *bos);
  if (!loss) return;
  throw ConfigError(fmt::format(
      "without its bos, {} is worse than guessing: a mean nll of {:.2f} over the first {} tokens, "
      "{:.2f} with token {} '{}' in front, and {:.2f} if it took all tokens for alike; expected "
      "--bos {}, or --bos none to capture it as it is",
      spec.name, loss->without, loss->tokens, loss->with_bos, *bos, tokenizer.piece(*bos),
      loss->guessing, *bos));
}

void run(const CaptureSettings& s, const Context& context) {
  if (!s.json.empty() && !fs::is_directory(fs::absolute(s.json).parent_path()))
    throw ConfigError(fmt::format("--json: there is no folder for '{}'", s.json));
  const Checkpoint checkpoint = Checkpoint::open(s.model);
  const tracegen::ModelSpec& spec = checkpoint.spec();
  std::optional<Tokenizer> tokenizer;
  try {
    tokenizer = Tokenizer::open(s.model);
  } catch (const CheckpointError& error) {
    if (s.tokens.empty()) throw;
    s.say(fmt::format("no token text, because {}", error.what()));
  }
  CaptureOptions options = make_capture_options(s, checkpoint, tokenizer ? &*tokenizer : nullptr);
  check_capture(spec, options);
  check_files_of_capture(s, checkpoint, options);
  const std::int64_t tokens =
      static_cast<std::int64_t>(options.token_ids.size()) + options.generate;
  if (spec.context > 0 && tokens > spec.context) {
    s.say(fmt::format("{} tokens are more than the {} that {} was made for", tokens, spec.context,
                      spec.name));
  }

  tracegen::WorkFolder work(options.out);
  const auto [runner, cuda] = make_device(s, checkpoint, runner_options(options, work));
  options.source = tracegen::provenance(spec.weights, cuda, s.half) + continuation(options);
  options.identity = identity(checkpoint, cuda, s.half);
  const tracegen::CapturePlan plan = plan_capture(spec, options);
  const std::int64_t memory = plan.memory_bytes + runner->memory_bytes();
  s.say(fmt::format("{}, {} layers, {} weights: {}", spec.name, spec.layers, spec.weights,
                    runner->description()));
  s.say(fmt::format("{} of anonymous memory at most; {} of disk while it works, {} afterwards",
                    human_bytes(memory), human_bytes(plan.work_bytes),
                    human_bytes(plan.trace_bytes)));
  if (!s.memory.empty() && memory > parse_bytes(s.memory, "--memory")) {
    throw ConfigError(fmt::format("--memory {}: {} are needed; fewer tokens or --threads need less",
                                  s.memory, human_bytes(memory)));
  }

  if (tokenizer) check_bos(s, spec, *runner, *tokenizer, options);

  (void)interrupted();
  std::optional<Progress> progress;
  std::string shown;
  options.progress = [&](std::string_view stage, double done) {
    if (interrupted()) {
      throw Error(
          fmt::format("interrupted; the same command goes on from {}", work.path().string()),
          kInterrupted);
    }
    if (stage != shown) progress.emplace(shown = stage, s.quiet);
    (*progress)(done);
  };
  const CaptureResult result = capture(spec, *runner, work, options);
  progress.reset();

  const std::string generated =
      tokenizer && !result.generated.empty() ? tokenizer->decode(result.generated) : "";
  print_result(result, generated);
  if (result.all && result.all->mean > std::log(static_cast<double>(spec.vocabulary))) {
    s.say(
        fmt::format("a perplexity above the {} tokens of the vocabulary is worse than guessing; "
                    "is the bos missing that the model was trained with (--bos ID), or are these "
                    "the tokens of another model?",
                    spec.vocabulary));
  }
  if (!s.json.empty()) {
    write_file_atomically(s.json,
                          to_json(result, generated, runner->description(), context)
                                  .dump(1, ' ', false, nlohmann::json::error_handler_t::replace) +
                              "\n");
  }
}

}  // namespace

void add_capture(CLI::App& app, const Context& context) {
  auto s = std::make_shared<CaptureSettings>();
  CLI::App* sub =
      app.add_subcommand("capture", "Run a model over a text and record its attention as a trace");
  add_capture_options(*sub, *s);
  sub->footer(R"help(
Examples:
  kvspan capture --model DIR --text prose.txt --prompt 1792 --generate 256 --out trace.safetensors
  kvspan capture --model m.gguf --text needle.txt --chat --generate 32 --stop-at-eos --span "key=The pass key is 69294." --out t.safetensors
  kvspan capture --model DIR --text prose.txt --emit scores --keys 64 --column-mass --chunk 512 --out s.safetensors

An interrupted capture leaves OUT.partial; the same command goes on after its last complete layer.)help");
  sub->callback([s, &context] { run(*s, context); });
}

}  // namespace kvspan::cli
