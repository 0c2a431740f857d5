// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "sim/report/timeline_writer.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {

// One run whose series are random; written and read back as a file.
class SeriesTest : public QObject {
  Q_OBJECT
 private slots:
  void extremes_of_levels_equal_those_of_a_walk_over_all_rows();
  void values_kept_as_lines_equal_the_values();
  void steps_hold_until_the_next_row();
  void polygons_equal_the_entries_of_the_ledger();
  void points_of_a_damaged_file_are_no_crash();
};

void SeriesTest::extremes_of_levels_equal_those_of_a_walk_over_all_rows() {
  constexpr RowIndex kTokens = 300'000;  // three levels above the rows
  std::mt19937 random(7);
  RunReport report;
  report.trace.tokens = report.trace.prompt_tokens = kTokens;
  report.trace.layer_ids = {0};
  report.trace.model_layers = report.trace.layers = 1;
  RunResult& run = report.runs.emplace_back();
  run.ledger.layers = run.ledger.heads = 1;
  run.ledger.plan.tokens = kTokens;
  run.ledger.representations = {{}};
  run.ledger.death.assign(kTokens, kTokens);
  Timeline& line = run.metrics.timeline;
  for (auto* series : {&line.resident_entries, &line.resident_bytes, &line.overhead_bytes,
                       &line.host_bytes, &line.active_entries}) {
    for (RowIndex row = 0; row < kTokens; ++row) series->push_back(random() % 100'000);
  }
  run.fidelity.emplace();
  for (RowIndex row = 0; row < kTokens; ++row) {
    run.fidelity->row_mass.push_back(row % 3 == 0 ? NAN
                                                  : static_cast<float>(random() % 1000) / 1000);
  }
  const std::string path = work_folder().filePath("levels.safetensors").toStdString();
  write_timeline(report, path);
  const ResultPtr result = open_result(path);
  const Run& read = result->runs[0];
  for (int i = 0; i < 400; ++i) {
    const auto length =
        static_cast<RowIndex>(std::pow(10.0, 5.4e-3 * static_cast<double>(random() % 1000)));
    const auto begin =
        static_cast<RowIndex>(random() % static_cast<std::uint64_t>(kTokens - length));
    const auto first = line.resident_bytes.begin() + begin;
    const auto [low, high] = std::minmax_element(first, first + length);
    const Extremes found = read.bytes->over(begin, begin + length);
    QCOMPARE(found.low, static_cast<double>(*low));
    QCOMPARE(found.high, static_cast<double>(*high));
    QCOMPARE(read.bytes->row_of_high(begin, begin + length),
             std::max_element(first, first + length) - line.resident_bytes.begin());
    double least = NAN;
    for (RowIndex row = begin; row < begin + length; ++row) {
      const auto value = static_cast<double>(run.fidelity->row_mass[static_cast<std::size_t>(row)]);
      if (!(least <= value) && !std::isnan(value)) least = value;
    }
    const Extremes mass = read.mass->over(begin, begin + length);
    QVERIFY(mass.low == least || (std::isnan(mass.low) && std::isnan(least)));
    // Descending the levels, the row that was found could be one that was not measured.
    const double most = read.mass->at(read.mass->row_of_high(begin, begin + length));
    QVERIFY(most == mass.high || (std::isnan(most) && std::isnan(mass.high)));
  }
}

void SeriesTest::values_kept_as_lines_equal_the_values() {
  std::mt19937 random(11);
  std::vector<std::int64_t> values{5};
  std::int64_t slope = 1;
  for (int i = 1; i < 20'000; ++i) {  // several hundred points: two levels
    if (random() % 50 == 0) slope = static_cast<std::int64_t>(random() % 9) - 4;
    values.push_back(random() % 997 == 0 ? 0 : values.back() + slope);
  }
  const SeriesPtr series = series_of_values(values);
  QCOMPARE(series->rows(), RowIndex{20'000});
  for (std::size_t row = 0; row < values.size(); ++row) {
    QCOMPARE(series->at(static_cast<RowIndex>(row)), static_cast<double>(values[row]));
  }
  for (int i = 0; i < 2000; ++i) {
    const auto begin = static_cast<RowIndex>(random() % 19'999);
    const auto end = begin + 1 + static_cast<RowIndex>(random()) % (20'000 - begin);
    const auto [low, high] = std::minmax_element(values.begin() + begin, values.begin() + end);
    QCOMPARE(series->over(begin, end).low, static_cast<double>(*low));
    QCOMPARE(series->over(begin, end).high, static_cast<double>(*high));
    QCOMPARE(series->row_of_high(begin, end),
             std::max_element(values.begin() + begin, values.begin() + end) - values.begin());
  }
}

void SeriesTest::steps_hold_until_the_next_row() {
  const SeriesPtr series = series_of_steps({0, 10, 20}, {5, NAN, 7}, 30);
  QCOMPARE(series->at(9), 5.0);
  QVERIFY(std::isnan(series->at(10)));
  QCOMPARE(series->at(29), 7.0);
  QCOMPARE(series->over(5, 21).low, 5.0);
  QCOMPARE(series->over(5, 21).high, 7.0);
  QVERIFY(std::isnan(series->over(12, 15).high));
  QCOMPARE(series->row_of_high(0, 30), RowIndex{20});
  QCOMPARE(series->row_of_high(12, 30), RowIndex{20});
}

void SeriesTest::polygons_equal_the_entries_of_the_ledger() {
  const ResultPtr result = open_result(bundled_result().toStdString());
  for (const Run& run : result->runs) {
    QCOMPARE(run.heads_over_time.size(),
             static_cast<std::size_t>(result->trace.layers() * run.heads));
    for (RowIndex row = 0; row < result->trace.tokens; row += 7) {
      std::int64_t sum = 0;
      for (const Polygon& head : run.heads_over_time) sum += head.at(row);
      QCOMPARE(static_cast<double>(sum), run.entries->at(row));
    }
  }
}

// The difference of the rows wrapped to -1, by which the smallest number was divided.
void SeriesTest::points_of_a_damaged_file_are_no_crash() {
  constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  const Polygon wild = Polygon::of({{kLeast, kMost, 3}, {0, kLeast, kMost}});
  for (const RowIndex row : {0, 1, 512}) QVERIFY(std::abs(wild.at(row)) <= kMost / 2);
  QVERIFY(std::isfinite(wild.entry_rows()));
}

KVSPAN_GUI_TEST(SeriesTest, "series");

}  // namespace kvspan::gui::test

#include "series_test.moc"
