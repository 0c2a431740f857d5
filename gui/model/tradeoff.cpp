// SPDX-License-Identifier: Apache-2.0
#include "gui/model/tradeoff.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "gui/model/columns.h"
#include "gui/model/numbers.h"
#include "sim/base/error.h"
#include "sim/policy/spec.h"
#include "sim/report/listing.h"

namespace kvspan::gui {
namespace {

bool is_number(const std::string& value) {
  return !value.empty() && value.find_first_of("0123456789") != std::string::npos &&
         value.find_first_not_of("0123456789.%eE+-KMGiB ") == std::string::npos;
}

void drop_numbers(RecipeSpec& spec) {
  for (Term& term : spec) {
    drop_numbers(term.inner);
    std::erase_if(term.arguments, [](const Argument& argument) {
      return std::all_of(argument.values.begin(), argument.values.end(), is_number);
    });
  }
}

// The phase that is judged; empty where nothing was measured.
std::string judged_phase(const Run& run) {
  for (const char* phase : {"decode", "all"}) {
    if (figure(run, fmt::format("fidelity.{}.retained_mass.mean", phase))) return phase;
  }
  return "";
}

}  // namespace

std::optional<double> fidelity_of(const Run& run, FidelityFigure figure_wanted) {
  const std::string phase = judged_phase(run);
  const auto of = [&](const char* name) {
    return figure(run, fmt::format("fidelity.{}.{}", phase, name));
  };
  switch (figure_wanted) {
    case FidelityFigure::mass_mean:
      return of("retained_mass.mean");
    case FidelityFigure::mass_p5:
      return of("retained_mass.p5");
    case FidelityFigure::output:
      break;
  }
  const auto error = of("output_error.mean");
  return error ? std::optional(1 - *error) : std::nullopt;
}

std::optional<double> fidelity_upper_of(const Run& run, FidelityFigure figure_wanted) {
  if (figure_wanted == FidelityFigure::output) return std::nullopt;
  return figure(run, fmt::format("fidelity.{}.retained_mass.upper.{}", judged_phase(run),
                                 figure_wanted == FidelityFigure::mass_mean ? "mean" : "p5"));
}

std::string family_key(std::string_view policy) {
  std::string key(policy);
  std::erase_if(key, [](char c) { return (c >= '0' && c <= '9') || c == '.' || c == '%'; });
  return key;
}

std::string family_name(const std::string& label) {
  try {
    RecipeSpec spec = parse_spec(label);
    drop_numbers(spec);
    return to_text(spec);
  } catch (const Error&) {
    return label;  // of a file that names its runs otherwise
  }
}

Tradeoff make_tradeoff(const std::vector<ShownRun>& runs, FidelityFigure figure_wanted,
                       double threshold) {
  Tradeoff out;
  std::map<std::pair<std::string, RowIndex>, std::size_t> groups;
  std::map<std::pair<std::size_t, std::string>, std::size_t> known;
  for (std::size_t r = 0; r < runs.size(); ++r) {
    const ShownRun& shown = runs[r];
    if (!shown.visible) continue;
    const auto footprint = figure(shown.run(), "footprint");
    const auto fidelity = fidelity_of(shown.run(), figure_wanted);
    if (!footprint || !fidelity) {
      ++out.unmeasured;
      continue;
    }
    const TraceInfo& trace = shown.result->trace;
    const auto [group, first] = groups.try_emplace({trace.sha256, trace.prompt}, out.groups.size());
    if (first) {
      out.groups.push_back(
          {fmt::format("{}, prompt {}", std::filesystem::path(trace.path).stem().string(),
                       trace.prompt),
           {}});
    }
    const auto [at, fresh] =
        known.try_emplace({group->second, family_key(shown.run().policy)}, out.families.size());
    if (fresh) {
      const std::string amount = chunked_amount(shown.run().policy);  // "20% of each chunk"
      const std::string kind = amount.substr(std::min(amount.find(' '), amount.size()));
      out.families.push_back({family_name(shown.run().label) + kind,
                              {},
                              {},
                              {},
                              shown.run().bound,
                              shown.colour,
                              group->second});
    }
    out.families[at->second].points.push_back(out.points.size());
    const double most = fidelity_upper_of(shown.run(), figure_wanted).value_or(*fidelity);
    out.points.push_back({r, *footprint, *fidelity, most, at->second, shown.run().bound});
  }
  if (out.families.size() < out.points.size()) {
    for (std::size_t f = 0; f < out.families.size(); ++f) {
      out.families[f].colour = static_cast<int>(f);
    }
  }
  // Least footprint first; of equal ones the most fidelity.
  const auto before = [&](std::size_t a, std::size_t b) {
    const Tradeoff::Point& x = out.points[a];
    const Tradeoff::Point& y = out.points[b];
    return std::tuple(x.footprint, -x.fidelity, a) < std::tuple(y.footprint, -y.fidelity, b);
  };
  for (Tradeoff::Family& family : out.families) {
    std::sort(family.points.begin(), family.points.end(), before);
    for (const std::size_t p : family.points) {
      Tradeoff::Point& point = out.points[p];
      if (!family.least && point.most >= threshold) family.least = point.footprint;
      if (point.fidelity < threshold) continue;
      family.critical = p;
      point.critical = true;
      break;
    }
  }
  for (std::size_t p = 0; p < out.points.size(); ++p) {
    const Tradeoff::Point& point = out.points[p];
    if (!point.bound) out.groups[out.families[point.family].group].front.push_back(p);
  }
  for (Tradeoff::Group& group : out.groups) {
    std::sort(group.front.begin(), group.front.end(), before);
    double best = 0;
    double best_footprint = 0;
    bool any = false;
    std::erase_if(group.front, [&](std::size_t p) {
      const Tradeoff::Point& point = out.points[p];
      // An equal point is not beaten, nor one that a score trace leaves open.
      const bool beaten =
          any && (point.most < best || (point.most == best && point.footprint > best_footprint));
      if (beaten) return true;
      if (!any || point.fidelity > best) {
        best = point.fidelity;
        best_footprint = point.footprint;
      }
      any = true;
      return false;
    });
    for (const std::size_t p : group.front) out.points[p].front = true;
  }
  // Families in the order of their critical footprints.
  std::vector<std::size_t> order(out.families.size());
  for (std::size_t f = 0; f < order.size(); ++f) order[f] = f;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const auto rank = [&](std::size_t f) {
      const auto& critical = out.families[f].critical;
      return std::tuple(out.families[f].group, !critical,
                        critical ? out.points[*critical].footprint : 0);
    };
    return rank(a) < rank(b);
  });
  std::vector<Tradeoff::Family> sorted;
  for (std::size_t i = 0; i < order.size(); ++i) {
    sorted.push_back(std::move(out.families[order[i]]));
    for (const std::size_t p : sorted.back().points) out.points[p].family = i;
  }
  out.families = std::move(sorted);
  return out;
}

