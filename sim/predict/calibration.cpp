// SPDX-License-Identifier: Apache-2.0
#include "sim/predict/calibration.h"

#include <algorithm>
#include <exception>
#include <fstream>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/text.h"

namespace kvspan {
namespace {

PeakBytes peak_of(const nlohmann::json& json) {
  return {json.at("total"),   json.at("kv"),     json.at("overhead"),
          json.at("prefill"), json.at("decode"), json.at("row")};
}

Prediction figures_of(const nlohmann::json& run) {
  Prediction out;
  out.spec = run.at("policy");
  out.basis = Basis::measured;
  out.footprint = run.at("footprint");
  out.peak_kv = run.at("peak_kv");
  out.entry_rows = run.at("entry_rows");
  out.full_entry_rows = run.at("full_entry_rows");
  out.peak_bytes = peak_of(run.at("peak_bytes"));
  out.byte_rows = run.at("byte_rows").get<std::int64_t>();
  for (const auto& [name, peak] : run.at("layouts").items()) out.layouts[name] = peak_of(peak);
  return out;
}

std::vector<std::pair<RowIndex, std::int64_t>> timeline_of(const nlohmann::json& run) {
  std::vector<std::pair<RowIndex, std::int64_t>> out;
  if (!run.contains("timeline")) return out;
  const auto rows = run["timeline"].at("row").get<std::vector<RowIndex>>();
  const auto entries = run["timeline"].at("resident_entries").get<std::vector<std::int64_t>>();
  for (std::size_t i = 0; i < rows.size(); ++i) out.emplace_back(rows[i], entries.at(i));
  return out;
}

// Where an older result says nothing of it, rules acted at the prompt's end.
Geometry geometry_of(const nlohmann::json& result) {
  const nlohmann::json& trace = result.at("trace");
  Geometry g;
  g.model_layers = trace.at("model_layers");
  g.query_heads = trace.at("query_heads");
  g.kv_heads = trace.at("kv_heads");
  g.k_dim = g.v_dim = trace.at("head_dim");
  g.tokens = trace.at("tokens");
  g.prompt = trace.at("prompt_tokens");
  const nlohmann::json evict_at = result.value("evict_at", nlohmann::json());
  g.evict_point = evict_at.is_null() ? g.prompt : evict_at.get<std::int64_t>();
  g.chunk = result.at("chunk");
  g.kv_bytes = result.at("accounting").at("kv_bytes");
  for (const nlohmann::json& layer : result.at("runs").at(0).at("per_layer"))
    g.layer_ids.push_back(layer.at("layer"));
  return g;
}

// A chunk as long as the prompt is no chunk.
std::int64_t chunk_of(const Geometry& g) { return g.chunk >= g.prompt ? 0 : g.chunk; }

std::string words_of(const std::string& model, const Geometry& g) {
  const std::int64_t chunk = chunk_of(g);
  return fmt::format("{}, {} prompt + {} generated tokens, {}", one_line(model), g.prompt,
                     g.tokens - g.prompt,
                     chunk == 0 ? std::string("whole prompt") : fmt::format("chunk {}", chunk));
}

double part(std::int64_t held, std::int64_t bound) {
  if (bound <= 0) return 1;
  return std::clamp(static_cast<double>(held) / static_cast<double>(bound), 0.0, 1.0);
}

// What a policy held of its bound, in one run.
class HeldShares {
 public:
  // `bound`: of the same run. REQUIRES: a timeline, and generated tokens.
  HeldShares(const MeasuredRun& run, const Prediction& bound, const PassPlan& plan) {
    std::int64_t measured_at_prompt = 0;
    std::int64_t bound_at_prompt = 0;
    for (std::size_t i = 0; i < plan.ends.size(); ++i) {
      const RowIndex end = plan.ends[i];
      if (end > plan.evict_point && end + 1 < plan.tokens) continue;
      if (end == plan.tokens) break;
      const std::int64_t held = held_after(run, end);
      const double share = part(held, bound.held[i]);
      if (end < plan.evict_point) {
        chunks_.emplace_back(static_cast<double>(end) / static_cast<double>(plan.evict_point),
                             share);
      } else if (end == plan.evict_point) {
        at_prompt = at_end_ = share;
        measured_at_prompt = held;
        bound_at_prompt = bound.held[i];
      } else {  // the last decision
        at_end_ = share;
        const std::int64_t growth = bound.held[i] - bound_at_prompt;
        if (growth > 0) grows = part(held - measured_at_prompt, growth);
      }
    }
  }

