// SPDX-License-Identifier: Apache-2.0
#include "gui/model/residents.h"

#include <QAbstractItemModelTester>
#include <QComboBox>
#include <QFile>
#include <QLabel>
#include <QLineEdit>
#include <QTableView>
#include <QToolButton>
#include <QTreeView>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include <nlohmann/json.hpp>

#include "gui/model/csv.h"
#include "gui/model/head_model.h"
#include "gui/model/kept_sets.h"
#include "gui/model/lives.h"
#include "gui/model/token_models.h"
#include "gui/paint/theme.h"
#include "gui/views/kept_sets.h"
#include "gui/views/view.h"
#include "sim/attention/head_attention.h"
#include "sim/report/lifetimes_reader.h"
#include "sim/report/lifetimes_writer.h"
#include "tests/gui/bundled_lives.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {

// What is held in a row, by one run and by two, beside walks over every entry, and their views on
// the real window.
class ResidentsTest : public QObject, private BundledLives {
  Q_OBJECT
 private slots:
  void what_is_held_equals_a_walk_and_the_timeline();
  void heads_are_a_tree();
  void tokens_are_sorted_and_filtered();
  void kept_sets_equal_a_walk();
  void kept_sets_of_unequal_heads_compare_those_that_serve_the_same_queries();
  void kept_sets_of_other_traces_say_so();
  void the_telling_row_is_where_two_runs_differ_most();
  void the_resident_view_follows_and_leads_the_document();
  void the_kept_sets_panel_says_what_differs();
};

void ResidentsTest::what_is_held_equals_a_walk_and_the_timeline() {
  const LifetimesFile& file = *result_->lifetimes;
  for (std::size_t r = 0; r < result_->runs.size(); ++r) {
    const int run = static_cast<int>(r);
    const std::vector<std::int64_t> state = file.state(run);
    for (const RowIndex row : {RowIndex{0}, RowIndex{300}, RowIndex{511}, RowIndex{512},
                               RowIndex{1200}, file.tokens() - 1}) {
      const RowIndex since = row / 2;
      const Holdings holdings = holdings_at(*result_, r, row, since, {1, -1}, {});
      const HeadHolding sum = holdings.sum();
      QCOMPARE(static_cast<double>(sum.entries), result_->runs[r].entries->at(row));
      QCOMPARE(static_cast<double>(sum.entries_before), result_->runs[r].entries->at(since));
      QCOMPARE(static_cast<double>(sum.host_bytes), result_->runs[r].host->at(row));
      const std::int64_t model =
          file.runs()[r].charge.once + (state.empty() ? 0 : state[static_cast<std::size_t>(row)]);
      QCOMPARE(static_cast<double>(sum.bytes + model), result_->runs[r].bytes->at(row));
      QCOMPARE(holdings.scope_heads, result_->runs[r].heads);
      for (RowIndex t = 0; t <= row; t += 43) {
        std::int32_t count = 0;
        std::uint32_t first = static_cast<std::uint32_t>(file.tokens());
        for (int head = 0; head < holdings.heads; ++head) {
          if (!held(file.deaths(run, 1, head), t, row)) continue;
          ++count;
          first = std::min(first, file.deaths(run, 1, head)[static_cast<std::size_t>(t)]);
        }
        QCOMPARE(holdings.held_by[static_cast<std::size_t>(t)], count);
        if (count > 0) QCOMPARE(holdings.first[static_cast<std::size_t>(t)], first);
      }
    }
  }
}

