// SPDX-License-Identifier: Apache-2.0
#include "gui/model/tradeoff.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "gui/model/columns.h"
#include "gui/model/numbers.h"
#include "sim/report/listing.h"
#include "sim/report/run_names.h"

namespace kvspan::gui {
namespace {

// Colours and marks: see Family. Names say the chunk size where a trace has several.
void tell_apart(Tradeoff& out) {
  std::map<std::string, int> policies;
  std::map<std::pair<std::size_t, RowIndex>, int> places;
  std::map<std::size_t, std::set<RowIndex>> chunks;
  for (const Tradeoff::Family& family : out.families) {
    policies.try_emplace(family.method, static_cast<int>(policies.size()));
    places.try_emplace({family.group, family.chunk}, static_cast<int>(places.size()));
    chunks[family.group].insert(family.chunk);
  }
  out.marks = places.size();
  const bool by_policy = out.families.size() < out.points.size() || places.size() > 1;
  for (Tradeoff::Family& family : out.families) {
    if (by_policy) family.colour = policies.at(family.method);
    family.mark = places.size() > 1 ? places.at({family.group, family.chunk}) : family.colour / 8;
    if (chunks.at(family.group).size() > 1) family.name += fmt::format(", chunk {}", family.chunk);
  }
}

// The phase that is judged; empty where nothing was measured.
std::string judged_phase(const Run& run) {
  for (const char* phase : {"decode", "all"}) {
    if (figure(run, fmt::format("fidelity.{}.retained_mass.mean", phase))) return phase;
  }
  return "";
}

// Empty where the file has none, or none that two lists of as many numbers are.
std::vector<std::pair<double, double>> frontier_of(const Result& result) {
  std::vector<std::pair<double, double>> curve;
  if (result.json == nullptr || !result.json->is_object()) return curve;
  const auto frontier = result.json->find("frontier");
  if (frontier == result.json->end() || !frontier->is_object()) return curve;
  const nlohmann::json footprints = frontier->value("footprint", nlohmann::json());
  const nlohmann::json retained = frontier->value("retained_mass", nlohmann::json());
  if (!footprints.is_array() || footprints.size() != retained.size()) return curve;
  for (std::size_t i = 0; i < footprints.size(); ++i) {
    if (!footprints[i].is_number() || !retained[i].is_number()) return {};
    curve.emplace_back(footprints[i].get<double>(), retained[i].get<double>());
  }
  return curve;
}

// Of every result that has a visible run, once.
std::vector<std::vector<std::pair<double, double>>> frontiers_of(
    const std::vector<ShownRun>& runs) {
  std::set<const Result*> seen;
  std::vector<std::vector<std::pair<double, double>>> out;
  for (const ShownRun& shown : runs) {
    if (!shown.visible || !seen.insert(shown.result.get()).second) continue;
    auto curve = frontier_of(*shown.result);
    if (curve.size() > 1) out.push_back(std::move(curve));
  }
  return out;
}

void find_regret(const std::vector<Tradeoff::Point>& points, Tradeoff::Family& family) {
  for (const std::size_t p : family.points) {
    const std::optional<double> regret = points[p].regret;
    if (!regret) continue;
    if (!family.regret) family.regret = std::pair(*regret, *regret);
    family.regret->first = std::min(family.regret->first, *regret);
    family.regret->second = std::max(family.regret->second, *regret);
  }
}

// Families in the order of their critical footprints.
void sort_families(Tradeoff& out) {
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

namespace {

void add_points(const std::vector<ShownRun>& runs, FidelityFigure figure_wanted, Tradeoff& out) {
  std::map<std::pair<std::string, RowIndex>, std::size_t> groups;
  std::map<std::tuple<std::size_t, RowIndex, std::string>, std::size_t> known;
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
    const std::string amount = chunked_amount(shown.run().policy);  // "20% of each chunk"
    const std::string method =
        method_of(shown.run().label) + amount.substr(std::min(amount.find(' '), amount.size()));
    const auto [at, fresh] =
        known.try_emplace({group->second, shown.result->chunk, method}, out.families.size());
    if (fresh) {
      Tradeoff::Family& family = out.families.emplace_back();
      family.name = family.method = method;
      family.bound = shown.run().bound;
      family.colour = shown.colour;
      family.group = group->second;
      family.chunk = shown.result->chunk;
    }
    out.families[at->second].points.push_back(out.points.size());
    Tradeoff::Point& point = out.points.emplace_back();
    point.run = r;
    point.footprint = *footprint;
    point.fidelity = *fidelity;
    point.most = fidelity_upper_of(shown.run(), figure_wanted).value_or(*fidelity);
    point.family = at->second;
    point.bound = shown.run().bound;
    if (figure_wanted != FidelityFigure::mass_mean) continue;
    point.regret = figure(shown.run(), "optimum.regret");
    point.optimum = figure(shown.run(), "optimum.footprint");
  }
}

// Least footprint first; of equal ones the most fidelity.
struct Before {
  const std::vector<Tradeoff::Point>& points;
  bool operator()(std::size_t a, std::size_t b) const {
    const Tradeoff::Point& x = points[a];
    const Tradeoff::Point& y = points[b];
    return std::tuple(x.footprint, -x.fidelity, a) < std::tuple(y.footprint, -y.fidelity, b);
  }
};

void find_criticals(double threshold, Tradeoff& out) {
  for (Tradeoff::Family& family : out.families) {
    std::sort(family.points.begin(), family.points.end(), Before{out.points});
    find_regret(out.points, family);
    for (const std::size_t p : family.points) {
      Tradeoff::Point& point = out.points[p];
      if (!family.least && point.most >= threshold) family.least = point.footprint;
      if (point.fidelity < threshold) continue;
      family.critical = p;
      point.critical = true;
      break;
    }
  }
}

void find_fronts(Tradeoff& out) {
  for (std::size_t p = 0; p < out.points.size(); ++p) {
    const Tradeoff::Point& point = out.points[p];
    if (!point.bound) out.groups[out.families[point.family].group].front.push_back(p);
  }
  for (Tradeoff::Group& group : out.groups) {
    std::sort(group.front.begin(), group.front.end(), Before{out.points});
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
}

}  // namespace

Tradeoff make_tradeoff(const std::vector<ShownRun>& runs, FidelityFigure figure_wanted,
                       double threshold) {
  Tradeoff out;
  if (figure_wanted == FidelityFigure::mass_mean) out.frontiers = frontiers_of(runs);
  add_points(runs, figure_wanted, out);
  tell_apart(out);
  find_criticals(threshold, out);
  find_fronts(out);
  sort_families(out);
  return out;
}

bool Tradeoff::has_regrets() const {
  return std::any_of(families.begin(), families.end(),
                     [](const Family& family) { return family.regret; });
}

// ---- The table ----------------------------------------------------------------------------------

void CriticalTable::set(const Tradeoff& tradeoff, const std::vector<ShownRun>& runs) {
  beginResetModel();
  rows_.clear();
  regrets_ = tradeoff.has_regrets();
  const std::vector<QString> names = run_names(runs);
  for (const Tradeoff::Family& family : tradeoff.families) {
    Row row;
    row.family = QString::fromStdString(family.name) + (family.bound ? " (bound)" : "");
    if (tradeoff.groups.size() > 1) {
      row.family += ": " + QString::fromStdString(tradeoff.groups[family.group].name);
    }
    row.colour = family.colour;
    row.least = family.least;
    row.mark = family.mark;
    row.regret = family.regret;
    if (family.points.size() == 1) row.optimum = tradeoff.points[family.points.front()].optimum;
    if (family.critical) {
      const Tradeoff::Point& point = tradeoff.points[*family.critical];
      const ShownRun& shown = runs[point.run];
      row.footprint = point.footprint;
      row.fidelity = point.fidelity;
      row.most = point.most;
      row.optimum = point.optimum;
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

int CriticalTable::columnCount(const QModelIndex& parent) const {
  if (parent.isValid()) return 0;
  return regrets_ ? 6 : 4;
}

CriticalTable::Column CriticalTable::column(int section) const {
  const bool last = !regrets_ && section == 3;
  return last ? Column::with : static_cast<Column>(section);
}

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
    case kMarkRole:
      return row.mark;
    case Qt::TextAlignmentRole: {
      const Column of = column(index.column());
      return QVariant(of == Column::policy || of == Column::with
                          ? Qt::AlignLeft | Qt::AlignVCenter
                          : Qt::AlignRight | Qt::AlignVCenter);
    }
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
  switch (column(index.column())) {
    case Column::policy:
      return row.family;
    case Column::footprint:
      return number(row.footprint, row.least, row.footprint);
    case Column::reached:
      return number(row.fidelity, row.fidelity, row.most);
    case Column::regret:
      if (!row.regret) return exact ? QVariant() : QVariant(percent_text(std::nullopt));
      return number(row.regret->second, row.regret->first, row.regret->second);
    case Column::optimum:
      return number(row.optimum, row.optimum, row.optimum);
    default:
      return exact || row.run >= 0 ? row.spec : QString(QChar(0x2013));
  }
}

QVariant CriticalTable::headerData(int section, Qt::Orientation orientation, int role) const {
  if (orientation != Qt::Horizontal) return {};
  static const QStringList names{"policy", "footprint", "reached", "regret", "optimum's", "with"};
  static const QStringList help{
      "policies that differ only in numbers",
      "critical KV footprint: the smallest that reaches the threshold",
      "fidelity there",
      ("retained attention that the best eviction, knowing the future, has more at the same "
       "occupancy; the least and the most of the policy's runs"),
      "the smallest footprint at which that best eviction retains as much",
      "the run"};
  const auto of = static_cast<int>(column(section));
  if (role == Qt::DisplayRole) return names.value(of);
  if (role == Qt::ToolTipRole) return help.value(of);
  return {};
}

}  // namespace kvspan::gui
