// SPDX-License-Identifier: Apache-2.0
#include "sim/sweep/figures.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/text.h"
#include "sim/report/listing.h"
#include "sim/report/run_names.h"
#include "sim/run/request.h"

namespace kvspan::sweep {
namespace {

using nlohmann::json;

json finite(double value) { return std::isfinite(value) ? json(value) : json(nullptr); }

void drop_argument(RecipeSpec& spec, const std::string& key) {
  for (Term& term : spec) {
    drop_argument(term.inner, key);
    std::erase_if(term.arguments, [&](const Argument& argument) { return argument.key == key; });
  }
}

json spans_of(const RunResult& run) {
  json out = json::object();
  if (!run.fidelity) return out;
  for (const SpanResult& span : run.fidelity->spans)
    out[valid_utf8(span.name)] = finite(span.resident_share);
  return out;
}

void add_fidelity(const RunResult& run, json& out) {
  for (const char* key :
       {"retained_attention_mean_share", "retained_attention_p5_share",
        "retained_attention_upper_mean_share", "retained_attention_low_share",
        "retained_attention_high_share", "output_error_mean_share", "output_error_p95_share"}) {
    out[key] = nullptr;
  }
  out["rows_measured"] = run.fidelity ? run.fidelity->rows_measured : 0;
  const PhaseFidelity* phase = judged_phase(run);
  if (phase == nullptr) return;
  out["retained_attention_mean_share"] = finite(phase->mass_mean);
  out["retained_attention_p5_share"] = finite(phase->mass_p5);
  if (phase->mass_upper)
    out["retained_attention_upper_mean_share"] = finite(phase->mass_upper->mean);
  if (const auto& estimate = run.fidelity->estimate) {
    out["retained_attention_low_share"] = finite(estimate->low);
    out["retained_attention_high_share"] = finite(estimate->high);
  }
  if (!phase->has_error) return;
  out["output_error_mean_share"] = finite(phase->error_mean);
  out["output_error_p95_share"] = finite(phase->error_p95);
}

void add_regret(const RunResult& run, json& out) {
  const auto& regret = run.regret;
  out["regret_share"] = regret ? finite(regret->regret) : json(nullptr);
  out["optimum_retained_attention_share"] = regret ? finite(regret->optimum) : json(nullptr);
  out["optimum_footprint_share"] = regret ? finite(regret->footprint) : json(nullptr);
}

}  // namespace

const std::vector<Column>& grid_columns() {
  static const std::vector<Column> columns{
      {"cell", "string", "",
       "first 16 hex digits of the SHA-256 of all that its figures depend on"},
      {"status", "string", "", "done, left out (the trace cannot serve it), failed, or left"},
      {"reason", "string", "", "why it is not done"},
      {"trace", "string", "", "path as found"},
      {"trace_sha256", "string", "", "of the trace's files"},
      {"model", "string", "", "that the trace names"},
      {"trace_tokens", "integer", "tokens", "N"},
      {"prompt_option_tokens", "integer", "tokens", "as asked for; 0: as the trace says"},
      {"evict_at", "string", "", "span or row where prompt-end rules act; empty: the prompt's end"},
      {"chunk_tokens", "integer", "tokens", "prefill chunk; 0: the prompt is one pass"},
      {"kv_element_bytes", "integer", "bytes", "of one stored element"},
      {"prefill", "string", "", "whole or layerwise"},
      {"layout", "string", "", "storage layout that bytes are counted in"},
      {"seed", "integer", "", "of policies that draw random numbers"},
      {"policy", "string", "", "specification as asked for"}};
  return columns;
}

const std::vector<Column>& figure_columns() {
  static const std::vector<Column> columns{
      {"method", "string", "", "the specification without its budget or other knob"},
      {"budget", "string", "", "as text: tokens, a share of the prompt, or bytes; empty: none"},
      {"class", "string", "", "kinds of its methods"},
      {"bound", "boolean", "", "reads the future, which no method can"},
      {"prompt_tokens", "integer", "tokens", "n of this run"},
      {"footprint_share", "number", "1", "entries held, summed over rows / (N(N+1)/2)"},
      {"peak_kv_share", "number", "1", "most entries held in a row / N"},
      {"peak_bytes", "integer", "bytes", "largest kv + overhead at one instant, of stored layers"},
      {"peak_kv_bytes", "integer", "bytes", "of kv, at that instant"},
      {"peak_overhead_bytes", "integer", "bytes", "of overhead, at that instant"},
      {"peak_prefill_bytes", "integer", "bytes", "largest of prefill"},
      {"peak_decode_bytes", "integer", "bytes", "largest of decode"},
      {"peak_row", "integer", "rows", "where the peak is"},
      {"byte_rows", "integer", "bytes x rows", "sum over rows of kv + overhead"},
      {"host_footprint_share", "number", "1", "the footprint of what was moved to the host"},
      {"host_peak_bytes", "integer", "bytes", "most of it at one instant"},
      {"read_bytes", "integer", "bytes", "read by all rows"},
      {"retained_attention_mean_share", "number", "1",
       "of decode rows (or all): what they reach of the full cache's; of a score trace at least"},
      {"retained_attention_p5_share", "number", "1", "5 % of the rows reach less"},
      {"retained_attention_upper_mean_share", "number", "1", "score traces: at most"},
      {"retained_attention_low_share", "number", "1",
       "of the 95 % interval of the mean, where it is estimated from a sample"},
      {"retained_attention_high_share", "number", "1", "of that interval"},
      {"output_error_mean_share", "number", "1", "norm(o_kept - o_full) / norm(o_full)"},
      {"output_error_p95_share", "number", "1", "95 % of the rows have less"},
      {"regret_share", "number", "1",
       "retained attention that the best eviction, knowing the future, has more with no more "
       "entries in any head after any pass; empty: not asked for, a score trace, or keys or values "
       "are altered"},
      {"optimum_retained_attention_share", "number", "1", "what that best eviction retains"},
      {"optimum_footprint_share", "number", "1",
       "the smallest footprint at which eviction at the same pass ends retains as much"},
      {"rows_measured", "integer", "rows", "that the figures of attention are of"},
      {"undecided_decisions", "integer", "", "that a score trace cannot settle"},
      {"spans_left_share", "string", "1", "JSON {span: share of its entries held at the end}"},
      {"notes", "string", "", "stand-ins, bounds, what a figure does not say"},
      {"canonical", "string", "", "specification with every default: enough to repeat the run"}};
  return columns;
}

json schema_of(const std::vector<Column>& columns) {
  json fields = json::array();
  for (const Column& column : columns) {
    fields.push_back({{"name", column.name},
                      {"type", column.type},
                      {"unit", *column.unit == '\0' ? json(nullptr) : json(column.unit)},
                      {"description", column.help}});
  }
  return {{"schema_version", 1}, {"fields", std::move(fields)}, {"missingValues", {""}}};
}

json figures_of(const RunReport& about, const RunResult& run, const RecipeSpec& spec,
                const Policy& policy) {
  const Metrics& metrics = run.metrics;
  const std::optional<std::string> budget = budget_of(run.spec);
  json out{{"method", valid_utf8(method_of(run, spec, policy))},
           {"budget", budget ? json(valid_utf8(*budget)) : json(nullptr)},
           {"class", valid_utf8(run.klass)},
           {"bound", run.bound},
           {"prompt_tokens", run.ledger.plan.prompt},
           {"footprint_share", finite(metrics.footprint)},
           {"peak_kv_share", finite(metrics.peak_kv)},
           {"peak_bytes", metrics.peak_bytes.total},
           {"peak_kv_bytes", metrics.peak_bytes.kv},
           {"peak_overhead_bytes", metrics.peak_bytes.overhead},
           {"peak_prefill_bytes", metrics.peak_bytes.prefill},
           {"peak_decode_bytes", metrics.peak_bytes.decode},
           {"peak_row", metrics.peak_bytes.row},
           {"byte_rows", metrics.byte_rows},
           {"host_footprint_share", finite(metrics.host_footprint)},
           {"host_peak_bytes", metrics.host_peak_bytes},
           {"read_bytes", metrics.bytes_read},
           {"undecided_decisions", run.undecided ? json(*run.undecided) : json(nullptr)},
           {"spans_left_share", spans_of(run)},
           {"notes", notes_of(about, run)},
           {"canonical", valid_utf8(run.spec)}};
  add_fidelity(run, out);
  add_regret(run, out);
  return out;
}

std::string method_of(const RunResult& run, RecipeSpec spec, const Policy& policy) {
  drop_argument(spec, "budget");
  if (policy.knob) drop_argument(spec, policy.knob->parameter);
  const std::string amount = chunked_amount(run.spec);
  return label_with_amount(label_of(spec),
                           amount.empty() ? "" : amount.substr(amount.find(' ') + 1));
}

}  // namespace kvspan::sweep
