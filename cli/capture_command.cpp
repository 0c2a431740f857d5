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

#include "cli/commands.h"
#include "cli/validators.h"
#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/policy/spec.h"
#include "sim/trace/safetensors.h"
#include "tracegen/capture/capture.h"
#include "tracegen/capture/capture_input.h"
#include "tracegen/model/checkpoint.h"
#include "tracegen/tokenizer/tokenizer.h"

namespace kvspan::cli {
namespace {

namespace fs = std::filesystem;
using tracegen::CaptureOptions;
using tracegen::CaptureResult;
using tracegen::Checkpoint;
using tracegen::Tokenizer;

constexpr std::int64_t kMostTokens = 1'000'000'000;

struct Settings {
  std::string model, text, tokens, out, scores_out;
  std::string bos = "auto", emit = "qkv", dtype = "f16", rows = "all", shards = "auto";
  std::string device = "auto", memory, json, licence;
  std::int64_t prompt = 0, generate = -1, chunk = 0;  // prompt 0, generate -1: not given
  int keys = 0, threads = 0;                          // keys 0: not given
  std::vector<int> layers;
  std::vector<std::string> spans;
  tracegen::Sampling sampling;
  bool teacher = false, chat = false, stop_at_eos = false, column_mass = false, wo = false;
  bool half = false, quiet = false;

