// SPDX-License-Identifier: Apache-2.0
#include "gui/model/peak_table.h"

#include <algorithm>
#include <unordered_map>

#include <fmt/format.h>

#include "gui/model/numbers.h"
#include "sim/base/error.h"
#include "sim/ledger/metrics.h"
#include "sim/report/lifetimes_reader.h"

namespace kvspan::gui {
namespace {

const char* key_of(PeakPhase phase) {
  switch (phase) {
    case PeakPhase::peak:
      return "total";
    case PeakPhase::prefill:
      return "prefill";
    case PeakPhase::decode:
      break;
  }
  return "decode";
}

std::optional<double> peak_figure(const Result& result, std::size_t run, const std::string& layout,
                                  const char* key) {
  return figure(result.runs[run], layout == result.layout
                                      ? fmt::format("peak_bytes.{}", key)
                                      : fmt::format("layouts.{}.{}", layout, key));
}

// Bytes of a layer's entries while `row` attends, as they are held: of the prompt, and generated.
void add_entries(const Ledger& ledger, RowIndex row, PeakParts::Part& part) {
  for (int head = 0; head < ledger.heads; ++head) {
    std::unordered_map<TokenIndex, int> held;  // where it is not as born
    if (!ledger.changes.empty()) {
      for (const Change& change : ledger.changes[0]) {
        if (change.row > row) break;
        if (change.head == head) held[change.token] = change.representation;
      }
    }
    const auto deaths = ledger.deaths(0, head);
    for (RowIndex token = 0; token <= row; ++token) {
      if (deaths[static_cast<std::size_t>(token)] <= row) continue;
      const auto at = held.find(static_cast<TokenIndex>(token));
      const int as = at == held.end() ? 0 : at->second;
      (token < ledger.plan.prompt ? part.prompt : part.generated) +=
          ledger.representations[static_cast<std::size_t>(as)].device_bytes;
    }
  }
}

}  // namespace

std::optional<std::int64_t> peak_total(const Result& result, std::size_t run,
                                       const std::string& layout, PeakPhase phase) {
  const auto bytes = peak_figure(result, run, layout, key_of(phase));
  if (!bytes || *bytes <= 0) return std::nullopt;
  return static_cast<std::int64_t>(*bytes);
}

std::vector<std::string> peak_layouts(const Result& result, std::size_t run) {
  if (!result.runs[run].replayed.empty()) {
    std::vector<std::string> names{kPredicted, kPool, kBacked, kDevice};
    std::erase_if(names, [&](const std::string& name) {
      return !peak_figure(result, run, name, "total").has_value();
    });
    return names;
  }
  std::vector<std::string> names = standard_layouts();
  if (std::find(names.begin(), names.end(), result.layout) == names.end()) {
    names.insert(names.begin(), result.layout);
  }
  if (!result.lifetimes) {
    std::erase_if(names, [&](const std::string& name) {
      return !peak_figure(result, run, name, "total").has_value();
    });
  }
  return names;
}

std::optional<std::int64_t> measured_peak(const std::vector<ShownRun>& open, const ShownRun& run,
                                          const std::string& layout, PeakPhase phase) {
  const std::string name = fmt::format("pool({}, {})", run.run().policy, layout);
  const auto predicted = peak_total(*run.result, run.index, layout, phase);
  for (const ShownRun& pool : open) {
    if (pool.run().replayed.empty() || pool.run().policy != name ||
        pool.result->trace.sha256 != run.result->trace.sha256 ||
        pool.result->chunk != run.result->chunk ||
        peak_total(*pool.result, pool.index, kPredicted, phase) != predicted)
      continue;
    return peak_total(*pool.result, pool.index, phase == PeakPhase::peak ? kBacked : kPool, phase);
  }
  return std::nullopt;
}

PeakParts peak_parts(const Result& result, std::size_t run, const std::string& layout,
                     PeakPhase phase, const std::function<bool()>& cancelled) {
  const LifetimesFile& file = *result.lifetimes;
  const int r = static_cast<int>(run);
  const std::int64_t once = file.runs()[run].charge.once;
  const std::vector<std::int64_t> state = file.state(r);
  const auto state_at = [&](RowIndex row) {
    return state.empty() ? 0 : state[static_cast<std::size_t>(row)];
  };
  const Accounting accounting{file.accounting().kv_bytes, false, layout};
  const auto each_layer = [&](const auto& use) {
    for (int layer = 0; layer < file.layers(); ++layer) {
      if (cancelled()) throw Interrupted();
      const Ledger ledger = file.ledger_of_layer(r, layer);
      use(layer, ledger, compute_metrics(ledger, accounting).timeline);
    }
  };
  PeakParts out;
  const auto row_said = peak_figure(result, run, layout, "row");
  if (phase == PeakPhase::peak && row_said) {
    out.row = std::clamp<RowIndex>(static_cast<RowIndex>(*row_said), 0, file.tokens() - 1);
  } else {
    std::vector<std::int64_t> sum(static_cast<std::size_t>(file.tokens()), 0);
    each_layer([&](int, const Ledger&, const Timeline& rows) {
      std::transform(rows.resident_bytes.begin(), rows.resident_bytes.end(), sum.begin(),
                     sum.begin(), std::plus<>());
    });
    std::int64_t most = -1;
    for (const RowIndex end : file.plan(r).ends) {
      const bool prefill = end <= file.prompt();
      if (phase == (prefill ? PeakPhase::decode : PeakPhase::prefill)) continue;
      const std::int64_t bytes = sum[static_cast<std::size_t>(end - 1)] + state_at(end - 1);
      if (bytes <= most) continue;
      most = bytes;
      out.row = end - 1;
    }
  }
  const auto at = static_cast<std::size_t>(out.row);
  each_layer([&](int layer, const Ledger& ledger, const Timeline& rows) {
    PeakParts::Part& part = out.layers.emplace_back();
    part.model_layer = file.layer_ids()[static_cast<std::size_t>(layer)];
    add_entries(ledger, out.row, part);
    part.overhead = rows.overhead_bytes[at];
    part.layout = rows.resident_bytes[at] - part.total();
    out.total += part.total();
  });
  out.state = state_at(out.row);
  out.once = once;
  out.layerwise = file.accounting().layerwise;
  out.total += out.state + out.once;
  if (const auto said = peak_total(result, run, layout, phase)) {
    if (state.empty()) {
      // Writers that did not list the policy's state counted it nevertheless.
      std::int64_t known = once;
      for (const PeakParts::Part& part : out.layers) known += part.overhead;
      const auto overhead = phase == PeakPhase::peak ? peak_figure(result, run, layout, "overhead")
                                                     : std::optional<double>();
      if (overhead)
        out.state = static_cast<std::int64_t>(*overhead) - known;
      else if (!out.layerwise)
        out.state = *said - out.total;
      out.total += out.state;
    }
    out.rest = *said - out.total;
    out.total = *said;
  }
  return out;
}

// ---- The table ----------------------------------------------------------------------------------

void PeakTable::set(const PeakParts& parts) {
  beginResetModel();
  rows_.clear();
  total_ = parts.total;
  PeakParts::Part sum;
  for (const PeakParts::Part& part : parts.layers) {
    rows_.push_back({QString("layer %1").arg(part.model_layer),
                     {part.prompt, part.generated, part.layout, part.overhead, part.total()}});
    sum.prompt += part.prompt;
    sum.generated += part.generated;
    sum.layout += part.layout;
    sum.overhead += part.overhead;
  }
  const auto whole = [&](const QString& name, std::int64_t bytes) {
    if (bytes == 0) return;
    rows_.push_back({name, {{}, {}, {}, bytes, bytes}});
    sum.overhead += bytes;
  };
  whole("policy state", parts.state);
  whole("once, for the model", parts.once);
  if (parts.rest != 0) {
    rows_.push_back(
        {parts.layerwise ? "copies while a layer compresses" : "not in the lifetimes file",
         {{}, {}, parts.rest, {}, parts.rest}});
    sum.layout += parts.rest;
  }
  rows_.push_back({"total", {sum.prompt, sum.generated, sum.layout, sum.overhead, parts.total}});
  endResetModel();
}

void PeakTable::set_total(std::optional<std::int64_t> total) {
  beginResetModel();
  rows_.clear();
  total_ = total.value_or(0);
  if (total) rows_.push_back({"total", {{}, {}, {}, {}, *total}});
  endResetModel();
}

int PeakTable::rowCount(const QModelIndex& parent) const {
  return parent.isValid() ? 0 : static_cast<int>(rows_.size());
}

int PeakTable::columnCount(const QModelIndex& parent) const {
  return parent.isValid() ? 0 : kColumns;
}

QVariant PeakTable::data(const QModelIndex& index, int role) const {
  if (!index.isValid()) return {};
  const Row& row = rows_[static_cast<std::size_t>(index.row())];
  if (role == Qt::TextAlignmentRole) {
    return QVariant((index.column() == kPart ? Qt::AlignLeft : Qt::AlignRight) | Qt::AlignVCenter);
  }
  if (role != Qt::DisplayRole && role != Qt::EditRole) return {};
  if (index.column() == kPart) return row.part;
  if (index.column() == kShare) {
    if (total_ == 0) return {};
    const double share = static_cast<double>(*row.bytes.back()) / static_cast<double>(total_);
    return role == Qt::EditRole ? QVariant(share) : QVariant(percent_text(share));
  }
  const auto bytes = row.bytes[static_cast<std::size_t>(index.column() - kPrompt)];
  if (!bytes) return {};
  if (role == Qt::EditRole) return QVariant(static_cast<qlonglong>(*bytes));
  if (*bytes == 0) return QString(QChar(0x2013));
  return bytes_text(static_cast<double>(*bytes));
}

QVariant PeakTable::headerData(int section, Qt::Orientation orientation, int role) const {
  if (orientation != Qt::Horizontal) return {};
  if (role == Qt::TextAlignmentRole) {
    return QVariant((section == kPart ? Qt::AlignLeft : Qt::AlignRight) | Qt::AlignVCenter);
  }
  static const QStringList names{"part",     "KV, prompt", "KV, generated", "layout",
                                 "overhead", "total",      "share"};
  static const QStringList help{"",
                                "entries of the prompt's tokens",
                                "entries of generated tokens",
                                "what the storage layout adds: padding, blocks, copies",
                                "what the policy keeps beside its entries",
                                "",
                                "of the peak"};
  if (role == Qt::DisplayRole) return names.value(section);
  if (role == Qt::ToolTipRole) return help.value(section);
  return {};
}

}  // namespace kvspan::gui
