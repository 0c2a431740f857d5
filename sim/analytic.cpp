// SPDX-License-Identifier: Apache-2.0
#include "sim/analytic.h"

#include <algorithm>
#include <cmath>

#include <Eigen/Core>
#include <fmt/format.h>

#include "sim/error.h"

namespace kvspan {
namespace {

using Counts =
    Eigen::Array<std::int64_t, Eigen::Dynamic, Eigen::Dynamic>;  // [layers, heads] entries
using PerLayer = Eigen::Array<std::int64_t, Eigen::Dynamic, 1>;

std::int64_t triangle(std::int64_t x) { return x * (x + 1) / 2; }

// Entries of every head after the rules that are due at the end of `pass`; `now` holds the newborns.
Counts evicted(const Policy& policy, const Geometry& geometry, const Pass& pass,
               const Counts& now) {
  Counts after = now;
  Counts newborn = Counts::Constant(now.rows(), now.cols(), pass.rows());
  for (const Rule& rule : policy.rules) {
    if (!rule.schedule.due(pass)) continue;
    const Sizing sizing = rule.sizing(pass);
    for (Eigen::Index l = 0; l < after.rows(); ++l) {
      const LayerShape shape = geometry.shape(static_cast<int>(l), policy.per_query_head);
      for (Eigen::Index h = 0; h < after.cols(); ++h) {
        const std::int64_t domain = rule.domain == Domain::newborn ? newborn(l, h) : after(l, h);
        Sizing own = sizing;
        if (own.rows == kCompeting) own.rows = domain;
        const TokenCount kept = rule.budget->kept(shape, static_cast<int>(h), own);
        if (domain <= kept) continue;
        after(l, h) -= domain - kept;
        newborn(l, h) = std::min(newborn(l, h), kept);
      }
    }
  }
  return after;
}

// Payload bytes of all layers, one entry a layer, in a layout that looks at counts only.
class CountLayout {
 public:
  CountLayout(const std::string& name, std::int64_t entry_bytes, std::int64_t replication)
      : layout_(parse_layout(name)), entry_(entry_bytes), replication_(replication) {
    if (layout_.kind == Layout::Kind::paged && !layout_.compact) {
      throw ConfigError(
          fmt::format("layout '{}' depends on which entries leave: replay a trace (kvspan run), or "
                      "predict '{}_compact'",
                      name, name));
    }
  }
  // born: rows so far, for the layout that frees nothing.
  [[nodiscard]] PerLayer bytes(const Counts& counts, std::int64_t born) const {
    const auto heads = counts.cols();
    switch (layout_.kind) {
      case Layout::Kind::ideal:
        return counts.rowwise().sum() * entry_;
      case Layout::Kind::query_head:
        return counts.rowwise().sum() * (entry_ * replication_);
      case Layout::Kind::padded:
        return counts.rowwise().maxCoeff() * (heads * entry_);
      case Layout::Kind::masked:
        return PerLayer::Constant(counts.rows(), born * heads * entry_);
      case Layout::Kind::paged:
        break;
    }
    const Counts blocks = (counts + (layout_.block_size - 1)) / layout_.block_size;
    if (layout_.per_layer)
      return blocks.rowwise().maxCoeff() * (heads * layout_.block_size * entry_);
    return blocks.rowwise().sum() * (layout_.block_size * entry_);
  }
  // Sum over the rows of a pass of bytes(), for layouts that grow by the same amount every row.
  [[nodiscard]] bool linear() const { return layout_.kind != Layout::Kind::paged; }
  [[nodiscard]] bool frees() const { return layout_.kind != Layout::Kind::masked; }