void ResidentsTest::heads_are_a_tree() {
  HeadsModel model;
  const QAbstractItemModelTester tester(&model,
                                        QAbstractItemModelTester::FailureReportingMode::QtTest);
  const auto at = [&](const char* run, RowIndex row) {
    return std::make_shared<const Holdings>(
        holdings_at(*result_, static_cast<std::size_t>(run_of(run)), row, 0, {}, {}));
  };
  model.set(at("h2o", 900), result_->trace);
  QCOMPARE(model.rowCount(), 1 + result_->trace.layers());
  std::int64_t sum = 0;
  for (int l = 0; l < result_->trace.layers(); ++l) {
    const QModelIndex layer = model.index(l + 1, HeadsModel::kEntries, {});
    const QModelIndex name = layer.siblingAtColumn(0);
    QCOMPARE(name.data().toString(),
             QString("layer %1").arg(result_->trace.layer_ids[static_cast<std::size_t>(l)]));
    std::int64_t heads = 0;
    for (int h = 0; h < model.rowCount(name); ++h) {
      const QModelIndex head = model.index(h, HeadsModel::kEntries, name);
      heads += head.data(Qt::EditRole).toLongLong();
      QCOMPARE(model.scope_of(head).layer, l);
      QCOMPARE(model.scope_of(head).head, h);
      QCOMPARE(model.index_of({l, h}), head.siblingAtColumn(0));
    }
    QCOMPARE(heads, layer.data(Qt::EditRole).toLongLong());
    sum += heads;
  }
  const QModelIndex all = model.index(0, HeadsModel::kEntries, {});
  QCOMPARE(all.data(Qt::EditRole).toLongLong(), sum);
  QCOMPARE(static_cast<double>(sum),
           result_->runs[static_cast<std::size_t>(run_of("h2o"))].entries->at(900));
  QVERIFY(all.siblingAtColumn(HeadsModel::kShare).data().toString().endsWith(" %"));
  model.set(at("full", 100), result_->trace);
  QCOMPARE(model.index(0, HeadsModel::kShare, {}).data(Qt::EditRole).toDouble(), 1.0);
  model.set(nullptr, {});
  QCOMPARE(model.rowCount(), 0);
}

void ResidentsTest::tokens_are_sorted_and_filtered() {
  TokensModel model;
  const QAbstractItemModelTester tester(&model,
                                        QAbstractItemModelTester::FailureReportingMode::QtTest);
  const auto trace = Document().trace_of(*result_);
  const auto holdings = std::make_shared<const Holdings>(
      holdings_at(*result_, static_cast<std::size_t>(run_of("h2o")), 1000, 1000, {}, {}));
  model.set(holdings, trace, result_->trace.tokens);
  const auto held_tokens = std::count_if(holdings->held_by.begin(), holdings->held_by.end(),
                                         [](std::int32_t heads) { return heads > 0; });
  QCOMPARE(model.rowCount(), static_cast<int>(held_tokens));
  QVERIFY(held_tokens > 100 && held_tokens < 1000);
  model.sort(TokensModel::kHeldBy, Qt::DescendingOrder);
  for (int row = 1; row < model.rowCount(); ++row) {
    const auto value = [&](int at) {
      return model.index(at, TokensModel::kHeldBy).data(Qt::EditRole).toInt();
    };
    QVERIFY(value(row - 1) >= value(row));
  }
  model.sort(TokensModel::kText, Qt::AscendingOrder);
  for (int row = 1; row < model.rowCount(); ++row) {
    QVERIFY(trace->token_text(model.token_at(row - 1)) <= trace->token_text(model.token_at(row)));
  }
  const int all = model.rowCount();
  model.set_filter("the");
  QVERIFY(model.rowCount() > 0 && model.rowCount() < all);
  for (int row = 0; row < model.rowCount(); ++row) {
    QVERIFY(model.index(row, TokensModel::kText)
                .data()
                .toString()
                .contains("the", Qt::CaseInsensitive));
    QCOMPARE(model.row_of(model.token_at(row)), row);
  }
  const auto lines = parse_csv(csv_of(model));
  QCOMPARE(lines.size(), static_cast<std::size_t>(model.rowCount()) + 1);
  QCOMPARE(lines[1][0], std::to_string(model.token_at(0)));
}

