// SPDX-License-Identifier: Apache-2.0
// What views show of an evaluation.
#include <QStringList>
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "gui/model/csv.h"
#include "gui/model/evaluation.h"
#include "gui/model/numbers.h"
#include "sim/sweep/report_forms.h"

namespace kvspan::gui {
namespace {

using Kind = sweep::Critical::Kind;

constexpr std::size_t kNamed = 10;  // lines in colour, beside the full cache
constexpr int kGrey = 7;            // slot of the other ones

QString text_or_dash(const std::string& text) {
  return text.empty() ? QString(QChar(0x2013)) : QString::fromStdString(text);
}

// "36.1 to 44.0 %"; an end that no draw had is "?".
QString interval_text(const Evaluation::Critical& critical) {
  if (!critical.low && !critical.high) return {QChar(0x2013)};
  const auto end = [](const std::optional<double>& x) {
    return x ? percent_text(x).chopped(2) : QString("?");
  };
  return QString("%1 to %2 %").arg(end(critical.low), end(critical.high));
}

// Who keeps the score with the least, first; then who never does.
std::vector<std::size_t> order_of(const std::vector<Evaluation::Critical>& criticals) {
  std::vector<std::size_t> order(criticals.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const auto key = [&](std::size_t i) {
      const sweep::Critical& of = criticals[i].footprint;
      return std::pair(of.kind != Kind::exact && of.kind != Kind::below, of.x);
    };
    return key(a) < key(b);
  });
  return order;
}

// Methods in the order of their critical footprints, or of the file, and the slots of their lines.
std::vector<std::string> methods_of(const Evaluation::Task& task) {
  std::vector<std::string> methods;
  std::set<std::string> known;
  for (const std::size_t i : order_of(task.criticals)) {
    if (known.insert(task.criticals[i].method).second) methods.push_back(task.criticals[i].method);
  }
  for (std::size_t p = 1; p < task.policies.size(); ++p) {
    if (known.insert(task.policies[p].method).second) methods.push_back(task.policies[p].method);
  }
  return methods;
}

int slot_of(std::size_t place) {
  if (place >= kNamed) return kGrey;
  const auto slot = static_cast<int>(place) + 1;  // the ink is the full cache's
  return slot < kGrey ? slot : slot + 1;
}

CurveChart::Point point_of(const Evaluation::Policy& policy, std::size_t index) {
  CurveChart::Point point;
  point.x = policy.footprint;
  point.y = policy.score;
  point.left = policy.footprints.low;
  point.right = policy.footprints.high;
  point.low = policy.scores.low;
  point.high = policy.scores.high;
  point.text = QString::fromStdString(policy.label);
  point.item = static_cast<int>(index);
  return point;
}

// What was left comes first: a long answer is cut where the cell ends.
QString answer_text(const Evaluation::Answer& answer) {
  QString text;
  for (const auto& [name, left] : answer.spans)
    text += QString("%1 %2 left\n").arg(QString::fromStdString(name), percent_text(left, 0));
  const QString said = QString::fromStdString(answer.text).simplified();
  return text + (said.isEmpty() ? "(nothing)" : said);
}

QString answer_tip(const Evaluation::Answer& answer) {
  QStringList lines{QString::fromStdString(answer.text), ""};
  lines << QString("score %1").arg(answer.score, 0, 'f', 3);
  if (answer.delta_nll) lines << QString("delta nll %1").arg(*answer.delta_nll, 0, 'f', 3);
  if (answer.kl) lines << QString("KL %1").arg(*answer.kl, 0, 'f', 4);
  for (const auto& [name, left] : answer.spans)
    lines << QString("%1: %2 of its entries held at the end")
                 .arg(QString::fromStdString(name), percent_text(left));
  return lines.join('\n');
}

std::string joined(const std::vector<std::string>& texts) {
  std::string out;
  for (const std::string& text : texts) out += (out.empty() ? "" : " | ") + text;
  return out;
}

std::string or_empty(const std::optional<double>& value) {
  return value ? csv_field(*value) : std::string();
}

}  // namespace

CurveChart score_chart(const Evaluation& evaluation, std::size_t index) {
  const Evaluation::Task& task = evaluation.tasks[index];
  CurveChart chart;
  const std::vector<std::string> methods = methods_of(task);
  for (std::size_t m = 0; m < methods.size(); ++m) {
    CurveChart::Line line;
    line.name = QString::fromStdString(methods[m]);
    line.colour = slot_of(m);
    line.faint = m >= kNamed;
    for (std::size_t p = 1; p < task.policies.size(); ++p) {
      if (task.policies[p].method == methods[m])
        line.points.push_back(point_of(task.policies[p], p));
    }
    std::stable_sort(line.points.begin(), line.points.end(),
                     [](const auto& a, const auto& b) { return a.x < b.x; });
    for (const Evaluation::Critical& critical : task.criticals) {
      if (critical.method == methods[m] && critical.footprint.kind == Kind::exact)
        line.critical = critical.footprint.x;
    }
    chart.lines.push_back(std::move(line));
  }
  CurveChart::Line full;
  full.name = QString::fromStdString(task.policies.front().label);
  full.points.push_back(point_of(task.policies.front(), 0));
  chart.lines.insert(chart.lines.begin(), std::move(full));
  if (task.no_critical.empty()) {
    chart.threshold = evaluation.least * task.policies.front().score;
    chart.threshold_name = percent_text(evaluation.least, 0) +
                           " of the full cache's score: " + percent_text(chart.threshold);
  }
  chart.x_name = "KV footprint, % of a full cache";
  chart.y_name = "score, %";
  chart.caption = QString("%1; means of %2 sample%3")
                      .arg(QString::fromStdString(task.name))
                      .arg(task.samples.size())
                      .arg(task.samples.size() == 1 ? "" : "s, 95 % intervals");
  return chart;
}

