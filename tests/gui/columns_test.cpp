// SPDX-License-Identifier: Apache-2.0
#include "gui/model/columns.h"

#include <QCheckBox>
#include <QComboBox>
#include <QLabel>
#include <QSignalSpy>
#include <cmath>
#include <numeric>
#include <random>

#include <nlohmann/json.hpp>

#include "gui/model/csv.h"
#include "gui/model/stacking.h"
#include "gui/paint/theme.h"
#include "gui/paint/time_chart.h"
#include "gui/views/view.h"
#include "sim/trace/safetensors.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {
namespace {

constexpr std::array kQuantities{Quantity::entries, Quantity::bytes, Quantity::percent,
                                 Quantity::mass};
constexpr std::array kStacks{Stack::layer, Stack::head_class, Stack::state};

class ListSeries final : public Series {
 public:
  explicit ListSeries(std::vector<double> values) : values_(std::move(values)) {}
  [[nodiscard]] RowIndex rows() const override { return static_cast<RowIndex>(values_.size()); }
  [[nodiscard]] double at(RowIndex row) const override {
    return values_[static_cast<std::size_t>(row)];
  }
  [[nodiscard]] Extremes over(RowIndex begin, RowIndex end) const override {
    const auto [low, high] = std::minmax_element(values_.begin() + begin, values_.begin() + end);
    return {*low, *high};
  }
  [[nodiscard]] RowIndex row_of_high(RowIndex begin, RowIndex end) const override {
    return std::max_element(values_.begin() + begin, values_.begin() + end) - values_.begin();
  }

 private:
  std::vector<double> values_;
};

}  // namespace

// Lines, differences, stacks and their CSV beside walks over all rows.
class ColumnsTest : public QObject {
  Q_OBJECT
 private slots:
  void lines_have_at_most_two_points_a_column_and_keep_every_extreme();
  void differences_equal_those_of_a_walk_over_all_rows();
  void parts_of_every_stack_sum_to_the_total();
  void head_classes_are_the_same_with_and_without_the_json();
  void csv_reads_back_as_the_series_and_the_json();
  void csv_of_many_rows_has_the_largest_of_each_part();
};

