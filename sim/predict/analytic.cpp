// SPDX-License-Identifier: Apache-2.0
#include "sim/predict/analytic.h"

#include <algorithm>
#include <cmath>

#include <Eigen/Core>
#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan {
namespace {

using Counts =
    Eigen::Array<std::int64_t, Eigen::Dynamic, Eigen::Dynamic>;  // [layers, heads] entries
using PerLayer = Eigen::Array<std::int64_t, Eigen::Dynamic, 1>;

std::int64_t triangle(std::int64_t x) { return x * (x + 1) / 2; }

// Entries of every head after the rules that are due at the end of `pass`; `now` holds the
// newborns. Rules that look at content bound it from above.
Counts evicted(const Policy& policy, const Geometry& geometry, const Pass& pass,
               const Counts& now) {
  Counts after = now;
  Counts newborn = Counts::Constant(now.rows(), now.cols(), pass.rows());
  for (const Rule& rule : policy.rules) {
    if (!rule.schedule.due(pass) || rule.threshold) continue;
    const Sizing sizing = rule.sizing(pass);
    for (Eigen::Index l = 0; l < after.rows(); ++l) {
      const LayerShape shape = geometry.shape(static_cast<int>(l), policy.per_query_head);
      if (shape.model_layer < policy.full_layers) continue;
      for (Eigen::Index h = 0; h < after.cols(); ++h) {
        // Entries from rule.first on: the newest, since what came before was cut at prompt end.
        const std::int64_t since = rule.first > 0 ? pass.end - rule.first : after(l, h);
        const std::int64_t domain =
            rule.domain == Domain::newborn ? newborn(l, h) : std::min(since, after(l, h));
        const Sizing own = sizing.among(domain);
        const TokenCount kept = rule.budget->kept(shape, static_cast<int>(h), own);
        if (domain <= kept) continue;
        after(l, h) -= domain - kept;
        newborn(l, h) = std::min(newborn(l, h), kept);
      }
    }
  }
  return after;
}

// Payload bytes of all layers, one entry a layer, in a layout that looks at counts only. It looks
// like ledger/layouts.cpp and is no copy: that one walks the lives of a ledger row by row, this one
// knows how many entries there are and not which. A test holds them equal on every closed form.
class CountLayout {
 public:
  CountLayout(const std::string& name, std::int64_t entry_bytes, std::int64_t replication)
      : layout_(parse_layout(name)), entry_(entry_bytes), replication_(replication) {
    if (layout_.kind == Layout::Kind::openvino) {
      throw ConfigError(fmt::format(
          "layout '{}' depends on when its blocks left: replay a trace (kvspan run), or "
          "predict 'paged{}_per_layer_compact'",
          name, layout_.block_size));
    }
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
      case Layout::Kind::openvino:
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

// Entries and what they weigh, [layers, heads], at three moments of a pass.
struct Occupancy {
  Counts entries;
  Counts units;  // entries, or bytes where a store holds entries in more than one way
};
struct PassOccupancy {
  Occupancy past, now, after;
};

void offer_pass(PeakBytes& peak, const CountLayout& layout, const Policy& policy, const Pass& pass,
                const PassOccupancy& o, bool layerwise) {
  const Charge& charge = policy.charge;
  const bool prefill = pass.end <= pass.prompt_end;
  const std::int64_t fixed = charge.at(pass.end - 1);
  const PerLayer end_bytes = layout.bytes(o.now.units, pass.end);
  if (!prefill || !layerwise) {
    offer(peak, end_bytes.sum(), o.now.entries.sum() * charge.entry + fixed, pass.end - 1, prefill);
    return;
  }
  const bool waits = policy.waits_for_layers && pass.is_evict_point();
  const PerLayer past_bytes = waits ? end_bytes : layout.bytes(o.past.units, pass.begin);
  const PerLayer after_bytes = layout.bytes(o.after.units, pass.end);
  const PerLayer past_count = (waits ? o.now : o.past).entries.rowwise().sum();
  const PerLayer now_count = o.now.entries.rowwise().sum();
  const PerLayer after_count = o.after.entries.rowwise().sum();
  for (Eigen::Index l = 0; l < o.now.entries.rows(); ++l) {
    const bool evicts = layout.frees() && after_count(l) < now_count(l);  // else nothing is copied
    const Eigen::Index rest = o.now.entries.rows() - l - 1;
    const std::int64_t kv = after_bytes.head(l).sum() + end_bytes(l) +
                            (evicts ? after_bytes(l) : 0) + past_bytes.tail(rest).sum();
    const std::int64_t held =
        after_count.head(l).sum() + now_count(l) + past_count.tail(rest).sum();
    offer(peak, kv, held * charge.entry + fixed, pass.end - 1, true);
  }
}

// What is held after the decisions at the end of a pass.
Occupancy after_pass(const Policy& policy, const Geometry& geometry, const Pass& pass,
                     const Occupancy& now, const Counts& competing_now, Counts& competing) {
  Occupancy out = now;
  competing = evicted(policy, geometry, pass, competing_now);
  if (!policy.demotes) out.entries = competing;
  if (!policy.payload) {
    out.units = out.entries;
    return out;
  }
  for (Eigen::Index l = 0; l < competing.rows(); ++l) {
    const bool exempt = geometry.layer_ids[static_cast<std::size_t>(l)] < policy.full_layers;
    for (Eigen::Index h = 0; h < competing.cols(); ++h) {
      out.units(l, h) = exempt ? out.entries(l, h) * policy.representations[0].device_bytes
                               : policy.payload(competing(l, h), pass);
    }
  }
  return out;
}

// A share of what may be held, of every head; never more than there is.
Occupancy share_of(const Occupancy& most, const Occupancy& now, double share) {
  const auto part = [share](std::int64_t x) {
    return static_cast<std::int64_t>(std::llround(share * static_cast<double>(x)));
  };
  return {most.entries.unaryExpr(part).min(now.entries), most.units.unaryExpr(part).min(now.units)};
}

std::vector<std::string> count_layouts(bool by_entries) {
  std::vector<std::string> out;
  for (const std::string& name : standard_layouts()) {
    const Layout layout = parse_layout(name);
    const bool any_units =
        layout.kind == Layout::Kind::ideal || layout.kind == Layout::Kind::query_head;
    if (!by_entries && !any_units) continue;
    if (layout.kind == Layout::Kind::openvino) continue;
    if (layout.kind != Layout::Kind::paged || layout.compact) out.push_back(name);
  }
  return out;
}

// Errors: ConfigError for a layout that counts alone do not tell of a store of several forms.
void check_layout(const Policy& policy, const std::vector<std::string>& known,
                  const std::string& layout) {
  if (!policy.payload || std::find(known.begin(), known.end(), layout) != known.end()) return;
  throw ConfigError(
      fmt::format("{} holds entries in several ways: layout '{}' is known from a replay only "
                  "(kvspan run); predict 'ideal' or 'query_head'",
                  policy.spec, layout));
}

// Overhead of the model summed over all rows, beside what entries cost.
std::int64_t fixed_byte_rows(const Charge& charge, RowIndex tokens) {
  std::int64_t fixed = tokens * charge.once;
  for (RowIndex row = 0; charge.during && row < tokens; ++row) fixed += charge.during(row);
  return fixed;
}

std::vector<std::int64_t> values_of(const PerLayer& layers) {
  return {layers.data(), layers.data() + layers.size()};
}

// The figures that follow from entry rows and from the most entries at once.
void set_shares(Prediction& out, std::int64_t heads, RowIndex tokens, std::int64_t peak_entries) {
  out.full_entry_rows = heads * triangle(tokens);
  out.footprint = static_cast<double>(out.entry_rows) / static_cast<double>(out.full_entry_rows);
  out.peak_kv = static_cast<double>(peak_entries) / static_cast<double>(heads * tokens);
}

}  // namespace

const char* text_of(Basis basis) {
  switch (basis) {
    case Basis::closed_form:
      return "closed form";
    case Basis::bound:
      return "upper bound";
    case Basis::measured:
      return "measured";
    case Basis::scaled:
      return "estimate";
  }
  return "";
}

Prediction predict(const Policy& policy, const Geometry& geometry, const Accounting& accounting,
                   bool every_layout, const HeldShare& share) {
  const LayerShape shape = geometry.shape(0, policy.per_query_head);
  const PassPlan plan = passes_of(policy, geometry);
  const bool by_entries = !policy.payload;
  const std::int64_t born = by_entries ? 1 : policy.representations[0].device_bytes;
  const std::int64_t unit = by_entries ? policy.representations[0].device_bytes : 1;
  const std::int64_t replication = geometry.query_heads / shape.heads;
  const std::vector<std::string> names = count_layouts(by_entries);
  check_layout(policy, names, accounting.layout);
  const CountLayout chosen(accounting.layout, unit, replication);
  std::map<std::string, CountLayout> others;
  for (const std::string& name : names) {
    if (every_layout && name != accounting.layout)
      others.emplace(name, CountLayout(name, unit, replication));
  }

  Prediction out;
  out.spec = policy.spec;
  out.basis = share ? Basis::scaled : policy.closed_form ? Basis::closed_form : Basis::bound;
  out.notes = policy.notes;
  for (const auto& [name, layout] : others) out.layouts[name] = {};
  PassOccupancy o;
  o.past.entries = o.past.units = Counts::Zero(geometry.layers(), shape.heads);
  Occupancy most = o.past;  // by the closed forms alone
  Counts competing = most.entries;
  std::int64_t most_at_prompt = 0;
  std::int64_t peak_entries = 0;
  std::int64_t kv_byte_rows = 0;
  for (std::size_t i = 0; i < plan.ends.size(); ++i) {
    const Pass pass = pass_at(plan, i);
    const std::int64_t rows = pass.rows();
    o.now.entries = o.past.entries + rows;
    o.now.units = o.past.units + rows * born;
    most = {most.entries + rows, most.units + rows * born};
    o.after = o.now;
    if (pass.end < plan.tokens) {
      most = after_pass(policy, geometry, pass, most, competing + rows, competing);
      const std::int64_t bound = most.entries.sum();
      if (pass.is_evict_point()) most_at_prompt = bound;
      o.after = share ? share_of(most, o.now, share(pass, bound, most_at_prompt)) : most;
    }
    out.held.push_back(o.after.entries.sum());
    out.entry_rows += o.past.entries.size() * triangle(rows) + rows * o.past.entries.sum();
    peak_entries = std::max(peak_entries, o.now.entries.sum());
    // Row i of the pass holds past + i + 1: an arithmetic series from its first row to its last.
    const std::int64_t first_row = chosen.bytes(o.past.units + born, pass.begin + 1).sum();
    kv_byte_rows += (first_row + chosen.bytes(o.now.units, pass.end).sum()) * rows / 2;
    offer_pass(out.peak_bytes, chosen, policy, pass, o, accounting.layerwise);
    for (auto& [name, layout] : others)
      offer_pass(out.layouts[name], layout, policy, pass, o, accounting.layerwise);
    o.past = o.after;
  }
  set_shares(out, o.past.entries.size(), plan.tokens, peak_entries);
  if (chosen.linear()) {
    out.byte_rows = kv_byte_rows + out.entry_rows * policy.charge.entry +
                    fixed_byte_rows(policy.charge, plan.tokens);
  }
  out.after = values_of(o.past.entries.rowwise().sum());
  out.after_bytes = values_of(o.past.units.rowwise().sum() * unit);
  return out;
}

}  // namespace kvspan
