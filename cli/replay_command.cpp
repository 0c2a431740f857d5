// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/outputs.h"
#include "cli/policy_options.h"
#include "cli/replay_device.h"
#include "cli/replay_output.h"
#include "cli/validators.h"
#include "gpu_replay/replay/stored_forms.h"
#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/models/model_geometry.h"
#include "sim/policy/registry.h"
#include "sim/policy/spec.h"
#include "sim/predict/capacity.h"
#include "sim/replay/requirements.h"
#include "sim/report/json.h"
#include "sim/run/run.h"

namespace kvspan::cli {
namespace {

struct ReplaySettings {
  std::string trace;
  std::vector<std::string> policies, budgets, layouts;
  std::vector<std::int64_t> slots;
  std::string evict_point, prefill = "whole", granule, limit, out, attention, device = "auto",
                           allocator = "map";
  EngineOptions engine;
  bool fill = false, quiet = false, no_timeline = false;
};

// Decode rows whose attention is replayed; 0: all of them.
RowIndex rows_of(const std::string& text) {
  if (text == "all") return 0;
  RowIndex rows = 0;
  if (!CLI::detail::lexical_cast(text, rows) || rows < 1)
    throw ConfigError(
        fmt::format("--attention: found '{}', expected all or a number of rows", text));
  return rows;
}

RunRequest request_of(const ReplaySettings& s, const Context& context) {
  RunRequest request;
  request.engine = s.engine;
  request.engine.fidelity = !s.attention.empty();
  if (request.engine.fidelity) request.engine.fidelity_rows = rows_of(s.attention);
  request.layerwise = s.prefill == "layerwise";
  request.specs = expand_policies(
      s.policies.empty() ? std::vector<std::string>{"full", "streaming_llm", "h2o", "snapkv"}
                         : s.policies,
      s.budgets);
  request.skips = std::all_of(s.policies.begin(), s.policies.end(),
                              [](const std::string& text) { return text == "all"; });
  request.evict_point = s.evict_point;
  request.command = context.command;
  return request;
}

RunReport decide(const Trace& trace, RunRequest request, const ReplaySettings& s) {
  Progress progress("deciding", s.quiet);
  RunWatch watch;
  watch.cancelled = [] { return interrupted(); };
  watch.progress = [&](const RunBatch& /*all*/, double done) { progress(done); };
  watch.begins = [](const RunOutline& outline) {
    if (!outline.unserved.empty()) {
      fmt::print(stderr, "kvspan: the trace does not hold what they need: {}: left out\n",
                 fmt::join(outline.unserved, ", "));
    }
    (void)interrupted();
  };
  if (!s.out.empty()) request.checksum = [&] { return trace.sha256(); };
  return kvspan::run(trace, request, watch);
}

// Why the attention of a run cannot be taken from its entries alone; empty: it can.
std::string why_no_attention(const RunResult& run, const Trace& trace,
                             const EngineOptions& engine) {
  const Policy policy = make_policy(run.spec, geometry_of(trace, engine));
  if (policy.selector || policy.prefill_reads)
    return "its query heads choose what they read, which the ledger does not hold";
  if (policy.alters_vectors && !gpu_replay::has_stored_forms(run.spec))
    return "it holds other vectors than the trace's, in a form that the pool does not write";
  if (policy.renumbers) return "its positions are places in the cache";
  if (std::any_of(run.ledger.representations.begin(), run.ledger.representations.end(),
                  [](const Representation& r) { return r.host_bytes > 0; }))
    return "a part of what it reads lies on the host";
  return "";
}

void replay_attention(const ReplaySettings& s, const ReplayDevice& device, const Trace& trace,
                      const RunRequest& request, ReplayFound& found) {
  Progress progress("attending", s.quiet);
  gpu_replay::AttentionReplaySettings settings;
  if (!s.layouts.empty()) settings.layout = s.layouts.front();
  settings.element = gpu_replay::element_of(s.engine.kv_bytes, trace.k(0)->dtype == Dtype::bf16);
  settings.rows = request.engine.fidelity_rows;
  settings.attend = device.attend;
  settings.cancelled = [] { return interrupted(); };
  EngineOptions engine = request.engine;
  engine.prompt = found.report->runs.front().ledger.plan.prompt;
  engine.evict_point = found.report->runs.front().ledger.plan.evict_point;
  for (const RunResult& run : found.report->runs) {
    AttentionFound& of = found.attention.emplace_back();
    settings.progress = [&](double share) {
      progress((static_cast<double>(found.attention.size()) - 1 + share) /
               static_cast<double>(found.report->runs.size()));
    };
    of.why_not = why_no_attention(run, trace, engine);
    if (!of.why_not.empty()) continue;
    const auto memory = device.make_memory(found.granule, 0);
    settings.policy = run.spec;
    of.pool = gpu_replay::replay_attention(trace, run.ledger, *memory, settings);
    of.why_not = of.pool.why_not;
    of.retained = run.fidelity->decode->mass_mean;
    of.error = run.fidelity->decode->error_mean;
  }
}

// What attention is replayed of. Errors: ConfigError, TraceError.
void check_attention(const ReplaySettings& s, const Trace& trace) {
  if (s.attention.empty()) return;
  (void)gpu_replay::element_of(s.engine.kv_bytes);
  if (!trace.is_qkv() || !trace.has_v())
    throw TraceError(
        fmt::format("'{}': --attention needs q, k and v, expected a trace that holds "
                    "them",
                    trace.name()));
  const RowIndex prompt = s.engine.prompt == 0 ? trace.meta().prompt_tokens : s.engine.prompt;
  if (prompt >= trace.meta().tokens)
    throw ConfigError(
        fmt::format("--attention: found {} prompt tokens of {}, expected decode rows; "
                    "--prompt N sets where they begin",
                    prompt, trace.meta().tokens));
}

// One request of the trace's shape beside others of it, by closed forms.
BatchPredicted predicted_batch(const RunResult& run, const ReplaySettings& s,
                               const std::string& layout, std::int64_t limit) {
  BatchPredicted out;
  const PassPlan& plan = run.ledger.plan;
  try {
    if (plan.evict_point != plan.prompt) throw ConfigError("it evicts at the end of the prompt");
    const RequestBytes request =
        request_bytes(parse_spec(run.spec), load_model(s.trace),
                      {plan.prompt, plan.tokens - plan.prompt, s.engine.chunk},
                      {s.engine.kv_bytes, s.prefill == "layerwise", layout}, 1, nullptr);
    out.sequences = gpu_replay::most_sequences(limit, request.peak, request.decode);
    out.basis = request.basis;
  } catch (const ConfigError& error) {
    out.why_not = error.what();
  }
  return out;
}

// Every run in every layout, one after another: each has the device to itself.
void replay_all(const ReplaySettings& s, const ReplayDevice& device, ReplayFound& found) {
  const std::vector<std::string>& layouts = s.layouts.empty() ? standard_layouts() : s.layouts;
  Progress progress("replaying", s.quiet);
  const double jobs = static_cast<double>(found.report->runs.size() * layouts.size());
  double done = 0;
  gpu_replay::MemoryReplaySettings settings;
  settings.layerwise = found.report->accounting.layerwise;
  settings.cancelled = [] { return interrupted(); };
  settings.progress = [&](double share) { progress((done + share) / jobs); };
  for (const RunResult& run : found.report->runs) {
    auto& of = found.runs.emplace_back();
    for (const std::string& layout : layouts) {
      const auto memory = device.make_memory(found.granule, found.limit);
      of.push_back({gpu_replay::replay_memory(run.ledger, layout, *memory, settings), {}, {}});
      if (s.fill) {
        of.back().fill = gpu_replay::fill_memory(run.ledger, layout, *memory, settings);
        of.back().batch = predicted_batch(run, s, layout, of.back().fill->limit);
      }
      ++done;
    }
  }
}

void place_all(const ReplaySettings& s, ReplayFound& found) {
  Progress progress("placing", s.quiet);
  for (const RunResult& run : found.report->runs) {
    found.slots.push_back(find_slots(run.ledger, s.slots, [] { return interrupted(); }));
    progress(static_cast<double>(found.slots.size()) /
             static_cast<double>(found.report->runs.size()));
  }
}

void run(const ReplaySettings& s, const Context& context) {
  for (const std::string& layout : s.layouts) (void)parse_layout(layout);
  ReplayFound found;
  found.mapped = s.allocator == "map";
  if (!found.mapped && !s.granule.empty())
    throw ConfigError("--granule: only mapped memory has granules, found --allocator pool");
  const ReplayDevice device = replay_device(s.device, found.mapped);
  if (!device.instead.empty() && !s.quiet)
    fmt::print(stderr, "kvspan: on the host, because {}\n", device.instead);
  const auto memory =
      device.make_memory(s.granule.empty() ? 0 : parse_bytes(s.granule, "--granule"), 0);
  found.granule = memory->granule();
  found.device = memory->name();
  if (!s.limit.empty()) found.limit = parse_bytes(s.limit, "--limit");
  if (s.fill && found.limit == 0 && !device.cuda)
    throw ConfigError("--fill: expected --limit SIZE, the memory that is to be filled");
  if (found.limit > 0 && found.limit < found.granule) {
    throw ConfigError(fmt::format("--limit {}: expected at least {}, which are backed together",
                                  s.limit, human_bytes(found.granule)));
  }
  const RunRequest request = request_of(s, context);
  std::vector<std::filesystem::path> inputs = files_of_policies(s.policies, request.specs);
  const Trace trace = Trace::open(s.trace);
  inputs.insert(inputs.end(), trace.tensors().files().begin(), trace.tensors().files().end());
  Outputs outputs({{"--out", s.out}}, inputs);
  check_attention(s, trace);
  const RunReport report = decide(trace, request, s);
  found.report = &report;
  replay_all(s, device, found);
  if (!s.attention.empty()) replay_attention(s, device, trace, request, found);
  if (!s.slots.empty()) place_all(s, found);
  outputs.write_text("--out", [&] { return file_text(replay_json(found, !s.no_timeline)); });
  print_replay(found);
  outputs.finish(s.quiet);
  if (const std::string differs = differences(found); !differs.empty()) throw Error(differs, 1);
}

}  // namespace

void add_replay(CLI::App& app, const Context& context) {
  auto s = std::make_shared<ReplaySettings>();
  CLI::App* sub = app.add_subcommand(
      "replay", "Decisions replayed on real memory: what an allocator adds, and what fits");
  sub->add_option("trace", s->trace, "A trace (.safetensors, or its .index.json)")
      ->transform(input_file())
      ->required();
  add_policy_options(*sub, s->policies, s->budgets);
  sub->add_option("--chunk", s->engine.chunk, "Prefill chunk, tokens; 0: the prompt is one pass")
      ->check(whole_number())
      ->type_name("C");
  sub->add_option("--prompt", s->engine.prompt,
                  "Where the prompt ends; the rest is treated as decoding")
      ->type_name("N")
      ->check(at_least(1));
  sub->add_option("--evict-at", s->evict_point, "As of kvspan run")->type_name("SPAN");
  sub->add_option("--prefill", s->prefill,
                  "When a runtime compresses: after all layers, or layer by layer")
      ->check(CLI::IsMember({"whole", "layerwise"}))
      ->type_name("whole|layerwise");
  sub->add_option("--layout", s->layouts,
                  fmt::format("Storage layout, may be repeated; default: {}",
                              fmt::join(standard_layouts(), ", ")))
      ->type_name("NAME")
      ->allow_extra_args(false);
  sub->add_option("--device", s->device, "Whose memory; auto: a GPU's if there is one")
      ->check(CLI::IsMember({"auto", "cuda", "host"}))
      ->type_name("auto|cuda|host");
  sub->add_option("--allocator", s->allocator,
                  "map: addresses reserved once, granules backed as they are needed; pool: every "
                  "block an allocation of its own, from a GPU's stream-ordered pool or the heap")
      ->check(CLI::IsMember({"map", "pool"}))
      ->type_name("map|pool");
  sub->add_option("--granule", s->granule,
                  "Bytes that are backed together: a page, or 2MiB as a GPU maps memory")
      ->type_name("SIZE");
  sub->add_option("--limit", s->limit, "A small device: no more than this is backed")
      ->type_name("SIZE");
  sub->add_flag("--fill", s->fill,
                "How many such sequences fit into --limit, by putting them there");
  sub->add_option(
         "--slots", s->slots,
         "Also how many slots of blocks of so many entries are empty if nobody moves them: "
         "in order, by first fit, and at best")
      ->check(CLI::Range(1, 65536))
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("B[,B]");
  sub->add_option("--attention", s->attention,
                  "Attention of so many decode rows, from the pool, beside the simulator's")
      ->type_name("all|ROWS");
  sub->add_option("--kv-bytes", s->engine.kv_bytes, "Bytes of one stored element")
      ->check(CLI::Range(1, 16))
      ->type_name("B");
  sub->add_option("--threads", s->engine.threads, "Threads of the decisions; 0: all cores")
      ->check(CLI::Range(0, 4096))
      ->type_name("T");
  sub->add_option("--seed", s->engine.seed, "Seed of policies that draw random numbers")
      ->check(a_seed())
      ->type_name("S");
  sub->add_option("--out", s->out, "Result as JSON")->transform(output_file())->type_name("FILE");
  sub->add_flag("--no-timeline", s->no_timeline, "Without memory over time in that JSON");
  sub->add_flag("--quiet", s->quiet, "No progress on stderr");
  sub->footer(R"help(
Examples:
  kvspan replay TRACE --policy full --policy "snapkv(budget=20%)" --out replay.json
  kvspan replay TRACE --policy h2o --budget 20% --layout paged16_per_head --granule 2MiB
  kvspan replay TRACE --policy h2o --budget 20% --layout padded --allocator pool
  kvspan replay TRACE --policy snapkv --policy h2o --budget 20% --layout paged16_per_head --slots 16,64
  kvspan replay TRACE --policy full --policy tova --prompt 512 --attention 100 --kv-bytes 1
  kvspan replay TRACE --policy all --budget 20% --layout openvino --prefill layerwise
  kvspan replay TRACE --policy full --policy "chunked(snapkv(budget=20%))" --chunk 512 --limit 64MiB --fill)help");
  sub->callback([s, &context] { run(*s, context); });
}

}  // namespace kvspan::cli