void ResidentsTest::kept_sets_equal_a_walk() {
  const LifetimesFile& file = *result_->lifetimes;
  const int a = run_of("h2o");
  const int b = run_of("chunked(snapkv");
  const auto shown = [&](int run) {
    return ShownRun{result_, static_cast<std::size_t>(run), 0, true};
  };
  QVERIFY(why_not_compared(nullptr, nullptr).startsWith("Open a result"));
  const ShownRun current = shown(a);
  const ShownRun baseline = shown(b);
  QVERIFY(why_not_compared(&current, &baseline).isEmpty());
  constexpr RowIndex kRow = 1300;
  for (const HeadScope scope : {HeadScope{}, HeadScope{2, 1}}) {
    const KeptSets sets = kept_sets(current, baseline, kRow, scope, {});
    Overlap sum;
    for (int layer = 0; layer < sets.layers; ++layer) {
      for (int head = 0; head < sets.heads; ++head) {
        Overlap walked;
        const Deaths deaths_a = file.deaths(a, layer, head);
        const Deaths deaths_b = file.deaths(b, layer, head);
        for (RowIndex t = 0; t <= kRow; ++t) {
          const bool in_a = held(deaths_a, t, kRow);
          const bool in_b = held(deaths_b, t, kRow);
          walked.both += in_a && in_b ? 1 : 0;
          walked.current += in_a && !in_b ? 1 : 0;
          walked.baseline += in_b && !in_a ? 1 : 0;
        }
        QCOMPARE(sets.at(layer, head).both, walked.both);
        QCOMPARE(sets.at(layer, head).current, walked.current);
        QCOMPARE(sets.at(layer, head).baseline, walked.baseline);
        if (scope.holds(layer, head)) sum += walked;
      }
    }
    QCOMPARE(sets.sum.both, sum.both);
    QCOMPARE(sets.sum.current, sum.current);
    std::int64_t tokens = 0;
    for (const std::int32_t heads : sets.baseline) tokens += heads;
    QCOMPARE(tokens, sum.baseline);
    QVERIFY(sum.both > 0 && sum.current > 0 && sum.baseline > 0);
  }
  const KeptSets itself = kept_sets(current, current, kRow, {}, {});
  QCOMPARE(itself.sum.jaccard(), 1.0);
  QCOMPARE(itself.sum.current + itself.sum.baseline, std::int64_t{0});

  KeptModel model;
  const QAbstractItemModelTester tester(&model,
                                        QAbstractItemModelTester::FailureReportingMode::QtTest);
  model.set(std::make_shared<const KeptSets>(kept_sets(current, baseline, kRow, {0, 0}, {})),
            nullptr);
  for (int row = 0; row < model.rowCount(); ++row) {
    const RowIndex t = model.token_at(row);
    QCOMPARE(model.index(row, KeptModel::kCurrent).data(Qt::EditRole).toInt(),
             held(file.deaths(a, 0, 0), t, kRow) ? 1 : 0);
    QCOMPARE(model.index(row, KeptModel::kBaseline).data(Qt::EditRole).toInt(),
             held(file.deaths(b, 0, 0), t, kRow) ? 1 : 0);
  }
  QVERIFY(model.rowCount() > 0);
  model.sort(KeptModel::kCurrent, Qt::DescendingOrder);
  model.set(nullptr, nullptr);
}