 private:
  Layout layout_;
  std::int64_t entry_;
  std::int64_t replication_;
};

// Feeds one instant into a peak.
void offer(PeakBytes& peak, std::int64_t kv, std::int64_t overhead, RowIndex row, bool prefill) {
  const std::int64_t total = kv + overhead;
  std::int64_t& phase = prefill ? peak.prefill : peak.decode;
  phase = std::max(phase, total);
  if (total > peak.total) peak = {total, kv, overhead, peak.prefill, peak.decode, row};
}

void offer_pass(PeakBytes& peak, const CountLayout& layout, const Policy& policy, const Pass& pass,
                const Counts& past, const Counts& now, const Counts& after, bool layerwise) {
  const bool prefill = pass.end <= pass.prompt_end;
  const std::int64_t entry = policy.charge.entry;
  const PerLayer end_bytes = layout.bytes(now, pass.end);
  if (!prefill || !layerwise) {
    offer(peak, end_bytes.sum(), now.sum() * entry + policy.charge.once, pass.end - 1, prefill);
    return;
  }
  const PerLayer past_bytes = layout.bytes(past, pass.begin);
  const PerLayer after_bytes = layout.bytes(after, pass.end);
  const PerLayer past_count = past.rowwise().sum();
  const PerLayer now_count = now.rowwise().sum();
  const PerLayer after_count = after.rowwise().sum();
  for (Eigen::Index l = 0; l < now.rows(); ++l) {
    const bool evicts = layout.frees() && after_count(l) < now_count(l);  // else nothing is copied
    const Eigen::Index rest = now.rows() - l - 1;
    const std::int64_t kv = after_bytes.head(l).sum() + end_bytes(l) +
                            (evicts ? after_bytes(l) : 0) + past_bytes.tail(rest).sum();
    const std::int64_t held =
        after_count.head(l).sum() + now_count(l) + past_count.tail(rest).sum();
    offer(peak, kv, held * entry + policy.charge.once, pass.end - 1, true);
  }
}

std::vector<std::string> count_layouts() {
  std::vector<std::string> out;
  for (const std::string& name : standard_layouts()) {
    const Layout layout = parse_layout(name);
    if (layout.kind != Layout::Kind::paged || layout.compact) out.push_back(name);
  }
  return out;
}

}  // namespace

Prediction predict(const Policy& policy, const Geometry& geometry, const Accounting& accounting,
                   bool every_layout) {
  if (!policy.closed_form) {
    throw ConfigError(
        fmt::format("{} has no closed form: its number of entries depends on the trace; replay one "
                    "with kvspan run",
                    policy.spec));
  }
  const LayerShape shape = geometry.shape(0, policy.per_query_head);
  const PassPlan plan =
      make_passes(geometry.tokens, geometry.prompt, geometry.evict_at, geometry.chunk, policy.cuts);
  const std::int64_t replication = geometry.query_heads / shape.heads;
  const CountLayout chosen(accounting.layout, geometry.entry_bytes(), replication);
  std::map<std::string, CountLayout> others;
  for (const std::string& name : count_layouts()) {
    if (every_layout && name != accounting.layout)
      others.emplace(name, CountLayout(name, geometry.entry_bytes(), replication));
  }

  Prediction out;
  out.spec = policy.spec;
  out.notes = policy.notes;
  for (const auto& [name, layout] : others) out.layouts[name] = {};
  Counts past = Counts::Zero(geometry.layers(), shape.heads);
  std::int64_t peak_entries = 0;
  std::int64_t kv_byte_rows = 0;
  for (std::size_t i = 0; i < plan.ends.size(); ++i) {
    const Pass pass = pass_at(plan, i);
    const std::int64_t rows = pass.rows();
    const Counts now = past + rows;
    const Counts after = pass.end == plan.tokens ? now : evicted(policy, geometry, pass, now);
    out.entry_rows += past.size() * triangle(rows) + rows * past.sum();
    peak_entries = std::max(peak_entries, now.sum());
    // Row i of the pass holds past + i + 1: an arithmetic series from its first row to its last.
    const std::int64_t first_row = chosen.bytes(past + 1, pass.begin + 1).sum();
    kv_byte_rows += (first_row + chosen.bytes(now, pass.end).sum()) * rows / 2;
    offer_pass(out.peak_bytes, chosen, policy, pass, past, now, after, accounting.layerwise);
    for (auto& [name, layout] : others) {
      offer_pass(out.layouts[name], layout, policy, pass, past, now, after, accounting.layerwise);
    }
    past = after;
  }
  const std::int64_t heads = past.size();
  out.full_entry_rows = heads * triangle(plan.tokens);
  out.footprint = static_cast<double>(out.entry_rows) / static_cast<double>(out.full_entry_rows);
  out.peak_kv = static_cast<double>(peak_entries) / static_cast<double>(heads * plan.tokens);
  if (chosen.linear()) {
    out.byte_rows =
        kv_byte_rows + out.entry_rows * policy.charge.entry + plan.tokens * policy.charge.once;
  }
  const PerLayer per_layer = past.rowwise().sum();
  out.after.assign(per_layer.data(), per_layer.data() + per_layer.size());
  return out;
}

HeadArea streaming_head(std::int64_t n, std::int64_t m, std::int64_t chunk, std::int64_t sinks,
                        std::int64_t window) {
  HeadArea out;
  const auto held = [&](std::int64_t a) {
    const std::int64_t local = std::min(a, window);
    return local + std::min(a - local, sinks);
  };
  for (std::int64_t a = 0; a < n; a += chunk) {
    const std::int64_t c = std::min(chunk, n - a);
    out.entry_rows += triangle(c) + c * held(a);
    out.peak_points.push_back(c + held(a));
  }
  for (std::int64_t a = n; a < n + m; ++a) out.entry_rows += 1 + held(a);
  if (m > 0) out.peak_points.push_back(1 + held(n + m - 1));
  return out;
}

HeadArea evicting_head(std::int64_t n, std::int64_t m, std::int64_t chunk, double s,
                       std::int64_t w) {
  HeadArea out;
  std::int64_t past = 0;
  for (std::int64_t a = 0; a < n; a += chunk) {
    const std::int64_t c = std::min(chunk, n - a);
    out.entry_rows += triangle(c) + past * c;
    out.peak_points.push_back(past + c);
    past += std::min<std::int64_t>(std::llrint((1.0 - s) * static_cast<double>(c)) + w, c);
  }
  if (m > 0) {
    out.entry_rows += triangle(m) + past * m;
    out.peak_points.push_back(past + m);
  }
  return out;
}

FootprintAndPeak mixed(const HeadArea& streaming, const HeadArea& evicting, double h,
                       std::int64_t n, std::int64_t m) {
  FootprintAndPeak out;
  const auto full = static_cast<double>(triangle(n + m));
  out.footprint = h * (static_cast<double>(streaming.entry_rows) / full) +
                  (1.0 - h) * (static_cast<double>(evicting.entry_rows) / full);
  for (std::size_t j = 0; j < streaming.peak_points.size(); ++j) {
    const double point = h * static_cast<double>(streaming.peak_points[j]) +
                         (1.0 - h) * static_cast<double>(evicting.peak_points[j]);
    out.peak = std::max(out.peak, point);
  }
  out.peak /= static_cast<double>(n + m);
  return out;
}

}  // namespace kvspan