// ---- The table ----------------------------------------------------------------------------------

void CriticalTable::set(const Tradeoff& tradeoff, const std::vector<ShownRun>& runs) {
  beginResetModel();
  rows_.clear();
  const std::vector<QString> names = run_names(runs);
  for (const Tradeoff::Family& family : tradeoff.families) {
    Row row;
    row.family = QString::fromStdString(family.name) + (family.bound ? " (bound)" : "");
    if (tradeoff.groups.size() > 1) {
      row.family += ": " + QString::fromStdString(tradeoff.groups[family.group].name);
    }
    row.colour = family.colour;
    row.least = family.least;
    if (family.critical) {
      const Tradeoff::Point& point = tradeoff.points[*family.critical];
      const ShownRun& shown = runs[point.run];
      row.footprint = point.footprint;
      row.fidelity = point.fidelity;
      row.most = point.most;
      row.run = static_cast<int>(point.run);
      row.spec = names[point.run];
      if (shown.result->chunk > 0 && row.spec == QString::fromStdString(label_of(shown.run()))) {
        row.spec += QString(", chunk %1").arg(shown.result->chunk);
      }
    }
    rows_.push_back(std::move(row));
  }
  endResetModel();
}

int CriticalTable::rowCount(const QModelIndex& parent) const {
  return parent.isValid() ? 0 : static_cast<int>(rows_.size());
}

int CriticalTable::columnCount(const QModelIndex& parent) const { return parent.isValid() ? 0 : 4; }

QVariant CriticalTable::data(const QModelIndex& index, int role) const {
  if (!index.isValid()) return {};
  const Row& row = rows_[static_cast<std::size_t>(index.row())];
  const bool exact = role == Qt::EditRole;
  // `from` to `to`, where a score trace leaves it open.
  const auto number = [&](std::optional<double> share, std::optional<double> from,
                          std::optional<double> to) {
    if (exact) return share ? QVariant(*share) : QVariant();
    const QString low = percent_text(from);
    const QString high = percent_text(to);
    if (!from || low == high) return QVariant(percent_text(share));
    return QVariant(to ? QString("%1 to %2").arg(low.chopped(2), high) : "at least " + low);
  };
  switch (role) {
    case kRunRole:
      return row.run;
    case kColourRole:
      return row.colour;
    case Qt::TextAlignmentRole:
      return QVariant(index.column() == 1 || index.column() == 2
                          ? Qt::AlignRight | Qt::AlignVCenter
                          : Qt::AlignLeft | Qt::AlignVCenter);
    case Qt::ToolTipRole:
      return tip_text(row.run >= 0 ? row.spec
                                   : QString(row.least ? "no run of %1 surely reaches the threshold"
                                                       : "no run of %1 reaches the threshold")
                                         .arg(row.family));
    case Qt::DisplayRole:
    case Qt::EditRole:
      break;
    default:
      return {};
  }
  switch (index.column()) {
    case 0:
      return row.family;
    case 1:
      return number(row.footprint, row.least, row.footprint);
    case 2:
      return number(row.fidelity, row.fidelity, row.most);
    default:
      return exact || row.run >= 0 ? row.spec : QString(QChar(0x2013));
  }
}

QVariant CriticalTable::headerData(int section, Qt::Orientation orientation, int role) const {
  if (orientation != Qt::Horizontal) return {};
  static const QStringList names{"policy", "footprint", "reached", "with"};
  static const QStringList help{"policies that differ only in numbers",
                                "critical KV footprint: the smallest that reaches the threshold",
                                "fidelity there", "the run"};
  if (role == Qt::DisplayRole) return names.value(section);
  if (role == Qt::ToolTipRole) return help.value(section);
  return {};
}

}  // namespace kvspan::gui
