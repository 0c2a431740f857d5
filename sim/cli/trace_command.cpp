// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/cli/commands.h"
#include "sim/terminal_chart.h"
#include "sim/trace.h"

namespace kvspan::cli {
namespace {

void print_info(const std::string& path, bool json) {
  const Trace trace = Trace::open(path);
  const nlohmann::json description = describe_trace(trace);
  if (json) {
    fmt::print("{}\n", description.dump(1));
    return;
  }
  const TraceMeta& m = trace.meta();
  const auto line = [](const char* what, const std::string& value) {
    if (!value.empty()) fmt::print("  {:<10} {}\n", what, value);
  };
  fmt::print("{}\n", path);
  line("model", m.model);
  line("text", m.text);
  line("kind", trace.is_qkv()
                   ? (trace.has_v() ? "q, k and v: exact" : "q and k: exact, no output error")
                   : "attention probabilities: bounded by their residual mass");
  line("tokens", fmt::format("{} = {} prompt + {} generated", m.tokens, m.prompt_tokens,
                             m.tokens - m.prompt_tokens));
  line("layers", m.layers == m.model_layers ? std::to_string(m.layers)
                                            : fmt::format("{} of {}: {}", m.layers, m.model_layers,
                                                          nlohmann::json(m.layer_ids).dump()));
  line("heads",
       fmt::format("{} query, {} KV, of {} channels", m.query_heads, m.kv_heads, m.head_dim));
  for (const Span& span : m.spans)
    line("span", fmt::format("{} [{}, {})", span.name, span.begin, span.end));
  std::int64_t bytes = 0;
  for (const auto& [name, tensor] : trace.tensors().tensors())
    bytes += static_cast<std::int64_t>(tensor.bytes.size());
  line("size",
       fmt::format("{} in {} tensors", human_bytes(bytes), trace.tensors().tensors().size()));
  line("licence", m.licence);
  line("source", m.source);
}

}  // namespace

void add_trace(CLI::App& app) {
  CLI::App* sub = app.add_subcommand("trace", "What is in a trace; validate it; cut it");
  sub->require_subcommand(1);
  sub->footer(
      "\nExamples:\n  kvspan trace info TRACE\n  kvspan trace check TRACE\n"
      "  kvspan trace slice TRACE --tokens 1024 --layers 0,8,16 --out SMALL.safetensors");

  auto path = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  CLI::App* info = sub->add_subcommand("info", "What is in a trace");
  info->add_option("trace", *path, "Trace")->required();
  info->add_flag("--json", *json, "As JSON");
  info->callback([path, json] { print_info(*path, *json); });

  CLI::App* check = sub->add_subcommand("check", "Full validation, values included");
  check->add_option("trace", *path, "Trace")->required();
  check->callback([path] {
    for (const std::string& line : check_trace(Trace::open(*path))) fmt::print("{}\n", line);
  });

  struct Slice {
    std::int64_t tokens = 0;
    std::vector<int> layers;
    std::string out;
  };
  auto s = std::make_shared<Slice>();
  CLI::App* slice = sub->add_subcommand("slice", "Keep a prefix of the tokens and some layers");
  slice->add_option("trace", *path, "Trace")->required();
  slice->add_option("--tokens", s->tokens, "Tokens to keep, from the first; default: all")
      ->check(CLI::PositiveNumber)
      ->type_name("T");
  slice->add_option("--layers", s->layers, "Layers of the MODEL to keep; default: all stored")
      ->delimiter(',')
      ->type_name("L[,L]");
  slice->add_option("--out", s->out, "Where to write it")->required()->type_name("FILE");
  slice->callback([path, s] {
    const Trace trace = Trace::open(*path);
    const std::int64_t tokens = s->tokens > 0 ? s->tokens : trace.meta().tokens;
    for (const std::string& line : slice_trace(trace, tokens, s->layers, s->out))
      fmt::print("{}\n", line);
    fmt::print(stderr, "kvspan: wrote {}\n", s->out);
  });
}

}  // namespace kvspan::cli
