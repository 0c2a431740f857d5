// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/outputs.h"
#include "cli/validators.h"
#include "sim/attention/trace_stats.h"
#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/text.h"
#include "sim/trace/probes.h"
#include "sim/trace/trace_tools.h"

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
  const auto says = [&](const char* word) { return m.source.find(word) != std::string::npos; };
  const char* after = says("teacher-forced")                   ? "teacher-forced"
                      : says("generated") || says("; sampled") ? "generated"
                                                               : "after it";
  line("tokens", fmt::format("{} = {} prompt + {} {}", m.tokens, m.prompt_tokens,
                             m.tokens - m.prompt_tokens, after));
  line("layers",
       m.layers == m.model_layers
           ? std::to_string(m.layers)
           : fmt::format("{} of {}: [{}]", m.layers, m.model_layers, fmt::join(m.layer_ids, ",")));
  line("heads",
       fmt::format("{} query, {} KV, of {} channels", m.query_heads, m.kv_heads, m.head_dim));
  for (const Span& span : m.spans)
    line("span", fmt::format("{} [{}, {})", span.name, span.begin, span.end));
  for (const Probe& probe : probes_of(trace)) {
    line("replay", fmt::format("{} rows after {} tokens, which ask for [{}, {})", probe.rows,
                               probe.at, probe.begin, probe.end));
  }
  line("cache", cache_note(trace));
  std::int64_t bytes = 0;
  for (const auto& [name, tensor] : trace.tensors().tensors())
    bytes += static_cast<std::int64_t>(tensor.bytes.size());
  line("size",
       fmt::format("{} in {} tensors", human_bytes(bytes), trace.tensors().tensors().size()));
  line("licence", m.licence);
  line("source", m.source);
}

// Mean over heads, least and most: "0.41 0.03-0.98".
std::string over_heads(const std::vector<double>& values, int digits) {
  if (values.empty()) return "-";
  double sum = 0;
  for (const double value : values) sum += value;
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  return fmt::format("{:.{}f} {:.{}f}-{:.{}f}", sum / static_cast<double>(values.size()), digits,
                     *least, digits, *most, digits);
}

using Heads = std::span<const HeadStats>;
using Row = std::vector<std::string>;

std::vector<double> each(Heads heads,
                         const std::function<std::optional<double>(const HeadStats&)>& value) {
  std::vector<double> out;
  for (const HeadStats& head : heads) {
    if (const auto x = value(head)) out.push_back(*x);
  }
  return out;
}

// One line of the main table: some heads of a layer, one phase.
Row stats_row(std::string name, Heads heads, bool decode, bool bounded) {
  const auto phase = [decode](const HeadStats& head) -> const RowStats& {
    return decode ? head.decode : head.prompt;
  };
  const auto cell = [&](int digits, const std::function<double(const RowStats&)>& value) {
    const std::vector<double> values =
        each(heads, [&](const HeadStats& head) { return value(phase(head)); });
    return values.size() == 1 ? fmt::format("{:.{}f}", values[0], digits)
                              : over_heads(values, digits);
  };
  Row row = {std::move(name),
             decode ? "decode" : "prompt",
             cell(2, [](const RowStats& r) { return r.sink; }),
             cell(2, [](const RowStats& r) { return r.local; }),
             cell(1, [](const RowStats& r) { return r.entropy; }),
             cell(0, [](const RowStats& r) { return r.support; }),
             cell(2, [](const RowStats& r) { return r.top[2]; })};
  const std::vector<double> overlap = each(
      heads, [&](const HeadStats& head) { return decode ? head.into_decode : head.persistence; });
  row.push_back(overlap.size() == 1 ? fmt::format("{:.2f}", overlap[0]) : over_heads(overlap, 2));
  if (bounded) row.push_back(cell(2, [](const RowStats& r) { return r.residual; }));
  if (heads.size() == 1 && !decode) row.emplace_back(head_class_name(heads[0].head_class));
  return row;
}

struct StatsSettings {
  TraceStatsOptions options;
  std::string json;
  bool per_head = false, head_table = false, quiet = false;
};

// Whether any prompt rows, any decode rows were measured.
struct Phases {
  bool has[2];
};

Phases phases_of(const TraceStats& stats) {
  const HeadStats& first = stats.layers.at(0).heads.at(0);
  return {{first.prompt.rows > 0, first.decode.rows > 0}};
}

