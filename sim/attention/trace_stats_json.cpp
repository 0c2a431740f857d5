// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "sim/attention/trace_stats.h"

namespace kvspan {
namespace {

nlohmann::json to_json(const RowStats& rows) {
  if (rows.rows == 0) return nullptr;
  return {{"rows", rows.rows},
          {"sink", rows.sink},
          {"local", rows.local},
          {"entropy", rows.entropy},
          {"entropy_max", rows.entropy_max},
          {"support", rows.support},
          {"sink_logit", rows.sink_logit},
          {"residual", rows.residual},
          {"distance", rows.distance},
          {"top", rows.top},
          {"top_share", rows.top_shares},
          {"spans", rows.spans}};
}

nlohmann::json to_json(const std::optional<double>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
}

}  // namespace

nlohmann::json to_json(const TraceStats& stats) {
  nlohmann::json out = {{"sinks", stats.options.sinks},
                        {"window", stats.options.window},
                        {"from", stats.options.from},
                        {"rows", stats.options.rows},
                        {"bins", stats.bins},
                        {"top_keys", kTopKeys},
                        {"top_shares", kTopShares},
                        {"spans", nlohmann::json::array()},
                        {"layers", nlohmann::json::array()}};
  for (const Span& span : stats.spans)
    out["spans"].push_back({{"name", span.name}, {"begin", span.begin}, {"end", span.end}});
  for (const LayerStats& layer : stats.layers) {
    nlohmann::json heads = nlohmann::json::array();
    for (std::size_t q = 0; q < layer.heads.size(); ++q) {
      const HeadStats& head = layer.heads[q];
      heads.push_back({{"head", q},
                       {"class", head_class_name(head.head_class)},
                       {"persistence", to_json(head.persistence)},
                       {"into_decode", to_json(head.into_decode)},
                       {"prompt", to_json(head.prompt)},
                       {"decode", to_json(head.decode)}});
    }
    out["layers"].push_back({{"layer", layer.layer}, {"heads", std::move(heads)}});
  }
  return out;
}

}  // namespace kvspan
