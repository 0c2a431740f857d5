// SPDX-License-Identifier: Apache-2.0
#include "tests/support/fake_report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

namespace kvspan::test {

namespace {

constexpr std::int64_t kSinks = 4;
constexpr std::int64_t kEntryBytes = 256;  // head_dim 64, two bytes

// A fixed order of the prompt's tokens, different in every head: the first `budget` stay.
std::int64_t rank(std::int64_t token, std::int64_t prompt, std::int64_t head) {
  return (token * 7919 + head * 104729) % prompt;
}

std::int64_t death_of(const FakeRun& run, const PassPlan& plan, std::int64_t token,
                      std::int64_t head) {
  const auto end_after = [&](std::int64_t row) {  // of the first pass that ends at `row` or later
    return *std::lower_bound(plan.ends.begin(), plan.ends.end(), std::min(row, plan.tokens));
  };
  const bool stays = rank(token, plan.prompt, head) < run.budget;
  switch (run.rule) {
    case FakeRun::Rule::keep_all:
      break;
    case FakeRun::Rule::window:
      return token < kSinks ? plan.tokens : end_after(token + run.budget + 1);
    case FakeRun::Rule::prompt_end:
      return token >= plan.prompt || stays ? plan.tokens : plan.prompt;
    case FakeRun::Rule::rolling:
      if (token >= plan.prompt) return std::min(plan.tokens, token + run.budget + 1);
      return stays ? std::min(plan.tokens, plan.prompt + 1 + rank(token, plan.prompt, head))
                   : plan.prompt;
  }
  return plan.tokens;
}

PeakBytes peak_of(const Timeline& line, std::int64_t prompt) {
  PeakBytes peak;
  for (std::size_t row = 0; row < line.resident_bytes.size(); ++row) {
    const std::int64_t total = line.resident_bytes[row];
    std::int64_t& phase = static_cast<std::int64_t>(row) < prompt ? peak.prefill : peak.decode;
    phase = std::max(phase, total);
    if (total <= peak.total) continue;
    peak.total = total;
    peak.overhead = line.overhead_bytes[row];
    peak.kv = total - peak.overhead;
    peak.row = static_cast<RowIndex>(row);
  }
  return peak;
}

void count(const FakeRun& run, RunResult& result) {
  const Ledger& ledger = result.ledger;
  Metrics& metrics = result.metrics;
  const auto tokens = static_cast<std::size_t>(ledger.plan.tokens);
  const double pairs = static_cast<double>(ledger.layers) * ledger.heads;
  std::vector<std::int64_t> change(tokens + 1, 0);
  for (std::size_t i = 0; i < ledger.death.size(); ++i) {
    ++change[i % tokens];
    --change[ledger.death[i]];
  }
  std::int64_t resident = 0;
  for (std::size_t row = 0; row < tokens; ++row) {
    resident += change[row];
    Timeline& line = metrics.timeline;
    line.resident_entries.push_back(resident);
    line.overhead_bytes.push_back(resident * run.overhead_per_entry);
    line.resident_bytes.push_back(resident * (kEntryBytes + run.overhead_per_entry));
    line.host_bytes.push_back(0);
    line.active_entries.push_back(resident);
    metrics.entry_rows += resident;
    metrics.full_entry_rows +=
        static_cast<std::int64_t>(pairs) * static_cast<std::int64_t>(row + 1);
    metrics.byte_rows += line.resident_bytes.back();
    metrics.peak_kv = std::max(metrics.peak_kv,
                               static_cast<double>(resident) / pairs / static_cast<double>(tokens));
  }
  metrics.footprint =
      static_cast<double>(metrics.entry_rows) / static_cast<double>(metrics.full_entry_rows);
  metrics.peak_bytes = peak_of(metrics.timeline, ledger.plan.prompt);
  metrics.entries_read = metrics.entry_rows;
  metrics.bytes_read = metrics.entry_rows * kEntryBytes;
  for (const char* layout : {"padded", "query_head"}) metrics.layouts[layout] = metrics.peak_bytes;
  metrics.layouts["padded"].total += 1024;
  for (int l = 0; l < ledger.layers; ++l) {
    metrics.per_layer.push_back(
        {metrics.footprint, metrics.peak_kv, metrics.peak_bytes.total / ledger.layers});
    const std::vector<double> heads(static_cast<std::size_t>(ledger.heads), metrics.footprint);
    metrics.head_footprint.push_back(heads);
    metrics.head_peak_kv.push_back(heads);
  }
}

// Mass falls with what is gone, a little differently for every policy.
Fidelity make_up_fidelity(const RunResult& run, std::size_t which) {
  Fidelity fidelity;
  const PassPlan& plan = run.ledger.plan;
  const double pairs = static_cast<double>(run.ledger.layers) * run.ledger.heads;
  const double quality = 0.25 + 0.05 * static_cast<double>(which % 7);
  std::array<PhaseFidelity, 3> phases;
  for (PhaseFidelity& phase : phases) phase = {0, 0, 1, 1, true, 0, 0, 0, true};
  for (std::size_t row = 0; row < static_cast<std::size_t>(plan.tokens); ++row) {
    const double held = static_cast<double>(run.metrics.timeline.resident_entries[row]) /
                        (pairs * static_cast<double>(row + 1));
    const double mass = std::pow(held, quality * 0.3);
    fidelity.row_mass.push_back(static_cast<float>(mass));
    const std::size_t phase = static_cast<std::int64_t>(row) < plan.prompt ? 1 : 2;
    for (const std::size_t p : {std::size_t{0}, phase}) {
      ++phases[p].values;
      phases[p].mass_mean += mass;
      phases[p].mass_min = std::min(phases[p].mass_min, mass);
    }
  }
  for (PhaseFidelity& phase : phases) {
    if (phase.values > 0) phase.mass_mean /= static_cast<double>(phase.values);
    phase.mass_p5 = 0.25 * phase.mass_mean + 0.75 * phase.mass_min;
    phase.error_mean = 0.7 * (1 - phase.mass_mean);
    phase.error_p95 = phase.error_max = 0.7 * (1 - phase.mass_min);
  }
  fidelity.rows_measured = plan.tokens;
  fidelity.all = phases[0];
  fidelity.prefill = phases[1];
  if (plan.prompt < plan.tokens) fidelity.decode = phases[2];
  for (int l = 0; l < run.ledger.layers; ++l) {
    fidelity.layer_mass.push_back(phases[0].mass_mean);
    fidelity.head_mass.emplace_back(static_cast<std::size_t>(run.ledger.query_heads),
                                    phases[0].mass_mean);
  }
  const double left = std::min(1.0, run.metrics.footprint * 1.1);
  fidelity.spans = {{"question", std::sqrt(left), 0.01}, {"needle", left, 1 - left}};
  return fidelity;
}

}  // namespace

RunReport fake_report(const FakeShape& shape, const std::vector<FakeRun>& runs) {
  RunReport report;
  report.command = {"kvspan", "run", "traces/fake.safetensors"};
  report.trace_path = "traces/fake.safetensors";
  report.trace_sha256 = std::string(64, 'a');
  report.chunk = shape.chunk;
  TraceMeta& trace = report.trace;
  trace.layers = shape.layers;
  trace.model_layers = shape.layers;
  for (int l = 0; l < shape.layers; ++l) trace.layer_ids.push_back(l);
  trace.query_heads = 2 * shape.heads;
  trace.kv_heads = shape.heads;
  trace.head_dim = trace.v_head_dim = 64;
  trace.tokens = shape.tokens;
  trace.prompt_tokens = shape.prompt;
  trace.model = "Fake-135M";
  for (std::size_t r = 0; r < runs.size(); ++r) {
    RunResult result;
    result.spec = runs[r].spec;
    result.label = runs[r].label.empty() ? runs[r].spec : runs[r].label;
    result.klass = runs[r].rule == FakeRun::Rule::keep_all ? "full" : "eviction";
    result.bound = runs[r].bound;
    result.notes = runs[r].notes;
    Ledger& ledger = result.ledger;
    ledger.plan = make_passes(shape.tokens, shape.prompt, shape.prompt, shape.chunk);
    ledger.layers = ledger.model_layers = shape.layers;
    ledger.heads = shape.heads;
    ledger.query_heads = trace.query_heads;
    ledger.representations = {{"fp16", kEntryBytes, 0}};
    ledger.charge.entry = runs[r].overhead_per_entry;
    for (std::int64_t head = 0; head < static_cast<std::int64_t>(shape.layers) * shape.heads;
         ++head) {
      for (std::int64_t token = 0; token < shape.tokens; ++token) {
        const std::int64_t death = death_of(runs[r], ledger.plan, token, head);
        ledger.death.push_back(static_cast<std::uint32_t>(death));
      }
    }
    count(runs[r], result);
    if (shape.fidelity) result.fidelity = make_up_fidelity(result, r);
    report.runs.push_back(std::move(result));
  }
  return report;
}

RunReport fake_sweep(const FakeShape& shape, int count) {
  struct Kind {
    const char* name;
    FakeRun::Rule rule;
    std::int64_t overhead;
  };
  constexpr std::array<Kind, 7> kKinds{{{"snapkv", FakeRun::Rule::prompt_end, 0},
                                        {"streaming_llm", FakeRun::Rule::window, 0},
                                        {"h2o", FakeRun::Rule::rolling, 4},
                                        {"pyramidkv", FakeRun::Rule::prompt_end, 0},
                                        {"tova", FakeRun::Rule::rolling, 0},
                                        {"duoattention", FakeRun::Rule::window, 1},
                                        {"chunked(snapkv", FakeRun::Rule::prompt_end, 0}}};
  std::vector<FakeRun> runs{{.spec = "full"}};
  for (int i = 0; i + 1 < count; ++i) {
    const Kind& kind = kKinds[static_cast<std::size_t>(i) % kKinds.size()];
    const std::int64_t budget = shape.prompt / 16 * (1 + i / static_cast<int>(kKinds.size()));
    std::string spec = std::string(kind.name) + "(budget=" + std::to_string(budget) + ")";
    if (spec.starts_with("chunked")) spec += ",variant=patched)";
    runs.push_back(
        {.spec = spec, .rule = kind.rule, .budget = budget, .overhead_per_entry = kind.overhead});
  }
  return fake_report(shape, runs);
}

RunReport small_report() {
  return fake_report(
      {.tokens = 64, .prompt = 48},
      {{.spec = "snapkv(budget=16,window=4)",
        .rule = FakeRun::Rule::prompt_end,
        .budget = 16,
        .label = "snapkv(budget=16)"},
       {.spec = "full"},
       {.spec = "oracle(budget=16)", .rule = FakeRun::Rule::rolling, .budget = 16, .bound = true},
       {.spec = "h2o(budget=16)",
        .rule = FakeRun::Rule::rolling,
        .budget = 16,
        .overhead_per_entry = 4,
        .notes = {"stand-in: something"}}});
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

}  // namespace kvspan::test