  // In the middle of a prompt, of which `position` is over.
  [[nodiscard]] double in_prompt(double position) const {
    if (chunks_.empty()) return 1;  // it was one pass
    const auto next = std::lower_bound(chunks_.begin(), chunks_.end(), std::pair(position, -1.0));
    if (next == chunks_.begin()) return next->second;
    const auto last = next - 1;
    if (next == chunks_.end()) return last->second;
    const double way = (position - last->first) / (next->first - last->first);
    return last->second + way * (next->second - last->second);
  }
  // In decode, with the bound at the prompt's end and now. Where it does not grow, a policy that
  // shrinks on its own has done so.
  [[nodiscard]] double in_decode(std::int64_t bound_then, std::int64_t bound_now) const {
    if (bound_now == bound_then) return at_end_;
    if (bound_now <= 0) return at_prompt;
    const auto then = static_cast<double>(bound_then);
    const auto now = static_cast<double>(bound_now);
    return std::clamp((at_prompt * then + grows * (now - then)) / now, 0.0, 1.0);
  }

  double at_prompt = 1;
  double grows = 1;  // entries that stayed of those that the bound grew by in decode

 private:
  // Entries that are left after the pass that ends before row `end`: the next row listed holds its
  // own and those of the rows between, too.
  static std::int64_t held_after(const MeasuredRun& run, RowIndex end) {
    const auto next =
        std::lower_bound(run.timeline.begin(), run.timeline.end(), std::pair(end, std::int64_t{0}));
    if (next == run.timeline.end()) return 0;
    return std::max<std::int64_t>(0, next->second - run.heads * (next->first - end + 1));
  }