// One run stores two heads of four query heads, the other one all four.
void ResidentsTest::kept_sets_of_unequal_heads_compare_those_that_serve_the_same_queries() {
  constexpr RowIndex kTokens = 50;
  RunReport report;
  report.trace.tokens = report.trace.prompt_tokens = kTokens;
  report.trace.layer_ids = {0};
  report.trace.model_layers = report.trace.layers = 1;
  report.trace.query_heads = 4;
  report.trace.kv_heads = 2;
  std::mt19937 random(5);
  for (const int heads : {2, 4}) {
    RunResult& run = report.runs.emplace_back();
    run.spec = run.label = run.klass = std::to_string(heads);
    Ledger& ledger = run.ledger;
    ledger.layers = ledger.model_layers = 1;
    ledger.heads = heads;
    ledger.query_heads = 4;
    ledger.plan = make_passes(kTokens, kTokens, kTokens, 10);
    ledger.representations = {{"full", 8, 0}};
    for (RowIndex i = 0; i < heads * kTokens; ++i) {
      std::uniform_int_distribution<std::int64_t> death(i % kTokens + 1, kTokens);
      ledger.death.push_back(static_cast<std::uint32_t>(death(random)));
    }
  }
  const QString path = work_folder().filePath("heads.lifetimes.safetensors");
  write_lifetimes(report, path.toStdString());
  const ResultPtr result = open_result(path.toStdString());
  const ShownRun few{result, 0, 0, true};
  const ShownRun many{result, 1, 0, true};
  QVERIFY(why_not_compared(&few, &many).isEmpty());
  constexpr RowIndex kRow = 30;
  const KeptSets sets = kept_sets(few, many, kRow, {}, {});
  QCOMPARE(sets.heads, 4);
  for (int head = 0; head < 4; ++head) {
    const Deaths of_few = report.runs[0].ledger.deaths(0, head / 2);
    const Deaths of_many = report.runs[1].ledger.deaths(0, head);
    std::int64_t both = 0;
    for (RowIndex t = 0; t <= kRow; ++t) {
      both += held(of_few, t, kRow) && held(of_many, t, kRow) ? 1 : 0;
    }
    QCOMPARE(sets.at(0, head).both, both);
  }
  Document document;
  document.add(result);
  document.set_current(0);
  document.set_baseline(1);
  document.set_selection({kRow, kRow + 1});
  QWidget window;
  QWidget* panel = make_kept_sets(document, &window);
  window.show();
  QVERIFY(QTest::qWaitFor([&] { return panel->property("ready").toBool(); }, 20'000));
  QVERIFY(panel->findChild<QLabel*>()->text().contains("The runs store 2 and 4 heads"));
}

void ResidentsTest::kept_sets_of_other_traces_say_so() {
  auto other = std::make_shared<Result>(*result_);
  const ShownRun current{result_, 0, 0, true};
  other->trace.sha256.assign(64, '0');
  const ShownRun another{other, 0, 0, true};
  QVERIFY2(why_not_compared(&current, &another).contains("of another trace"),
           qPrintable(why_not_compared(&current, &another)));
  auto longer = std::make_shared<Result>(*result_);
  longer->trace.tokens = 99;
  const ShownRun unequal{longer, 0, 0, true};
  QVERIFY(why_not_compared(&current, &unequal).contains("99"));
  auto bare = std::make_shared<Result>(*result_);
  bare->lifetimes = nullptr;
  const ShownRun without{bare, 1, 0, true};
  QVERIFY(why_not_compared(&current, &without).contains("--lifetimes FILE"));
}

void ResidentsTest::the_telling_row_is_where_two_runs_differ_most() {
  const auto document = opened("h2o");
  for (const char* other : {"full", "streaming_llm", "chunked"}) {
    document->set_baseline(run_of(other));
    const ShownRun& current = *document->current_run();
    const ShownRun& baseline = *document->baseline_run();
    const auto differing = [&](RowIndex row) {
      const KeptSets sets = kept_sets(current, baseline, row, {}, {});
      return sets.sum.current + sets.sum.baseline;
    };
    const RowIndex found = telling_row(current, baseline);
    const std::int64_t most = differing(found);
    QVERIFY(most > 0);
    for (RowIndex row = 0; row < document->rows(); row += 37) QVERIFY(differing(row) <= most);
    if (found + 1 < document->rows()) QVERIFY(differing(found + 1) < most);
  }
  // Nothing to compare with: the last row.
  document->set_baseline(document->current());
  QCOMPARE(telling_row(*document->current_run(), *document->baseline_run()), document->rows() - 1);
}

void ResidentsTest::the_resident_view_follows_and_leads_the_document() {
  const auto document = opened("h2o");
  document->set_selection({600, 901});
  QWidget window;
  View* view = make_resident_view(*document, &window);
  view->resize(920, 300);
  window.show();
  QVERIFY(wait_for(*view));
  const auto* heads = view->findChild<QTreeView*>();
  const QModelIndex all = heads->model()->index(0, HeadsModel::kEntries);
  const SeriesPtr& entries = document->current_run()->run().entries;
  QCOMPARE(static_cast<double>(all.data(Qt::EditRole).toLongLong()), entries->at(900));
  QCOMPARE(
      static_cast<double>(all.siblingAtColumn(HeadsModel::kChange).data(Qt::EditRole).toLongLong()),
      entries->at(900) - entries->at(600));
  const QModelIndex layer = heads->model()->index(2, 0);
  heads->selectionModel()->setCurrentIndex(heads->model()->index(1, 0, layer),
                                           QItemSelectionModel::SelectCurrent);
  QCOMPARE(document->focus().layer, 1);
  QCOMPARE(document->focus().head, 1);
  QVERIFY(wait_for(*view));
  auto* tokens = view->findChild<QTableView*>();
  const auto deaths = result_->lifetimes->deaths(run_of("h2o"), 1, 1);
  int there = 0;
  for (std::size_t t = 0; t <= 900; ++t) there += deaths[t] > 900 ? 1 : 0;
  QCOMPARE(tokens->model()->rowCount(), there);
  QCOMPARE(parse_csv(view->csv()).size(), static_cast<std::size_t>(there) + 1);
  tokens->selectionModel()->setCurrentIndex(tokens->model()->index(5, 0),
                                            QItemSelectionModel::SelectCurrent);
  QCOMPARE(document->focus().token, tokens->model()->index(5, 0).data(Qt::EditRole).toLongLong());
  view->findChild<QLineEdit*>()->setText("zzzz no such text");
  QCOMPARE(tokens->model()->rowCount(), 0);
  view->findChild<QLineEdit*>()->clear();
  document->set_selection({0, 1});
  QVERIFY(wait_for(*view));
  QCOMPARE(tokens->model()->rowCount(), 1);
  document->close(result_);
  QVERIFY(wait_for(*view));
  QCOMPARE(heads->model()->rowCount(), 0);
}

void ResidentsTest::the_kept_sets_panel_says_what_differs() {
  const auto document = opened("h2o");
  document->set_baseline(run_of("chunked(snapkv"));
  document->set_selection({1300, 1301});
  QWidget window;
  QWidget* panel = make_kept_sets(*document, &window);
  panel->resize(920, 300);
  window.show();
  const auto ready = [&] { return panel->property("ready").toBool(); };
  QVERIFY(QTest::qWaitFor(ready, 20'000));
  const KeptSets sets =
      kept_sets(*document->current_run(), *document->baseline_run(), 1300, {}, {});
  const auto* text = panel->findChild<QLabel*>();
  QVERIFY2(text->text().contains(QString("both hold %1 entries").arg(count_text(sets.sum.both))),
           qPrintable(text->text()));
  const auto* list = panel->findChild<QTableView*>();
  QVERIFY(list->model()->rowCount() > 0);
  panel->grab().save(picture_folder().filePath("kept_sets.png"));
  // As in the chart of the difference: what only the current run holds is more.
  for (QWidget* part : panel->findChildren<QWidget*>()) {
    if (!part->accessibleName().startsWith("Tokens held by both runs")) continue;
    QVERIFY(part->minimumWidth() <= 440);
    const QImage legend = part->grab(QRect(0, 0, part->width(), 21)).toImage();
    const auto place = [&](const QColor& colour) {
      int x = 0;
      while (x < legend.width() && legend.pixelColor(x, 10) != colour) ++x;
      return x;
    };
    QVERIFY(0 < place(theme().bad) && place(theme().bad) < place(theme().good));
    QVERIFY(place(theme().good) < legend.width());
  }
  document->set_baseline(document->current());
  QVERIFY(text->text().contains("choose another run"));
  QVERIFY(!list->isVisible());
  document->close(result_);
  QVERIFY(text->text().startsWith("Open a result"));
}

KVSPAN_GUI_TEST(ResidentsTest, "residents");

}  // namespace kvspan::gui::test

#include "residents_test.moc"
