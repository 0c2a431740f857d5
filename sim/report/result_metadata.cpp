// SPDX-License-Identifier: Apache-2.0
#include "sim/report/result_metadata.h"

#include <bit>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/build_info.h"
#include "sim/base/text.h"

namespace kvspan {

static_assert(std::endian::native == std::endian::little,
              "tensors are written as they lie in memory");

std::string run_key(std::size_t run, std::string_view what) {
  return fmt::format("runs.{}.{}", run, what);
}

Metadata result_metadata(const RunReport& report, std::string_view format) {
  Metadata metadata;
  metadata["format"] = format;
  metadata["version"] = "1";
  metadata["program"] = fmt::format("kvspan {} ({})", build_info().version, build_info().git);
  metadata["trace.path"] = valid_utf8(report.trace_path);
  metadata["trace.sha256"] = report.trace_sha256;
  metadata["tokens"] = fmt::format("{}", report.trace.tokens);
  metadata["prompt_tokens"] = fmt::format("{}", report.trace.prompt_tokens);
  const auto evict_point = [&](std::size_t r) { return report.runs[r].ledger.plan.evict_point; };
  if (!report.runs.empty()) metadata["evict_at"] = fmt::format("{}", evict_point(0));
  metadata["chunk"] = fmt::format("{}", report.chunk);
  metadata["model_layers"] = fmt::format("{}", report.trace.model_layers);
  metadata["layer_ids"] = nlohmann::json(report.trace.layer_ids).dump();
  metadata["query_heads"] = fmt::format("{}", report.trace.query_heads);
  metadata["sliding_window"] = nlohmann::json(report.trace.sliding_window).dump();
  metadata["kv_bytes"] = fmt::format("{}", report.accounting.kv_bytes);
  metadata["layout"] = report.accounting.layout;
  metadata["prefill"] = report.accounting.layerwise ? "layerwise" : "whole";
  metadata["runs"] = fmt::format("{}", report.runs.size());
  for (std::size_t r = 0; r < report.runs.size(); ++r) {
    const RunResult& run = report.runs[r];
    metadata[run_key(r, "policy")] = valid_utf8(run.spec);
    metadata[run_key(r, "label")] = valid_utf8(run.label);
    metadata[run_key(r, "class")] = valid_utf8(run.klass);
    metadata[run_key(r, "bound")] = run.bound ? "true" : "false";
    if (evict_point(r) != evict_point(0))
      metadata[run_key(r, "evict_at")] = fmt::format("{}", evict_point(r));
    nlohmann::json names = nlohmann::json::array();
    for (const Representation& held : run.ledger.representations) {
      names.push_back({{"name", valid_utf8(held.name)},
                       {"device_bytes", held.device_bytes},
                       {"host_bytes", held.host_bytes},
                       {"entries", held.entries}});
    }
    metadata[run_key(r, "representations")] = names.dump();
    metadata[run_key(r, "charge")] =
        nlohmann::json{{"entry", run.ledger.charge.entry}, {"once", run.ledger.charge.once}}.dump();
    if (run.ledger.waits_for_layers) metadata[run_key(r, "waits_for_layers")] = "true";
  }
  return metadata;
}

}  // namespace kvspan