void print_main_table(const TraceStats& stats, const Phases& phases, bool per_head, bool bounded) {
  Row head = {"layer",
              "rows",
              fmt::format("sinks ({})", stats.options.sinks),
              fmt::format("last {}", stats.options.window),
              "entropy",
              "support",
              "top 16",
              "persistence"};
  if (bounded) head.emplace_back("residual");
  if (per_head) {
    head[0] = "layer.head";
    head.emplace_back("class");
  }
  std::vector<Row> rows = {head};
  for (const LayerStats& layer : stats.layers) {
    const Heads heads = layer.heads;
    for (std::size_t q = 0; q < (per_head ? heads.size() : 1); ++q) {
      for (const bool decode : {false, true}) {
        if (!phases.has[decode ? 1 : 0]) continue;
        rows.push_back(
            stats_row(per_head ? fmt::format("{}.{}", layer.layer, q) : std::to_string(layer.layer),
                      per_head ? heads.subspan(q, 1) : heads, decode, bounded));
      }
    }
  }
  fmt::print("{}", align(rows));
  fmt::print(
      "\nsinks, last: mass on the first and the newest keys; entropy in nats, support its "
      "exponential;\ntop 16: mass on the 16 largest; persistence: overlap of the tenth of the keys "
      "that received most,\nfrom window to window of rows (decode: from the prompt's last "
      "window).\n");
  if (bounded) {
    fmt::print(
        "residual: mass that the trace hides; every share may be higher by it, entropy is a "
        "lower bound.\n");
  }
}

void print_distances(const TraceStats& stats, const Phases& phases) {
  fmt::print(
      "\nMass by distance without sinks, percent, mean over heads (0: the row's own token)\n");
  std::vector<Row> rows = {{"layer", "rows"}};
  for (std::size_t b = 0; b < stats.bins.size(); ++b) {
    rows[0].push_back(b < 2 ? std::to_string(stats.bins[b]) : fmt::format("{}-", stats.bins[b]));
  }
  for (const LayerStats& layer : stats.layers) {
    for (const bool decode : {false, true}) {
      if (!phases.has[decode ? 1 : 0]) continue;
      rows.push_back({std::to_string(layer.layer), decode ? "decode" : "prompt"});
      for (std::size_t b = 0; b < stats.bins.size(); ++b) {
        double sum = 0;
        for (const HeadStats& h : layer.heads) sum += (decode ? h.decode : h.prompt).distance[b];
        rows.back().push_back(
            fmt::format("{:.1f}", 100 * sum / static_cast<double>(layer.heads.size())));
      }
    }
  }
  fmt::print("{}", align(rows));
}

void print_spans(const TraceStats& stats) {
  fmt::print("\nMass on named spans, decode rows: mean over heads, and the head with most\n");
  std::vector<Row> rows = {{"layer"}};
  for (const Span& span : stats.spans)
    rows[0].push_back(fmt::format("{} [{}, {})", span.name, span.begin, span.end));
  for (const LayerStats& layer : stats.layers) {
    rows.push_back({std::to_string(layer.layer)});
    for (std::size_t i = 0; i < stats.spans.size(); ++i) {
      const std::vector<double> mass =
          each(layer.heads, [&](const HeadStats& h) { return h.decode.spans[i]; });
      double sum = 0;
      for (const double x : mass) sum += x;
      const auto most = std::max_element(mass.begin(), mass.end());
      rows.back().push_back(fmt::format("{:.2f}, {:.2f} (head {})",
                                        sum / static_cast<double>(mass.size()), *most,
                                        most - mass.begin()));
    }
  }
  fmt::print("{}", align(rows));
}

void print_classes(const TraceStats& stats, int query_heads) {
  fmt::print("\nClass of each head: R retrieval, S sink, L local, H heavy hitter, B broad\n");
  std::vector<Row> rows = {{"layer", "heads 0 .. " + std::to_string(query_heads - 1)}};
  for (const LayerStats& layer : stats.layers) {
    std::string letters;
    for (const HeadStats& h : layer.heads) {
      letters += static_cast<char>(std::toupper(head_class_name(h.head_class)[0]));
    }
    rows.push_back({std::to_string(layer.layer), letters});
  }
  fmt::print("{}", align(rows));
}

void print_stats(const std::string& path, const StatsSettings& s) {
  const Trace trace = Trace::open(path);
  Outputs outputs({{"--json", s.json}}, trace.tensors().files());
  (void)interrupted();
  const TraceStats stats = [&] {
    Progress progress("statistics", s.quiet);
    return trace_stats(trace, s.options, [&](double done) {
      if (interrupted()) throw Interrupted();
      progress(done);
    });
  }();
  outputs.write_text("--json", [&] { return to_json(stats).dump(1) + "\n"; });

  const HeadStats& first = stats.layers.at(0).heads.at(0);
  const Phases phases = phases_of(stats);
  fmt::print(
      "{}: {} prompt rows from {}, {} decode rows; mean over rows, then over heads: mean "
      "min-max\n\n",
      path, first.prompt.rows, stats.options.from, first.decode.rows);
  if (!probes_of(trace).empty()) fmt::print("Replayed rows take no part.\n\n");
  print_main_table(stats, phases, s.per_head, !trace.is_qkv());
  print_distances(stats, phases);
  if (!stats.spans.empty() && phases.has[1]) print_spans(stats);
  if (s.head_table) print_classes(stats, trace.meta().query_heads);
  outputs.finish(s.quiet);
}