void set_criticals(const Evaluation& evaluation, std::size_t index, PlainTable& table) {
  const Evaluation::Task& task = evaluation.tasks[index];
  if (task.criticals.empty()) {
    const std::string why =
        task.no_critical.empty() ? "no policy but the full cache" : task.no_critical;
    table.set({{"no critical footprint", {}}}, {{{{QString::fromStdString(why), {}, {}}}}});
    return;
  }
  std::vector<PlainTable::Row> rows;
  const std::vector<std::size_t> order = order_of(task.criticals);
  for (std::size_t m = 0; m < order.size(); ++m) {
    const Evaluation::Critical& critical = task.criticals[order[m]];
    const auto exact = [](const sweep::Critical& of) {
      return of.kind == Kind::unknown ? QVariant() : QVariant(of.x);
    };
    PlainTable::Row row;
    row.colour = slot_of(m);
    row.item = static_cast<int>(m) + 1;  // its line: the first is the full cache's
    row.cells = {
        {QString::fromStdString(critical.method), {}, {}},
        {text_or_dash(sweep::share_text(critical.footprint)), exact(critical.footprint), {}},
        {interval_text(critical), {}, {}},
        {text_or_dash(sweep::share_text(critical.peak_kv)), exact(critical.peak_kv), {}}};
    rows.push_back(std::move(row));
  }
  table.set({{"method", "policies that differ only in numbers"},
             {"critical footprint",
              "the smallest that keeps the score, interpolated; <: the smallest measured keeps it; "
              ">: the largest measured does not",
              true},
             {"95 % interval", "bootstrap over samples; ?: draws without a crossing", true},
             {"critical peak", "the same of peak KV", true}},
            std::move(rows));
}

void set_answers(const Evaluation& evaluation, std::size_t index,
                 const std::vector<std::size_t>& policies, PlainTable& table) {
  const Evaluation::Task& task = evaluation.tasks[index];
  std::vector<PlainTable::Column> columns{{"sample", {}}, {"expected", "what is right"}};
  for (const std::size_t p : policies)
    columns.push_back({QString::fromStdString(task.policies[p].label), "its answer"});
  std::vector<PlainTable::Row> rows;
  for (std::size_t s = 0; s < task.samples.size(); ++s) {
    const Evaluation::Sample& sample = task.samples[s];
    PlainTable::Row row;
    row.cells = {
        {QString("%1\n%2 tokens").arg(text_or_dash(sample.name), count_text(sample.prompt_tokens)),
         {},
         {}},
        {QString::fromStdString(joined(sample.answers)), {}, {}}};
    for (const std::size_t p : policies) {
      const Evaluation::Answer& answer = sample.of_run[p];
      PlainTable::Cell cell{answer_text(answer), {}, answer_tip(answer)};
      cell.good = answer.score;
      cell.item = static_cast<int>(s * task.policies.size() + p);
      row.cells.push_back(std::move(cell));
    }
    rows.push_back(std::move(row));
  }
  table.set(std::move(columns), std::move(rows));
}

std::string answers_csv(const Evaluation& evaluation, std::size_t index,
                        const std::vector<std::size_t>& policies) {
  const Evaluation::Task& task = evaluation.tasks[index];
  std::string text = csv_line({"task", "sample", "prompt_tokens", "expected", "policy", "answer",
                               "score", "nll", "delta_nll", "kl", "spans_left"});
  for (const Evaluation::Sample& sample : task.samples) {
    for (const std::size_t p : policies) {
      const Evaluation::Answer& answer = sample.of_run[p];
      std::string spans;
      for (const auto& [name, left] : answer.spans)
        spans += (spans.empty() ? "" : "; ") + name + "=" + csv_field(left);
      const auto field = [](const std::string& of) { return csv_field(std::string_view(of)); };
      text += csv_line({field(task.name), field(sample.name), csv_field(sample.prompt_tokens),
                        field(joined(sample.answers)), field(task.policies[p].label),
                        field(answer.text), csv_field(answer.score), or_empty(answer.nll),
                        or_empty(answer.delta_nll), or_empty(answer.kl), field(spans)});
    }
  }
  return text;
}

std::string scores_csv(const Evaluation& evaluation, std::size_t index) {
  const Evaluation::Task& task = evaluation.tasks[index];
  std::string text =
      csv_line({"task", "policy", "method", "footprint", "footprint_low", "footprint_high",
                "peak_kv", "score", "score_low", "score_high", "nll", "delta_nll", "kl",
                "retained_attention", "critical_kind", "critical_footprint"});
  static constexpr std::string_view kKinds[] = {"", "exact", "below", "above"};
  std::map<std::string, sweep::Critical> criticals;
  for (const Evaluation::Critical& of : task.criticals) criticals[of.method] = of.footprint;
  for (const Evaluation::Policy& p : task.policies) {
    const auto found = criticals.find(p.method);
    const sweep::Critical critical = found == criticals.end() ? sweep::Critical() : found->second;
    text +=
        csv_line({csv_field(std::string_view(task.name)), csv_field(std::string_view(p.label)),
                  csv_field(std::string_view(p.method)), csv_field(p.footprint),
                  csv_field(p.footprints.low), csv_field(p.footprints.high), csv_field(p.peak_kv),
                  csv_field(p.score), csv_field(p.scores.low), csv_field(p.scores.high),
                  or_empty(p.nll), or_empty(p.delta_nll), or_empty(p.kl), or_empty(p.retained),
                  std::string(kKinds[static_cast<std::size_t>(critical.kind)]),
                  critical.kind == Kind::unknown ? std::string() : csv_field(critical.x)});
  }
  return text;
}

}  // namespace kvspan::gui
