// SPDX-License-Identifier: Apache-2.0
// Which cells of a sweep are looked at.
#include <QStringList>
#include <algorithm>

#include <fmt/format.h>

#include "gui/model/sweep.h"
#include "sim/base/error.h"
#include "sim/base/text.h"

namespace kvspan::gui {
namespace {

constexpr qsizetype kMostNamed = 4;  // values of a parameter

// The values that one word of --where means: as shown, or as cells.csv has them.
void add_values(const std::string& word, Sweep::Parameter parameter, const Sweep& sweep,
                std::set<std::int32_t>& wanted) {
  const Sweep::Values& values = sweep.parameters[parameter];
  const std::size_t before = wanted.size();
  for (std::size_t i = 0; i < values.words.size(); ++i) {
    if (word == values.words[i] || word == values.texts[i].toStdString())
      wanted.insert(static_cast<std::int32_t>(i));
  }
  if (wanted.size() > before) return;
  std::vector<std::string> known;
  for (const QString& text : values.texts) known.push_back(text.toStdString());
  throw ConfigError(fmt::format("--where {}: found {}; {}", sweep_parameter_names()[parameter],
                                in_quotes(word), nearest_hint(word, known)));
}

}  // namespace

bool SweepFilter::takes(const Sweep& sweep, std::size_t cell) const {
  for (std::size_t p = 0; p < wanted.size(); ++p) {
    if (wanted[p] && !wanted[p]->contains(sweep.parameters[p].of_cell[cell])) return false;
  }
  return true;
}

void filter_methods(SweepFilter& filter, const Sweep& sweep, const QString& words) {
  auto& wanted = filter.wanted[Sweep::method];
  const QStringList parts =
      QString(words).replace(',', ' ').simplified().split(' ', Qt::SkipEmptyParts);
  wanted.reset();
  if (parts.isEmpty()) return;
  wanted.emplace();
  const std::vector<QString>& methods = sweep.parameters[Sweep::method].texts;
  for (std::size_t i = 0; i < methods.size(); ++i) {
    const bool occurs = std::any_of(parts.begin(), parts.end(), [&](const QString& part) {
      return methods[i].contains(part, Qt::CaseInsensitive);
    });
    if (occurs) wanted->insert(static_cast<std::int32_t>(i));
  }
}

void apply_where(const std::string& text, const Sweep& sweep, SweepFilter& filter) {
  const std::size_t equals = text.find('=');
  if (equals == text.npos) {
    throw ConfigError(
        fmt::format("--where: found {}, expected PARAMETER=VALUE[,VALUE...] such as "
                    "chunk=512",
                    in_quotes(text)));
  }
  const std::string name = text.substr(0, equals);
  const auto& names = sweep_parameter_names();
  const auto at = std::find(names.begin(), names.end(), name);
  if (at == names.end()) {
    throw ConfigError(
        fmt::format("--where: found {}; {}", in_quotes(name), nearest_hint(name, names)));
  }
  const auto parameter = static_cast<Sweep::Parameter>(at - names.begin());
  const QString values = QString::fromStdString(text.substr(equals + 1));
  if (parameter == Sweep::method) {
    filter_methods(filter, sweep, values);
    if (filter.wanted[parameter] && filter.wanted[parameter]->empty())
      throw ConfigError(fmt::format("--where method: no method has {} in its name",
                                    in_quotes(values.toStdString())));
    return;
  }
  std::set<std::int32_t> wanted;
  for (const QString& word : values.split(','))
    add_values(word.trimmed().toStdString(), parameter, sweep, wanted);
  filter.wanted[parameter] = std::move(wanted);
}

QString scope_text(const SweepFilter& filter, const Sweep& sweep) {
  QStringList parts;
  for (int p = 0; p < Sweep::parameter_count; ++p) {
    const auto parameter = static_cast<Sweep::Parameter>(p);
    const auto& wanted = filter.wanted[parameter];
    if (!wanted) continue;
    QStringList values;
    for (const std::int32_t value : *wanted)
      values << sweep.parameters[parameter].texts[static_cast<std::size_t>(value)];
    const auto count = values.size();
    if (count > kMostNamed) {
      parts << QString("%1 of %2 %3s")
                   .arg(count)
                   .arg(sweep.parameters[parameter].texts.size())
                   .arg(title_of(parameter));
    } else {
      parts << title_of(parameter) + " " + (count == 0 ? QString("none") : values.join(" or "));
    }
  }
  const std::string& sample = sweep.folder.plan.config.sample;
  if (!sample.empty())
    parts << QString("attention estimated from a sample (%1)").arg(QString::fromStdString(sample));
  return parts.join(", ");
}

}  // namespace kvspan::gui
