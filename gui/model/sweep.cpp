// SPDX-License-Identifier: Apache-2.0
#include "gui/model/sweep.h"

#include <QStringList>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "gui/model/document.h"
#include "gui/model/numbers.h"
#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/report/run_names.h"
#include "sim/sweep/figures.h"

namespace kvspan::gui {
namespace {

using nlohmann::json;
using Status = sweep::CellRecord::Status;

constexpr std::array kNumbers{Sweep::budget, Sweep::chunk, Sweep::prompt, Sweep::kv_bytes,
                              Sweep::seed};

constexpr const char* kHost = "host_footprint_share";  // of most methods 0

struct FigureHead {
  const char *key, *title, *help;
  Sweep::Unit unit = Sweep::Unit::share;
  bool more_is_better = false;
};
constexpr FigureHead kFigures[] = {
    {"footprint_share", "KV footprint", "entries held, summed over rows; full = 100 %"},
    {"peak_kv_share", "peak KV", "the most entries held in any row"},
    {"peak_bytes", "peak memory", "the most bytes at one instant, KV and overhead",
     Sweep::Unit::bytes},
    {"retained_attention_mean_share", "retained attention",
     "what decode rows still reach of the full cache's, mean; a proxy, not accuracy; of a score "
     "trace at least",
     Sweep::Unit::share, true},
    {"retained_attention_p5_share", "retained p5", "5 % of the rows reach less", Sweep::Unit::share,
     true},
    {"retained_attention_upper_mean_share", "retained at most", "of a score trace",
     Sweep::Unit::share, true},
    {"output_error_mean_share", "output error", "relative, mean"},
    {"regret_share", "regret",
     "retained attention that the best eviction has more at the same occupancy"},
    {"optimum_footprint_share", "optimum's footprint",
     "the smallest at which that best eviction retains as much"},
    {kHost, "host footprint", "of what was moved to the host"}};

// "5%" before "10%" before "64".
std::tuple<std::string, double, std::string> number_order(const std::string& word) {
  double value = 0;
  const char* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, value);
  if (error != std::errc()) return {"", -1, word};
  return {std::string(stop, end) == "%" ? "" : "tokens", value, word};
}

QString people_text(Sweep::Parameter parameter, const std::string& word) {
  QString text = QString::fromStdString(one_line(word));
  const bool unset = word.empty() || word == "0";
  switch (parameter) {
    case Sweep::trace:
      return QString::fromStdString(one_line(std::filesystem::path(word).stem().string()));
    case Sweep::budget:
      return word.empty() ? QString(QChar(0x2013)) : QString(text).replace("%", " %");
    case Sweep::chunk:
      return unset ? QString("one pass") : text;
    case Sweep::prompt:
      return unset ? QString("the trace's") : text;
    case Sweep::evict_at:
      return unset ? QString("prompt's end") : text;
    default:
      return text;
  }
}

// Columns of one sweep, cell by cell.
class SweepColumns {
 public:
  explicit SweepColumns(Sweep& sweep) : sweep_(sweep) {}

  void read() {
    const auto& cells = sweep_.folder.grid.cells;
    for (const FigureHead& head : kFigures) {
      sweep_.figures.push_back({head.key, head.title, head.help, head.unit, head.more_is_better,
                                std::vector<double>(cells.size(), kNone)});
    }
    for (auto& values : sweep_.parameters) values.of_cell.resize(cells.size());
    std::vector<std::size_t> unknown;  // cells without figures
    for (std::size_t c = 0; c < cells.size(); ++c) {
      sweep_.cell_of.emplace(cells[c].id, c);
      if (!read_figures(c)) unknown.push_back(c);
      read_setting(c);
    }
    for (const std::size_t c : unknown) name_by_spec(c);
    for (const Sweep::Parameter parameter : kNumbers) sort_values(parameter);
    name_values();
    std::erase_if(sweep_.figures, [](const Sweep::Figure& figure) {
      const bool never = figure.key == kHost;
      return std::all_of(figure.of_cell.begin(), figure.of_cell.end(),
                         [&](double value) { return std::isnan(value) || (never && value == 0); });
    });
  }