  void say(const std::string& line) const {
    if (!quiet) fmt::print(stderr, "kvspan: {}\n", line);
  }
};

// The number after `prefix`, at least 1; -1: the text is something else.
std::int64_t number_after(const std::string& text, const std::string& prefix) {
  if (!text.starts_with(prefix)) return -1;
  const std::string digits = text.substr(prefix.size());
  if (digits.empty() || digits.size() > 9 ||
      digits.find_first_not_of("0123456789") != std::string::npos || std::stoll(digits) < 1) {
    return -1;
  }
  return std::stoll(digits);
}

tracegen::RowChoice parse_rows(const std::string& text) {
  if (text == "all") return {};
  if (const std::int64_t last = number_after(text, "last="); last > 0) return {last, 1};
  if (const std::int64_t every = number_after(text, "every="); every > 0) return {0, every};
  throw ConfigError(
      fmt::format("--rows: found '{}', expected all, last=W or every=S with a number >= 1", text));
}

// ---- What is read --------------------------------------------------------------------------------

struct Input {
  std::vector<std::int32_t> ids;
  std::string what;  // for the trace's metadata
  bool bos_put = false;
};

// Puts a bos first where that was asked for, and says what it did.
void add_bos(const Settings& s, const Tokenizer* tokenizer, bool from_text, Input& input) {
  const auto first = [&] { return input.ids.empty() ? -1 : input.ids.front(); };
  const auto put = [&](std::int32_t id) {
    input.ids.insert(input.ids.begin(), id);
    input.bos_put = true;
    input.what += fmt::format(", token {} (bos) first", id);
  };
  if (s.bos == "none") return;
  if (s.bos != "auto") {
    const std::int64_t id = s.bos == "0" ? 0 : number_after(s.bos, "");
    if (id < 0)
      throw ConfigError(fmt::format("--bos: found '{}', expected auto, none or a token id", s.bos));
    put(static_cast<std::int32_t>(id));
    return;
  }
  if (!from_text) return;  // token ids are taken as they are
  const Tokenizer::Bos& setting = tokenizer->bos_setting();
  const std::optional<std::int32_t> bos = tokenizer->bos();
  if (bos && first() == *bos) {
    s.say(fmt::format("bos: the text begins with token {} as it is", *bos));
  } else if (bos && setting.adds) {
    put(*bos);
    s.say(fmt::format("bos: token {} '{}' put first ({})", *bos, tokenizer->piece(*bos),
                      setting.why));
  } else {
    s.say(fmt::format("bos: none ({}){}", setting.why,
                      bos ? fmt::format("; --bos {} puts '{}' first, which some models need", *bos,
                                        tokenizer->piece(*bos))
                          : ""));
  }
}

Input read_input(const Settings& s, const Tokenizer* tokenizer) {
  Input input;
  const bool from_text = !s.text.empty();
  if (from_text == !s.tokens.empty())
    throw ConfigError("expected one of --text FILE and --tokens FILE");
  if (from_text) {
    std::string text = tracegen::read_text(s.text);
    input.what = fs::path(s.text).filename().string();
    if (s.chat) {
      text = tokenizer->chat(std::vector<tracegen::ChatTurn>{{"user", text}});
      input.what += ", as a user's turn";
    }
    input.ids = tokenizer->encode(text);
  } else {
    if (s.chat) throw ConfigError("--chat needs --text");
    input.ids = tracegen::read_token_ids(s.tokens);
    input.what = "token ids of " + fs::path(s.tokens).filename().string();
  }
  add_bos(s, tokenizer, from_text, input);
  return input;
}

// Prompt, teacher-forced and generated tokens.
void divide(const Settings& s, Input input, CaptureOptions& o) {
  const auto tokens = static_cast<std::int64_t>(input.ids.size());
  const std::int64_t forced = s.teacher ? std::max<std::int64_t>(0, s.generate) : 0;
  o.prompt = s.prompt > 0 ? s.prompt : tokens - forced;
  const std::int64_t known = !s.teacher       ? o.prompt
                             : s.generate < 0 ? tokens
                                              : o.prompt + s.generate;
  if (o.prompt < 1 || known > tokens || known < o.prompt) {
    throw ConfigError(fmt::format(
        "--prompt {}{}: the text has {} tokens{}", o.prompt,
        s.teacher && s.generate > 0 ? fmt::format(" and {} teacher-forced ones", s.generate) : "",
        tokens, input.bos_put ? ", a bos included" : ""));
  }
  input.ids.resize(static_cast<std::size_t>(known));
  o.token_ids = std::move(input.ids);
  o.generate = s.teacher ? 0 : std::max<std::int64_t>(0, s.generate);
  o.text = input.what;
}

// ---- What it is made of --------------------------------------------------------------------------

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

CaptureOptions make_options(const Settings& s, const Checkpoint& checkpoint,
                            const Tokenizer* tokenizer) {
  CaptureOptions o;
  divide(s, read_input(s, tokenizer), o);
  o.out = s.out;
  o.scores_out = s.scores_out;
  o.qkv = s.emit != "scores";
  if (s.emit == "qkv" &&
      (s.keys > 0 || s.rows != "all" || s.column_mass || !s.scores_out.empty())) {
    throw ConfigError("--keys, --rows, --column-mass and --scores-out need --emit scores or both");
  }
  if (s.emit != "qkv") {
    o.scores = tracegen::ScoreOptions{.rows = parse_rows(s.rows), .column_mass = s.column_mass};
    if (s.keys > 0) o.scores->top_k = s.keys;
  }
  if (o.qkv && o.scores && o.scores_out.empty()) {
    o.scores_out = o.out;
    o.scores_out.replace_extension("scores.safetensors");
  }
  o.shards = s.shards == "one"      ? tracegen::Shards::one
             : s.shards == "layers" ? tracegen::Shards::layers
                                    : tracegen::Shards::automatic;
  o.dtype = s.dtype == "f32" ? Dtype::f32 : s.dtype == "bf16" ? Dtype::bf16 : Dtype::f16;
  o.layers = s.layers;
  if (s.wo) {
    o.wo = [checkpoint](int layer, std::int64_t first, std::int64_t rows, float* out) {
      widen_rows(checkpoint.layer(layer).o, first, rows, out);
    };
  }
  o.sampling = s.sampling;
  if (s.stop_at_eos) {
    if (tokenizer == nullptr || !tokenizer->eos())
      throw ConfigError("--stop-at-eos: the tokenizer names no eos token");
    o.stop = tokenizer->eos();
  }
  o.chunk = s.chunk;
  o.threads = s.threads;
  std::vector<std::string> pieces;
  if (tokenizer != nullptr) {
    o.piece = [tokenizer](std::int32_t id) { return std::string(tokenizer->piece(id)); };
    o.special_ids = tokenizer->special_ids();
    for (const std::int32_t id : o.token_ids) pieces.push_back(o.piece(id));
  }
  for (const std::string& span : s.spans) o.spans.push_back(tracegen::parse_span(span, pieces));
  const tracegen::ModelSpec& spec = checkpoint.spec();
  o.licence = !s.licence.empty()     ? s.licence
              : spec.licence.empty() ? ""
                                     : "weights " + spec.licence;
  o.say = [&s](const std::string& line) { s.say(line); };
  return o;
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
void check_outputs(const Settings& s, const Checkpoint& checkpoint, const CaptureOptions& options) {
  std::vector<fs::path> inputs(checkpoint.files());
  if (fs::is_directory(s.model)) {
    for (const char* name : kModelFiles) inputs.push_back(fs::path(s.model) / name);
  }
  if (!s.text.empty()) inputs.emplace_back(s.text);
  if (!s.tokens.empty()) {
    inputs.emplace_back(s.tokens);
    for (const fs::path& file : tracegen::token_id_files(s.tokens)) inputs.push_back(file);
  }
  std::set<fs::path> taken;
  for (const fs::path& input : inputs) taken.insert(fs::weakly_canonical(input));
  std::vector<fs::path> outputs = capture_files(checkpoint.spec(), options);
  if (!s.json.empty()) outputs.emplace_back(s.json);
  std::set<fs::path> written;
  for (const fs::path& output : outputs) {
    const fs::path path = fs::weakly_canonical(output);
    if (taken.contains(path)) {
      throw ConfigError(
          fmt::format("'{}' is an input of this command, and would be replaced or removed; "
                      "expected other names for --out, --scores-out and --json",
                      output.string()));
    }
    if (!written.insert(path).second) {
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

Device make_device(const Settings& s, const Checkpoint& checkpoint,
                   tracegen::RunnerOptions options) {
  options.half_precision = s.half;
  if (s.half && s.device != "cuda") {
    throw ConfigError("--half is for --device cuda; a CPU computes in fp32");
  }
  if (s.device != "cpu") {
    try {
      return {make_cuda_runner(checkpoint, options), true};
    } catch (const DeviceError& error) {
      if (s.device == "cuda") throw;
      if (tracegen::has_cuda_device()) s.say(fmt::format("on the CPU, because {}", error.what()));
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

// ---- What is said --------------------------------------------------------------------------------

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

void run(const Settings& s, const Context& context) {
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
  CaptureOptions options = make_options(s, checkpoint, tokenizer ? &*tokenizer : nullptr);
  check_capture(spec, options);
  check_outputs(s, checkpoint, options);
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

  (void)interrupted();
  std::optional<Progress> progress;
  std::string shown;
  options.progress = [&](std::string_view stage, double done) {
    if (interrupted()) {
      throw Error(
          fmt::format("interrupted; the same command goes on from {}", work.path().string()), 1);
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
                    "is the bos missing that the model was trained with (--bos ID)?",
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
  auto s = std::make_shared<Settings>();
  CLI::App* sub =
      app.add_subcommand("capture", "Run a model over a text and record its attention as a trace");
  sub->add_option("--model", s->model, "Hugging Face folder (config.json, safetensors) or .gguf")
      ->required()
      ->type_name("DIR|FILE");
  sub->add_option("--text", s->text, "Text, tokenised as the model does it")->type_name("FILE");
  sub->add_option("--tokens", s->tokens,
                  "Token ids instead: JSON list, numbers, or a .safetensors with token_ids")
      ->type_name("FILE");
  sub->add_option("--out", s->out, "The trace, NAME.safetensors")->required()->type_name("FILE");

  const char* reading = "What the model reads";
  sub->add_option("--prompt", s->prompt, "Tokens of the prompt; default: all of the text")
      ->check(CLI::Range(std::int64_t{1}, kMostTokens))
      ->type_name("n")
      ->group(reading);
  sub->add_option("--generate", s->generate, "Tokens after the prompt; default: 0")
      ->check(CLI::Range(std::int64_t{0}, kMostTokens))
      ->type_name("m")
      ->group(reading);
  sub->add_flag("--teacher", s->teacher,
                "The tokens after the prompt are those of the text (teacher forcing)")
      ->group(reading);
  sub->add_option("--bos", s->bos,
                  "First token: as the tokenizer's settings say (auto), none, or a token id")
      ->type_name("auto|none|ID")
      ->group(reading);
  sub->add_flag("--chat", s->chat, "The text is a user's turn, in the model's chat format")
      ->group(reading);
  sub->add_option("--span", s->spans, "Names tokens: NAME=TEXT or NAME=BEGIN:END; repeatable")
      ->type_name("SPAN")
      ->allow_extra_args(false)
      ->group(reading);
  sub->add_option("--chunk", s->chunk, "Prefill pass, tokens; 0: the prompt is one pass")
      ->check(at_least(0))
      ->type_name("C")
      ->group(reading);

  const char* generating = "How it generates (greedy unless a temperature is given)";
  sub->add_option("--temperature", s->sampling.temperature, "Samples; 0: greedy")
      ->type_name("T")
      ->group(generating);
  sub->add_option("--top-p", s->sampling.top_p, "From the likeliest tokens of this share")
      ->type_name("P")
      ->group(generating);
  sub->add_option("--top-k", s->sampling.top_k, "From the likeliest K tokens; 0: all")
      ->type_name("K")
      ->group(generating);
  sub->add_option("--seed", s->sampling.seed, "Seed of the sampling")
      ->type_name("S")
      ->group(generating);
  sub->add_flag("--stop-at-eos", s->stop_at_eos, "Generation ends with the model's eos token")
      ->group(generating);

  const char* writing = "What is written";
  sub->add_option("--emit", s->emit, "q, k and v; attention scores; or both, as two traces")
      ->check(CLI::IsMember({"qkv", "scores", "both"}))
      ->type_name("qkv|scores|both")
      ->group(writing);
  sub->add_option("--scores-out", s->scores_out,
                  "The score trace of --emit both; default: NAME.scores.safetensors")
      ->type_name("FILE")
      ->group(writing);
  sub->add_option("--dtype", s->dtype, "Of q, k, v, or of the probabilities")
      ->check(CLI::IsMember({"f16", "bf16", "f32"}))
      ->type_name("f16|bf16|f32")
      ->group(writing);
  sub->add_option("--keys", s->keys, "Probabilities that a row of scores keeps; default: 64")
      ->check(at_least(1))
      ->type_name("K")
      ->group(writing);
  sub->add_option("--rows", s->rows,
                  "Prompt rows of scores: all, the last W, every S-th; later rows are all kept")
      ->type_name("all|last=W|every=S")
      ->group(writing);
  sub->add_flag("--column-mass", s->column_mass,
                "With scores: what each key received in each prefill pass")
      ->group(writing);
  sub->add_option("--layers", s->layers, "Layers of the model to store; default: all")
      ->delimiter(',')
      ->type_name("L[,L]")
      ->group(writing);
  sub->add_flag("--wo", s->wo, "Output projections, too (for criticalkv)")->group(writing);
  sub->add_option("--shards", s->shards, "One file, one a layer, or one below 1 GiB (auto)")
      ->check(CLI::IsMember({"auto", "one", "layers"}))
      ->type_name("auto|one|layers")
      ->group(writing);
  sub->add_option("--licence", s->licence, "Licence of text and weights, for the trace")
      ->type_name("TEXT")
      ->group(writing);
  sub->add_option("--json", s->json, "Summary as JSON")->type_name("FILE")->group(writing);

  const char* machine = "The machine";
  sub->add_option("--device", s->device, "Where the model runs; auto: a GPU if there is one")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->type_name("auto|cpu|cuda")
      ->group(machine);
  sub->add_flag("--half", s->half,
                "On a GPU: products in BF16, attention in F16, sums in fp32; default: all fp32")
      ->group(machine);
  sub->add_option("--threads", s->threads, "Threads; 0: all cores. The trace does not depend on it")
      ->check(CLI::Range(0, 4096))
      ->type_name("T")
      ->group(machine);
  sub->add_option("--memory", s->memory, "Refuse to run with more anonymous memory than this")
      ->type_name("SIZE")
      ->group(machine);
  sub->add_flag("--quiet", s->quiet, "Nothing on stderr but errors")->group(machine);
  sub->footer(R"help(
Examples:
  kvspan capture --model DIR --text prose.txt --prompt 1792 --generate 256 --out trace.safetensors
  kvspan capture --model m.gguf --text needle.txt --chat --generate 32 --stop-at-eos --span "key=The pass key is 69294." --out t.safetensors
  kvspan capture --model DIR --text prose.txt --emit scores --keys 64 --column-mass --chunk 512 --out s.safetensors

An interrupted capture leaves OUT.partial; the same command goes on after its last complete layer.)help");
  sub->callback([s, &context] { run(*s, context); });
}

}  // namespace kvspan::cli