using Path = std::shared_ptr<std::string>;

void add_slice(CLI::App& app, const Path& path) {
  struct Slice {
    std::int64_t tokens = 0;
    std::vector<int> layers;
    std::string out;
  };
  auto s = std::make_shared<Slice>();
  CLI::App* slice = app.add_subcommand("slice", "Keep a prefix of the tokens and some layers");
  slice->add_option("trace", *path, "Trace")->transform(input_file())->required();
  slice->add_option("--tokens", s->tokens, "Tokens to keep, from the first; default: all")
      ->check(at_least(1))
      ->type_name("T");
  slice->add_option("--layers", s->layers, "Layers of the MODEL to keep; default: all stored")
      ->delimiter(',')
      ->type_name("L[,L]");
  slice->add_option("--out", s->out, "Where to write it")
      ->transform(output_file())
      ->required()
      ->type_name("FILE");
  slice->callback([path, s] {
    const Trace trace = Trace::open(*path);
    const Outputs outputs({{"--out", s->out, false}}, trace.tensors().files());
    const std::int64_t tokens = s->tokens > 0 ? s->tokens : trace.meta().tokens;
    for (const std::string& line : slice_trace(trace, tokens, s->layers, s->out))
      fmt::print("{}\n", line);
    fmt::print(stderr, "kvspan: wrote {}\n", s->out);
  });
}

void add_stats(CLI::App& app, const Path& path) {
  auto t = std::make_shared<StatsSettings>();
  CLI::App* stats = app.add_subcommand(
      "stats", "Where the attention lies: sinks, distance, concentration, persistence, per head");
  stats->add_option("trace", *path, "Trace")->transform(input_file())->required();
  stats->add_option("--sinks", t->options.sinks, "First keys of the sequence that count as sinks")
      ->check(at_least(0))
      ->capture_default_str()
      ->type_name("S");
  stats->add_option("--window", t->options.window, "Newest keys that count as local")
      ->check(at_least(1))
      ->capture_default_str()
      ->type_name("W");
  stats
      ->add_option("--rows", t->options.rows,
                   "Rows of the prompt, sampled evenly, and at most as many decode rows; default: "
                   "2^23 / tokens, 16 to 512")
      ->check(at_least(1))
      ->type_name("K");
  stats->add_option("--from", t->options.from, "First row; default: the middle of the prompt")
      ->check(at_least(0))
      ->type_name("ROW");
  stats->add_option("--layers", t->options.layers, "Layers of the MODEL; default: all stored")
      ->delimiter(',')
      ->type_name("L[,L]");
  stats->add_option("--json", t->json, "Everything, as JSON (sim/attention/trace_stats.h)")
      ->transform(output_file())
      ->type_name("FILE");
  stats->add_flag("--per-head", t->per_head, "A line for every head, with its class");
  stats->add_flag("--head-table", t->head_table, "The class of every head, a letter each");
  stats->add_flag("--quiet", t->quiet, "No progress on stderr");
  stats->callback([path, t] { print_stats(*path, *t); });
}

}  // namespace

void add_trace(CLI::App& app) {
  CLI::App* sub = app.add_subcommand(
      "trace", "What is in a trace; validate it; cut it; statistics of its attention");
  sub->require_subcommand(1);
  sub->footer(
      "\nExamples:\n  kvspan trace info TRACE\n  kvspan trace check TRACE\n"
      "  kvspan trace slice TRACE --tokens 1024 --layers 0,8,16 --out SMALL.safetensors\n"
      "  kvspan trace stats TRACE --head-table --json STATS.json");

  auto path = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  CLI::App* info = sub->add_subcommand("info", "What is in a trace");
  info->add_option("trace", *path, "Trace")->transform(input_file())->required();
  info->add_flag("--json", *json, "As JSON");
  info->callback([path, json] { print_info(*path, *json); });

  CLI::App* check = sub->add_subcommand("check", "Full validation, values included");
  check->add_option("trace", *path, "Trace")->transform(input_file())->required();
  check->callback([path] {
    for (const std::string& line : check_trace(Trace::open(*path))) fmt::print("{}\n", line);
  });
  add_slice(*sub, path);
  add_stats(*sub, path);
}

}  // namespace kvspan::cli