 private:
  void set(Sweep::Parameter parameter, std::size_t cell, const std::string& word) {
    Sweep::Values& values = sweep_.parameters[parameter];
    const auto [at, fresh] =
        known_[parameter].try_emplace(word, static_cast<std::int32_t>(values.words.size()));
    if (fresh) values.words.push_back(word);
    values.of_cell[cell] = at->second;
  }

  bool read_figures(std::size_t c) {
    const sweep::Cell& cell = sweep_.folder.grid.cells[c];
    const auto found = sweep_.folder.records.cells.find(cell.id);
    const bool there = found != sweep_.folder.records.cells.end();
    set(Sweep::status, c, there ? sweep::name_of(found->second.status) : "left");
    if (!there || found->second.status != Status::done) return false;
    const json figures = json::parse(found->second.text);
    const json budget = figures.value("budget", json());
    const auto method = figures.value("method", std::string());
    set(Sweep::method, c, method);
    set(Sweep::budget, c, budget.is_string() ? budget.get<std::string>() : "");
    method_of_spec_.try_emplace(cell.spec, method);
    for (Sweep::Figure& figure : sweep_.figures) {
      const json value = figures.value(figure.key, json());
      if (value.is_number()) figure.of_cell[c] = value.get<double>();
    }
    return true;
  }

  void read_setting(std::size_t c) {
    const sweep::Grid& grid = sweep_.folder.grid;
    const sweep::Setting& setting = grid.settings[grid.cells[c].setting];
    const sweep::Counting& counting = grid.countings[grid.cells[c].counting];
    set(Sweep::trace, c, sweep_.folder.plan.traces[setting.trace].path);
    set(Sweep::chunk, c, std::to_string(setting.chunk));
    set(Sweep::prompt, c, std::to_string(setting.prompt));
    set(Sweep::evict_at, c, setting.evict_at);
    set(Sweep::prefill, c, counting.prefill);
    set(Sweep::layout, c, counting.layout);
    set(Sweep::kv_bytes, c, std::to_string(setting.kv_bytes));
    set(Sweep::seed, c, std::to_string(setting.seed));
  }

  // A cell that is not done is called as its specification is where that is done, else by the text.
  void name_by_spec(std::size_t c) {
    const std::size_t spec = sweep_.folder.grid.cells[c].spec;
    const std::string& text = sweep_.folder.plan.specs[spec].text;
    const auto known = method_of_spec_.find(spec);
    set(Sweep::method, c, known == method_of_spec_.end() ? method_of(text) : known->second);
    set(Sweep::budget, c, budget_of(text).value_or(""));
  }

  void sort_values(Sweep::Parameter parameter) {
    Sweep::Values& values = sweep_.parameters[parameter];
    std::vector<std::string> sorted = values.words;
    std::sort(sorted.begin(), sorted.end(), [](const std::string& a, const std::string& b) {
      return number_order(a) < number_order(b);
    });
    std::map<std::string, std::int32_t> place;
    for (std::size_t i = 0; i < sorted.size(); ++i) place[sorted[i]] = static_cast<std::int32_t>(i);
    for (std::int32_t& of_cell : values.of_cell)
      of_cell = place[values.words[static_cast<std::size_t>(of_cell)]];
    values.words = std::move(sorted);
  }

  // Traces of the same name in different folders keep their folders.
  void name_values() {
    for (int p = 0; p < Sweep::parameter_count; ++p) {
      Sweep::Values& values = sweep_.parameters[static_cast<std::size_t>(p)];
      for (const std::string& word : values.words)
        values.texts.push_back(people_text(static_cast<Sweep::Parameter>(p), word));
    }
    Sweep::Values& traces = sweep_.parameters[Sweep::trace];
    const std::set<QString> distinct(traces.texts.begin(), traces.texts.end());
    if (distinct.size() == traces.texts.size()) return;
    for (std::size_t i = 0; i < traces.words.size(); ++i)
      traces.texts[i] = QString::fromStdString(one_line(traces.words[i]));
  }

  Sweep& sweep_;
  std::array<std::map<std::string, std::int32_t>, Sweep::parameter_count> known_;
  std::map<std::size_t, std::string> method_of_spec_;
};

}  // namespace