void ColumnsTest::lines_have_at_most_two_points_a_column_and_keep_every_extreme() {
  std::mt19937 random(11);
  for (const RowIndex rows : {1, 2, 100, 3000, 70'000}) {
    std::vector<double> values;
    for (RowIndex row = 0; row < rows; ++row)
      values.push_back(static_cast<double>(random() % 1000));
    const Measure measure{std::make_shared<ListSeries>(values), 0.5};
    for (const int pixels : {1, 7, 640}) {
      const Rows zoom{rows / 3, rows};
      const Columns columns(zoom, pixels);
      QVERIFY(columns.count() <= pixels);
      QCOMPARE(columns.at(0).begin, zoom.begin);
      QCOMPARE(columns.at(columns.count() - 1).end, zoom.end);
      const auto line = sample_line(measure, columns);
      QVERIFY(line.size() <= 2 * static_cast<std::size_t>(columns.count()));
      std::size_t point = 0;
      const double pixel = static_cast<double>(zoom.size()) / columns.count();
      for (int c = 0; c < columns.count(); ++c) {
        const Rows here = columns.at(c);
        QVERIFY(!here.empty());
        QVERIFY(std::abs(static_cast<double>(here.begin - zoom.begin) - c * pixel) <=
                pixel / 2 + 1);
        const auto [low, high] =
            std::minmax_element(values.begin() + here.begin, values.begin() + here.end);
        double least = INFINITY;
        double most = -INFINITY;
        for (; point < line.size() && line[point].x() <= static_cast<double>(here.end) &&
               (here.size() == 1 || line[point].x() < static_cast<double>(here.end));
             ++point) {
          least = std::min(least, line[point].y());
          most = std::max(most, line[point].y());
          if (here.size() == 1 && line[point].x() == static_cast<double>(here.end)) {
            ++point;
            break;
          }
        }
        QCOMPARE(least, *low / 2);
        QCOMPARE(most, *high / 2);
      }
      QCOMPARE(point, line.size());
    }
  }
  const Measure gaps{series_of_steps({0, 10, 20}, {5, NAN, 7}, 30), 1};
  QCOMPARE(sample_line(gaps, Columns({0, 30}, 100)).size(), std::size_t{40});
  QVERIFY(sample_line(gaps, Columns({10, 20}, 3)).empty());
}

void ColumnsTest::differences_equal_those_of_a_walk_over_all_rows() {
  std::mt19937 random(3);
  for (const RowIndex rows : {1, 63, 64, 65, 20'000}) {
    std::vector<double> a;
    std::vector<double> b;
    std::vector<double> less;
    for (RowIndex row = 0; row < rows; ++row) {
      a.push_back(static_cast<double>(random() % 1000));
      b.push_back(static_cast<double>(random() % 1000));
      less.push_back(a.back() * 2 - b.back());
    }
    const SeriesPtr found =
        series_of_difference({std::make_shared<ListSeries>(a), 2},
                             {std::make_shared<ListSeries>(b), 1}, [] { return false; });
    for (int i = 0; i < 200; ++i) {
      const auto begin = static_cast<RowIndex>(random()) % rows;
      const auto end = begin + 1 + static_cast<RowIndex>(random()) % (rows - begin);
      const auto [low, high] = std::minmax_element(less.begin() + begin, less.begin() + end);
      QCOMPARE(found->over(begin, end).low, *low);
      QCOMPARE(found->over(begin, end).high, *high);
      QCOMPARE(found->row_of_high(begin, end),
               std::max_element(less.begin() + begin, less.begin() + end) - less.begin());
    }
  }
  // What a damaged file claims costs no more than what it says.
  constexpr RowIndex kClaimed = (RowIndex{1} << 31) - 1;
  const SeriesPtr up = series_of_steps({0, 5, 9000}, {1, 7, 3}, kClaimed);
  const SeriesPtr flat = series_of_steps({0}, {2}, kClaimed);
  const SeriesPtr claimed = series_of_difference({up, 1}, {flat, 2}, [] { return false; });
  QCOMPARE(claimed->over(0, kClaimed).low, -3.0);
  QCOMPARE(claimed->over(0, kClaimed).high, 3.0);
  QCOMPARE(claimed->row_of_high(0, kClaimed), RowIndex{5});
  QCOMPARE(claimed->over(9000, kClaimed).high, -1.0);
  const SeriesPtr other = series_of_steps({0, 7000}, {1, 2}, kClaimed);
  const SeriesPtr both = series_of_difference({up, 1}, {other, 1}, [] { return false; });
  QCOMPARE(both->over(8000, kClaimed).high, 5.0);
  QCOMPARE(both->over(9000, kClaimed).high, 1.0);
  QVERIFY(both->over(0, kClaimed).high <= 6.0);
  const SeriesPtr steps = series_of_steps({0}, {1}, 100);
  QVERIFY_THROWS_EXCEPTION(std::exception,
                           (void)series_of_difference({steps, 1}, {steps, 1}, [] { return true; }));
}

void ColumnsTest::parts_of_every_stack_sum_to_the_total() {
  const ResultPtr result = open_result(bundled_result().toStdString());
  bool several = false;
  for (std::size_t r = 0; r < result->runs.size(); ++r) {
    const ShownRun shown{result, r};
    for (const Quantity quantity : {Quantity::entries, Quantity::bytes, Quantity::percent}) {
      const Measure total = measure_of(shown, quantity);
      for (const Stack stack : kStacks) {
        const Stacking stacking(shown, quantity, stack);
        QVERIFY2(stacking.missing().isEmpty(), qPrintable(stacking.missing()));
        several = several || stacking.names().size() > 2;
        QCOMPARE(stacking.places().size(), stacking.names().size());
        for (std::size_t part = 0; part < stacking.names().size(); ++part) {
          QVERIFY(stacking.places()[part] < stacking.all_places());
          if (stacking.names()[part].startsWith("active")) QCOMPARE(stacking.places()[part], 1);
        }
        std::vector<double> parts(stacking.names().size());
        for (RowIndex row = 0; row < result->trace.tokens; row += 37) {
          stacking.parts_at(row, parts);
          const double sum = std::accumulate(parts.begin(), parts.end(), 0.0);
          const double wanted = total.at(row);  // nothing here is offloaded
          QVERIFY2(std::abs(sum - wanted) <= 1e-9 * wanted, qPrintable(stacking.names().back()));
          for (const double part : parts) QVERIFY(part >= 0);
        }
        const Columns columns({100, result->trace.tokens}, 300);
        const SampledStack sampled = sample_stack(stacking, total, columns);
        QCOMPARE(sampled.x.size(), static_cast<std::size_t>(columns.count()) + 2);
        for (int c = 0; c < columns.count(); ++c) {
          const Rows rows = columns.at(c);
          const double high = total.series->over(rows.begin, rows.end).high * total.scale;
          const double top = sampled.tops.back()[static_cast<std::size_t>(c) + 1];
          QVERIFY(std::abs(top - high) <= 1e-9 * high);
        }
      }
    }
    QVERIFY(!Stacking(shown, Quantity::mass, Stack::layer).missing().isEmpty());
  }
  QVERIFY(several);
}

void ColumnsTest::head_classes_are_the_same_with_and_without_the_json() {
  const ResultPtr with = open_result(bundled_result().toStdString());
  const ResultPtr without =
      open_result(work_folder().filePath("bundled.timeline.safetensors").toStdString());
  for (std::size_t r = 0; r < with->runs.size(); ++r) {
    QVERIFY(without->runs[r].figures == nullptr);
    const auto classes = [&](const ResultPtr& result) {
      return Stacking({result, r}, Quantity::entries, Stack::head_class).names();
    };
    QCOMPARE(classes(without), classes(with));
    const Run& run = without->runs[r];
    const auto tokens = static_cast<double>(without->trace.tokens);
    for (int h = 0; h < run.heads; ++h) {
      const auto found = figure(with->runs[r], "per_head.footprint.0." + std::to_string(h));
      const double share = run.heads_over_time[static_cast<std::size_t>(h)].entry_rows() /
                           (tokens * (tokens + 1) / 2);
      QVERIFY(found && std::abs(*found - share) < 1e-12);
    }
  }
}

void ColumnsTest::csv_reads_back_as_the_series_and_the_json() {
  Document document;
  const ResultPtr result = open_result(bundled_result().toStdString());
  const nlohmann::json timelines = timelines_of(bundled_result());
  document.add(result);
  document.set_visible(2, false);
  for (const Quantity quantity : kQuantities) {
    document.set_display({.quantity = quantity});
    const auto lines = parse_csv(memory_csv(document));
    QCOMPARE(lines.size(), static_cast<std::size_t>(result->trace.tokens) + 1);
    QCOMPARE(lines[0].size(), result->runs.size());  // row, and all but the hidden one
    std::size_t column = 0;
    for (std::size_t r = 0; r < result->runs.size(); ++r) {
      if (r == 2) continue;
      ++column;
      const Run& run = result->runs[r];
      QCOMPARE(lines[0][column], label_of(run));
      const nlohmann::json& json = timelines[r];
      const char* name = quantity == Quantity::bytes  ? "resident_bytes"
                         : quantity == Quantity::mass ? "retained_mass"
                                                      : "resident_entries";
      const double full = quantity == Quantity::percent ? full_entries(*result, run) : 1;
      for (std::size_t i = 0; i < json["row"].size(); ++i) {
        const auto row = json["row"][i].get<std::size_t>();
        const std::string& text = lines[row + 1][column];
        QCOMPARE(lines[row + 1][0], std::to_string(row));
        if (json[name][i].is_null()) {
          QCOMPARE(text, std::string());
          continue;
        }
        const double wanted = json[name][i].get<double>();
        // Timelines hold mass as F32, the JSON as its decimal digits.
        const double read = std::stod(text) * full;
        const double slack = quantity == Quantity::mass      ? 1e-7
                             : quantity == Quantity::percent ? 1e-9 * wanted
                                                             : 0;
        QVERIFY2(std::abs(read - wanted) <= slack, text.c_str());
        QCOMPARE(std::stod(text),
                 measure_of(document.runs()[r], quantity).at(static_cast<RowIndex>(row)));
      }
    }
  }
  document.set_display({.quantity = Quantity::entries, .stack = Stack::layer});
  document.set_zoom({100, 200});
  const auto lines = parse_csv(memory_csv(document));
  QCOMPARE(lines.size(), std::size_t{101});
  QCOMPARE(lines[0].size(), static_cast<std::size_t>(result->trace.layers()) + 1);
  for (std::size_t i = 1; i < lines.size(); ++i) {
    double sum = 0;
    for (std::size_t part = 1; part < lines[i].size(); ++part) sum += std::stod(lines[i][part]);
    QCOMPARE(sum, document.current_run()->run().entries->at(std::stol(lines[i][0])));
  }
}

void ColumnsTest::csv_of_many_rows_has_the_largest_of_each_part() {
  std::mt19937 random(5);
  std::vector<std::uint32_t> deaths;
  for (std::uint32_t i = 0; i < 9000; ++i) {
    deaths.push_back(
        std::min<std::uint32_t>(9000, i + 1 + static_cast<std::uint32_t>(random() % 50)));
  }
  Document document;
  document.add(open_result(result_of_deaths("many.safetensors", deaths).toStdString()));
  const auto lines = parse_csv(memory_csv(document));
  QCOMPARE(lines.size(), std::size_t{kCsvRows + 1});
  const Series& bytes = *document.current_run()->run().bytes;
  for (std::size_t i = 1; i < lines.size(); ++i) {
    const auto piece = static_cast<RowIndex>(i - 1);
    const RowIndex begin = 9000 * piece / kCsvRows;
    const RowIndex end = 9000 * (piece + 1) / kCsvRows;
    const RowIndex row = std::stol(lines[i][0]);
    QVERIFY(begin <= row && row < end);
    for (RowIndex other = begin; other < end; ++other) QVERIFY(bytes.at(other) <= bytes.at(row));
    QCOMPARE(std::stod(lines[i][1]), bytes.at(row));
  }
}

KVSPAN_GUI_TEST(ColumnsTest, "columns");

}  // namespace kvspan::gui::test

#include "columns_test.moc"
