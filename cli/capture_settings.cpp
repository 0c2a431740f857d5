// SPDX-License-Identifier: Apache-2.0
#include "cli/capture_settings.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <optional>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "cli/validators.h"
#include "sim/base/error.h"
#include "tracegen/capture/capture_input.h"

namespace kvspan::cli {
namespace {

namespace fs = std::filesystem;
using tracegen::CaptureOptions;
using tracegen::Checkpoint;
using tracegen::Tokenizer;

constexpr std::int64_t kMostTokens = 1'000'000'000;

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

struct Input {
  std::vector<std::int32_t> ids;
  std::string what;  // for the trace's metadata
  bool bos_put = false;
};

// Puts a bos first where that was asked for, and says what it did.
void add_bos(const CaptureSettings& s, const Tokenizer* tokenizer, bool from_text, Input& input) {
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
  if (tokenizer == nullptr) return;
  const Tokenizer::Bos& setting = tokenizer->bos_setting();
  const std::optional<std::int32_t> bos = tokenizer->bos();
  if (!from_text) {  // token ids are taken as they are
    if (bos && setting.adds && first() != *bos) {
      throw ConfigError(
          fmt::format("the model's first token is {} '{}' ({}), and that of the ids is {}; "
                      "expected --bos {} to "
                      "put it first, or --bos none to take the ids as they are",
                      *bos, tokenizer->piece(*bos), setting.why, first(), *bos));
    }
  } else if (bos && first() == *bos) {
    s.say(fmt::format("bos: the text begins with token {} as it is", *bos));
  } else if (s.chat) {  // as transformers has it
    s.say("bos: none beside what the chat template writes");
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

Input read_input(const CaptureSettings& s, const Tokenizer* tokenizer) {
  Input input;
  const bool from_text = !s.text.empty();
  if (from_text == !s.tokens.empty())
    throw ConfigError("expected one of --text FILE and --tokens FILE");
  if (from_text) {
    std::string text = tracegen::read_text(s.text);
    input.what = s.text == "/dev/stdin" ? "standard input" : fs::path(s.text).filename().string();
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
void divide(const CaptureSettings& s, Input input, CaptureOptions& o) {
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

// What of the prompt is replayed, and with which words: what lies between the chat template's head
// and a span called "question", or the template's tail.
tracegen::ContextReplay replay_of(const CaptureSettings& s, const Tokenizer* tokenizer,
                                  const CaptureOptions& o) {
  if (tokenizer == nullptr) throw ConfigError("--replay: needs the model's tokenizer");
  std::string suffix = "\n\nAnswer: ";
  std::int64_t begin = tokenizer->bos() && o.token_ids.front() == *tokenizer->bos() ? 1 : 0;
  std::int64_t end = o.prompt;
  if (s.chat) {
    constexpr std::string_view kText = "the context", kMark = "\n###########";
    const std::string turn = tokenizer->chat(
        std::vector<tracegen::ChatTurn>{{"user", fmt::format("{}{}", kText, kMark)}});
    const std::size_t mark = turn.find(kMark);
    begin = std::ssize(tokenizer->encode(turn.substr(0, turn.find(kText)))) +
            (s.bos != "auto" && s.bos != "none" ? 1 : 0);
    suffix = turn.substr(mark + kMark.size());
    const std::vector<std::int32_t> tail = tokenizer->encode(suffix);
    const auto prompt = std::span(o.token_ids).first(static_cast<std::size_t>(o.prompt));
    if (prompt.size() > tail.size() && std::ranges::equal(prompt.last(tail.size()), tail))
      end -= std::ssize(tail);
  }
  for (const Span& span : o.spans) {
    if (span.name == "question") end = std::min(end, span.begin);
  }
  if (s.replay_as == "context") return tracegen::make_replay(o.token_ids, 0, end, end, {});
  return tracegen::make_replay(
      o.token_ids, begin, end, s.replay_chunk,
      {tokenizer->encode("\n\nRepeat the previous context exactly."),
       tokenizer->encode("\n\nRepeat the part of the previous context exactly, starting with "),
       tokenizer->encode(suffix)});
}

void add_reading_options(CLI::App& command, CaptureSettings& s) {
  const char* reading = "What the model reads";
  command.add_option("--prompt", s.prompt, "Tokens of the prompt; default: all of the text")
      ->check(CLI::Range(std::int64_t{1}, kMostTokens))
      ->type_name("n")
      ->group(reading);
  command.add_option("--generate", s.generate, "Tokens after the prompt; default: 0")
      ->check(CLI::Range(std::int64_t{0}, kMostTokens))
      ->type_name("m")
      ->group(reading);
  command
      .add_flag("--teacher", s.teacher,
                "The tokens after the prompt are those of the text (teacher forcing)")
      ->group(reading);
  command
      .add_option("--bos", s.bos,
                  "First token: as the tokenizer's settings say (auto), none, or a token id")
      ->type_name("auto|none|ID")
      ->group(reading);
  command.add_flag("--chat", s.chat, "The text is a user's turn, in the model's chat format")
      ->group(reading);
  command.add_option("--span", s.spans, "Names tokens: NAME=TEXT or NAME=BEGIN:END; repeatable")
      ->type_name("SPAN")
      ->allow_extra_args(false)
      ->group(reading);
  CLI::Option* replay =
      command
          .add_flag("--replay", s.replay,
                    "Ask for the context again (for kvzip, kvcompose): up to a span 'question'")
          ->group(reading);
  command
      .add_option("--replay-as", s.replay_as,
                  "KVzip's request, or the context alone, in one pass (for kvcompose)")
      ->check(CLI::IsMember({"kvzip", "context"}))
      ->needs(replay)
      ->type_name("kvzip|context")
      ->group(reading);
  command.add_option("--replay-chunk", s.replay_chunk, "Tokens asked for at a time; default: 2000")
      ->check(at_least(1))
      ->needs(replay)
      ->type_name("C")
      ->group(reading);
  command.add_option("--chunk", s.chunk, "Prefill pass, tokens; 0: the prompt is one pass")
      ->check(at_least(0))
      ->type_name("C")
      ->group(reading);
}

void add_generating_options(CLI::App& command, CaptureSettings& s) {
  const char* generating = "How it generates (greedy unless a temperature is given)";
  command.add_option("--temperature", s.sampling.temperature, "Samples; 0: greedy")
      ->type_name("T")
      ->group(generating);
  command.add_option("--top-p", s.sampling.top_p, "From the likeliest tokens of this share")
      ->type_name("P")
      ->group(generating);
  command.add_option("--top-k", s.sampling.top_k, "From the likeliest K tokens; 0: all")
      ->type_name("K")
      ->group(generating);
  command.add_option("--seed", s.sampling.seed, "Seed of the sampling")
      ->check(a_seed())
      ->type_name("S")
      ->group(generating);
  command.add_flag("--stop-at-eos", s.stop_at_eos, "Generation ends with the model's eos token")
      ->group(generating);
}

void add_writing_options(CLI::App& command, CaptureSettings& s) {
  const char* writing = "What is written";
  command.add_option("--emit", s.emit, "q, k and v; attention scores; or both, as two traces")
      ->check(CLI::IsMember({"qkv", "scores", "both"}))
      ->type_name("qkv|scores|both")
      ->group(writing);
  command
      .add_option("--scores-out", s.scores_out,
                  "The score trace of --emit both; default: NAME.scores.safetensors")
      ->type_name("FILE")
      ->group(writing);
  command.add_option("--dtype", s.dtype, "Of q, k, v, or of the probabilities")
      ->check(CLI::IsMember({"f16", "bf16", "f32"}))
      ->type_name("f16|bf16|f32")
      ->group(writing);
  command.add_option("--keys", s.keys, "Probabilities that a row of scores keeps; default: 64")
      ->check(at_least(1))
      ->type_name("K")
      ->group(writing);
  command
      .add_option("--rows", s.rows,
                  "Prompt rows of scores: all, the last W, every S-th; later rows are all kept")
      ->type_name("all|last=W|every=S")
      ->group(writing);
  command
      .add_flag("--column-mass", s.column_mass,
                "With scores: what each key received in each prefill pass")
      ->group(writing);
  command.add_option("--layers", s.layers, "Layers of the model to store; default: all")
      ->delimiter(',')
      ->type_name("L[,L]")
      ->group(writing);
  command.add_flag("--wo", s.wo, "Output projections, too (for criticalkv)")->group(writing);
  command.add_option("--shards", s.shards, "One file, one a layer, or one below 1 GiB (auto)")
      ->check(CLI::IsMember({"auto", "one", "layers"}))
      ->type_name("auto|one|layers")
      ->group(writing);
  command.add_option("--licence", s.licence, "Licence of text and weights, for the trace")
      ->type_name("TEXT")
      ->group(writing);
  command.add_option("--json", s.json, "Summary as JSON")
      ->transform(output_file())
      ->type_name("FILE")
      ->group(writing);
}

void add_machine_options(CLI::App& command, CaptureSettings& s) {
  const char* machine = "The machine";
  command.add_option("--device", s.device, "Where the model runs; auto: a GPU if there is one")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->type_name("auto|cpu|cuda")
      ->group(machine);
  command
      .add_flag("--half", s.half,
                "On a GPU: products in BF16, attention in F16, sums in fp32; default: all fp32")
      ->group(machine);
  command
      .add_option("--threads", s.threads, "Threads; 0: all cores. The trace does not depend on it")
      ->check(CLI::Range(0, 4096))
      ->type_name("T")
      ->group(machine);
  command.add_option("--memory", s.memory, "Refuse to run with more anonymous memory than this")
      ->type_name("SIZE")
      ->group(machine);
  command.add_flag("--quiet", s.quiet, "Nothing on stderr but errors")->group(machine);
}

}  // namespace

void CaptureSettings::say(const std::string& line) const {
  if (!quiet) fmt::print(stderr, "kvspan: {}\n", line);
}

CaptureOptions make_capture_options(const CaptureSettings& s, const Checkpoint& checkpoint,
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
  if (s.replay) {
    o.replay = replay_of(s, tokenizer, o);
    o.replay->norms = tracegen::norms_of(checkpoint);
    s.say(fmt::format("replay: {} rows ask for tokens [{}, {}) in {} pass{}", o.replay->rows(),
                      o.replay->passes.front().begin, o.replay->at, o.replay->passes.size(),
                      o.replay->passes.size() == 1 ? "" : "es"));
  }
  const tracegen::ModelSpec& spec = checkpoint.spec();
  o.licence = !s.licence.empty()     ? s.licence
              : spec.licence.empty() ? ""
                                     : "weights " + spec.licence;
  o.say = [&s](const std::string& line) { s.say(line); };
  return o;
}

void add_capture_options(CLI::App& command, CaptureSettings& settings) {
  command
      .add_option("--model", settings.model,
                  "Hugging Face folder (config.json, safetensors) or .gguf")
      ->required()
      ->type_name("DIR|FILE");
  command
      .add_option("--text", settings.text, "Text, tokenised as the model does it; -: from stdin")
      ->transform(input_file())
      ->type_name("FILE");
  command
      .add_option("--tokens", settings.tokens,
                  "Token ids instead: JSON list, numbers, or a .safetensors with token_ids")
      ->transform(input_file())
      ->type_name("FILE");
  command.add_option("--out", settings.out, "The trace, NAME.safetensors")
      ->required()
      ->type_name("FILE");
  add_reading_options(command, settings);
  add_generating_options(command, settings);
  add_writing_options(command, settings);
  add_machine_options(command, settings);
}

}  // namespace kvspan::cli