SweepPtr open_sweep_folder(const std::filesystem::path& path) {
  auto opened = std::make_shared<Sweep>();
  opened->path = path;
  opened->folder = sweep::open_sweep(path);
  try {
    SweepColumns(*opened).read();
    opened->report = sweep::make_report(opened->folder, {});
  } catch (const json::exception& error) {
    throw ConfigError(fmt::format("{}: a journal has a cell whose figures are not a sweep's ({})",
                                  one_line(path.string()), one_line(error.what())));
  }
  return opened;
}

const std::vector<std::string>& sweep_parameter_names() {
  static const std::vector<std::string> names{"trace",    "method",   "budget",  "chunk",
                                              "prompt",   "evict_at", "prefill", "layout",
                                              "kv_bytes", "seed",     "status"};
  return names;
}

QString title_of(Sweep::Parameter parameter) {
  return QString::fromStdString(sweep_parameter_names()[parameter]).replace('_', ' ');
}

QString figure_text(Sweep::Unit unit, double value) {
  if (std::isnan(value)) return {QChar(0x2013)};
  return unit == Sweep::Unit::bytes ? bytes_text(value) : percent_text(value);
}

QString cell_text(const Sweep& sweep, std::size_t cell) {
  const sweep::Cell& known = sweep.folder.grid.cells[cell];
  QStringList parts{QString::fromStdString(one_line(sweep.folder.plan.specs[known.spec].text))};
  for (const Sweep::Parameter parameter :
       {Sweep::trace, Sweep::chunk, Sweep::prompt, Sweep::evict_at, Sweep::prefill, Sweep::layout,
        Sweep::kv_bytes, Sweep::seed}) {
    if (!sweep.varies(parameter)) continue;
    const QString& text = sweep.text(parameter, cell);
    parts << (parameter == Sweep::trace ? text : title_of(parameter) + " " + text);
  }
  const auto record = sweep.folder.records.cells.find(known.id);
  if (record == sweep.folder.records.cells.end()) return parts.join(", ") + ": not computed yet";
  if (record->second.status == Status::done) return parts.join(", ");
  return QString("%1: %2, %3")
      .arg(parts.join(", "), sweep::name_of(record->second.status),
           QString::fromStdString(one_line(record->second.text)));
}

QString figures_text(const Sweep& sweep, std::size_t cell) {
  QStringList parts;
  for (const Sweep::Figure& figure : sweep.figures) {
    if (!std::isnan(figure.of_cell[cell]))
      parts << figure.title + " " + figure_text(figure.unit, figure.of_cell[cell]);
  }
  return parts.join(", ");
}

QString notes_text(const Sweep& sweep, std::size_t cell) {
  const auto record = sweep.folder.records.cells.find(sweep.folder.grid.cells[cell].id);
  if (record == sweep.folder.records.cells.end() || record->second.status != Status::done)
    return {};
  const json figures = json::parse(record->second.text);
  QString text = QString::fromStdString(figures.value("canonical", std::string()));
  for (const json& note : figures.value("notes", json::array()))
    text += "\n- " + QString::fromStdString(note.get<std::string>());
  return text;
}

SimulationRequest request_of(const Sweep& sweep, std::size_t cell) {
  const sweep::Grid& grid = sweep.folder.grid;
  const sweep::Plan& plan = sweep.folder.plan;
  const sweep::Setting& setting = grid.settings[grid.cells[cell].setting];
  const sweep::Counting& counting = grid.countings[grid.cells[cell].counting];
  SimulationRequest out;
  const std::string& named = plan.traces[setting.trace].path;
  const std::filesystem::path found = find_trace(named, sweep.path / "sweep.json");
  out.trace = found.empty() ? named : found.string();
  out.specs = {plan.specs[grid.cells[cell].spec].text};
  out.chunk = setting.chunk;
  out.prompt = setting.prompt;
  out.evict_at = setting.evict_at;
  out.kv_bytes = setting.kv_bytes;
  out.seed = setting.seed;
  out.layerwise = counting.prefill == "layerwise";
  out.layout = counting.layout;
  EngineOptions engine;
  apply_fidelity(plan.config.fidelity, engine);
  out.fidelity = engine.fidelity;
  out.fidelity_rows = engine.fidelity_rows;
  return out;
}

}  // namespace kvspan::gui