  std::vector<std::pair<double, double>> chunks_;  // {pass end / n', share}, ascending
  double at_end_ = 1;
};

// Nothing where the run is none to measure shares by.
std::optional<HeldShares> shares_of(const MeasuredRun& run, const RecipeSpec& spec,
                                    const Geometry& geometry) {
  if (run.timeline.empty() || geometry.tokens == geometry.evict_point) return std::nullopt;
  try {
    const Policy policy = make_policy(spec, geometry);
    return HeldShares(run, predict(policy, geometry, {}, false),
                      make_passes(geometry.tokens, geometry.prompt, geometry.evict_point,
                                  geometry.chunk, policy.cuts));
  } catch (const ConfigError&) {  // has no meaning there
    return std::nullopt;
  }
}

}  // namespace

Calibration::Calibration(const std::string& result_file) : file_(result_file) {
  std::ifstream in(result_file);
  if (!in) throw ConfigError(fmt::format("--calibrate: cannot read '{}'", result_file));
  try {
    nlohmann::json json = nlohmann::json::parse(in);
    if (!json.contains("results")) json = {{"results", nlohmann::json::array({json})}};
    for (const nlohmann::json& result : json["results"]) {
      Replay replay;
      replay.model = result.at("trace").at("model");
      replay.geometry = geometry_of(result);
      replay.where =
          fmt::format("{} ({})", words_of(replay.model, replay.geometry), one_line(file_));
      const nlohmann::json& accounting = result.at("accounting");
      replay.accounting = {accounting.at("kv_bytes"), accounting.at("prefill") == "layerwise",
                           accounting.at("layout")};
      for (const nlohmann::json& run : result.at("runs")) {
        const nlohmann::json& heads = run.at("per_head").at("footprint");
        const auto stored = static_cast<std::int64_t>(heads.size() * heads.at(0).size());
        replay.runs[run.at("policy")] = {figures_of(run), stored, timeline_of(run)};
      }
      replays_.push_back(std::move(replay));
    }
    (void)replays_.at(0);
  } catch (const std::exception&) {  // of the parser, or no replay at all
    throw ConfigError(
        fmt::format("--calibrate: '{}' is not a result of kvspan run (--out FILE)", result_file));
  }
}

std::string Calibration::where() const {
  return replays_.size() == 1 ? replays_[0].where
                              : fmt::format("{} replays ({})", replays_.size(), one_line(file_));
}

const MeasuredRun* Calibration::Replay::find(const PredictionRequest& request) const {
  // Some canonical texts depend on the geometry; some are decided by the trace.
  for (const Geometry& own : {geometry, request.geometry}) {
    try {
      const auto found = runs.find(make_policy(request.spec, own).spec);
      if (found != runs.end()) return &found->second;
    } catch (const ConfigError&) {  // has no meaning there
    }
  }
  return nullptr;
}

bool Calibration::Replay::is_of(const PredictionRequest& request) const {
  const Geometry& a = geometry;
  const Geometry& b = request.geometry;
  return (model.empty() || model == request.model) && a.layer_ids == b.layer_ids &&
         a.model_layers == b.model_layers && a.query_heads == b.query_heads &&
         a.kv_heads == b.kv_heads && a.k_dim == b.k_dim && a.tokens == b.tokens &&
         a.prompt == b.prompt && a.evict_point == b.evict_point && chunk_of(a) == chunk_of(b) &&
         accounting.kv_bytes == request.accounting.kv_bytes &&
         accounting.layerwise == request.accounting.layerwise &&
         accounting.layout == request.accounting.layout;
}

const Calibration::Replay* Calibration::choose(const PredictionRequest& request) const {
  const Replay* alike = nullptr;
  const Replay* any = nullptr;
  for (const Replay& replay : replays_) {
    if (replay.find(request) == nullptr) continue;
    if (replay.is_of(request)) return &replay;
    const bool chunked = chunk_of(replay.geometry) > 0;
    if (alike == nullptr && chunked == (chunk_of(request.geometry) > 0)) alike = &replay;
    if (any == nullptr) any = &replay;
  }
  return alike != nullptr ? alike : any;
}

Prediction Calibration::predict(const PredictionRequest& request, bool every_layout) const {
  const auto bound = [&](const char* why) {
    Prediction out =
        kvspan::predict(request.policy, request.geometry, request.accounting, every_layout);
    if (*why != '\0') out.notes.push_back(fmt::format("{} {}: an upper bound", file_, why));
    return out;
  };
  if (request.policy.closed_form) return bound("");
  const Replay* replay = choose(request);
  if (replay == nullptr) return bound("says nothing of this policy");
  const MeasuredRun& run = *replay->find(request);
  if (replay->is_of(request)) {
    Prediction out = run.figures;
    out.notes = request.policy.notes;
    out.notes.push_back("as measured on " + replay->where);
    return out;
  }
  const std::optional<HeldShares> shares = shares_of(run, request.spec, replay->geometry);
  if (!shares) return bound("has no shares of it (no timeline, or nothing generated)");
  const auto prompt = static_cast<double>(request.geometry.evict_point);
  const HeldShare share = [&](const Pass& pass, std::int64_t now, std::int64_t at_prompt) {
    if (pass.end < pass.evict_point)
      return shares->in_prompt(static_cast<double>(pass.end) / prompt);
    return pass.is_evict_point() ? shares->at_prompt : shares->in_decode(at_prompt, now);
  };
  Prediction out =
      kvspan::predict(request.policy, request.geometry, request.accounting, every_layout, share);
  out.notes.push_back(fmt::format(
      "calibrated on {}: {:.1f} % of its upper bound stays after the prompt, {:.1f} % of what that "
      "grows by in decode",
      replay->where, 100 * shares->at_prompt, 100 * shares->grows));
  return out;
}

}  // namespace kvspan
