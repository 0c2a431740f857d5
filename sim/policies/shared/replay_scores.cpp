// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/replay_scores.h"

#include <algorithm>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policy/memo.h"

namespace kvspan::policies {
namespace {

void require_weights(const Trace& trace, const ReplaySettings& settings) {
  if (!settings.plus) return;
  for (const char* name : {"v", "wo", "probe.norm"}) {
    if (trace.tensors().find(layer_tensor(0, name)) != nullptr) continue;
    throw TraceError(fmt::format(
        "{}(plus=true) needs layers.0.{}, and {} has none; kvspan capture --replay --wo "
        "records it",
        settings.policy, name, trace.name()));
  }
}

}  // namespace

RowIndex read_probes(const Trace& trace, ReplaySettings& settings) {
  settings.probes = probes_of(trace);
  if (settings.probes.empty()) {
    throw TraceError(
        fmt::format("{} needs replayed rows (layers.0.probe.q), and {} has none; kvspan capture "
                    "--replay records them",
                    settings.policy, trace.name()));
  }
  settings.at = 0;
  RowIndex rows = 0;
  for (const Probe& probe : settings.probes) {
    settings.at = std::max(settings.at, probe.at);
    rows = std::max(rows, probe.rows);
  }
  require_weights(trace, settings);
  return rows;
}

RowIndex read_replay(const Geometry& geometry, ReplaySettings& settings) {
  const RowIndex rows = read_probes(*geometry.trace, settings);
  if (settings.at > geometry.evict_point) {
    throw ConfigError(
        fmt::format("{}: the replay asks for the trace's first {} tokens, and this run evicts "
                    "after {}; expected --evict-at {} or later",
                    settings.policy, settings.at, geometry.evict_point, settings.at));
  }
  return rows;
}

std::shared_ptr<const ReplayColumns> replay_columns(const Geometry& geometry,
                                                    const ReplaySettings& settings, int layer) {
  const std::string key =
      fmt::format("replay: sinks {}, plus {}, model {}, group {}, layer {}", settings.sinks,
                  settings.plus, settings.of_model, static_cast<int>(settings.group), layer);
  return remembered<ReplayColumns>(geometry.memo, key,
                                   [&] { return look_at_layer(*geometry.trace, layer, settings); });
}

std::shared_ptr<const ReplayColumns> ReplayScores::known(
    const View& view, std::span<const TokenIndex> entries) const {
  if (view.pass().end < settings_.at || entries.back() >= settings_.at) {
    throw ConfigError(
        fmt::format("{} acts once, when the {} tokens that the replay asks for are read, and ranks "
                    "only these; found a decision after row {} on token {}",
                    settings_.policy, settings_.at, view.pass().end, entries.back()));
  }
  return replay_columns(geometry_, settings_, view.shape().layer);
}

double ReplayScores::score(const View& view, int head, std::span<const TokenIndex> entries,
                           std::span<double> out) {
  const auto columns = known(view, entries);
  const std::vector<double>& of_head = (*columns)[index(view.shape().kv_head(head))];
  for (std::size_t i = 0; i < entries.size(); ++i) out[i] = of_head[index(entries[i])];
  round_sums(out);
  return 0;
}

void charge_replay(Recipe& recipe, const Geometry& geometry, RowIndex rows) {
  const std::int64_t bytes = geometry.layers() * geometry.kv_heads * geometry.entry_bytes() * rows;
  recipe.charge.during = [bytes, last = geometry.evict_point - 1](RowIndex row) {
    return row == last ? bytes : 0;
  };
}

}  // namespace kvspan::policies
