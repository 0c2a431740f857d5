// SPDX-License-Identifier: Apache-2.0
#include "gui/model/lives.h"

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
#include "gui/model/residents.h"
#include "gui/paint/theme.h"
#include "gui/views/kept_sets.h"
#include "gui/views/view.h"
#include "sim/attention/head_attention.h"
#include "sim/report/lifetimes_file.h"
#include "sim/report/result_files.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {

// Maps and tables of what is held beside walks over every entry, and the views on the real window.
class LivesTest : public QObject {
  Q_OBJECT
 private slots:
  void initTestCase();
  void a_map_counts_every_pair_of_row_and_token();
  void a_map_of_a_selector_shows_its_sampled_reads();
  void lives_are_those_of_the_file();
  void the_table_of_lives_reads_back();
  void what_is_held_equals_a_walk_and_the_timeline();
  void heads_are_a_tree();
  void tokens_are_sorted_and_filtered();
  void kept_sets_equal_a_walk();
  void kept_sets_of_unequal_heads_compare_those_that_serve_the_same_queries();
  void kept_sets_of_other_traces_say_so();
  void the_lifetime_view_follows_and_leads_the_document();
  void attention_can_be_shown_and_cancelled();
  void the_resident_view_follows_and_leads_the_document();
  void the_kept_sets_panel_says_what_differs();
  void a_result_without_lifetimes_says_what_is_missing();
  void without_the_trace_its_absence_is_told();
  void damaged_lifetimes_are_one_sentence();
  void hidden_views_catch_up_when_they_are_shown();
  void pictures();

 private:
  [[nodiscard]] int run_of(const char* begin) const;
  [[nodiscard]] std::unique_ptr<Document> opened(const char* current) const;
  ResultPtr result_;
};

namespace {

using Deaths = std::span<const std::uint32_t>;

bool held(Deaths deaths, RowIndex token, RowIndex row) {
  return token <= row && row < static_cast<RowIndex>(deaths[static_cast<std::size_t>(token)]);
}

bool wait_for(const View& view) {
  return QTest::qWaitFor([&] { return view.is_ready(); }, 20'000);
}

}  // namespace

void LivesTest::initTestCase() { result_ = open_result(bundled_result().toStdString()); }

int LivesTest::run_of(const char* begin) const {
  for (std::size_t r = 0; r < result_->runs.size(); ++r) {
    if (result_->runs[r].policy.starts_with(begin)) return static_cast<int>(r);
  }
  qFatal("no run %s", begin);
}

std::unique_ptr<Document> LivesTest::opened(const char* current) const {
  auto document = std::make_unique<Document>();
  document->add(result_);
  document->set_current(run_of(current));
  return document;
}

void LivesTest::a_map_counts_every_pair_of_row_and_token() {
  const LifetimesFile& file = *result_->lifetimes;
  const int run = run_of("h2o");
  const Deaths deaths = file.deaths(run, 1, 2);
  std::mt19937 random(3);
  for (int i = 0; i < 12; ++i) {
    const auto range = [&] {
      const auto begin = static_cast<RowIndex>(random() % 1500);
      return Rows{begin, begin + 20 + static_cast<RowIndex>(random() % 350)};
    };
    LifeFrame frame{range(), range(), 0, 0};
    if (i == 0) frame.rows = frame.tokens = {0, file.tokens()};
    frame.width = 1 + static_cast<int>(random() % 40);
    frame.height = 1 + static_cast<int>(random() % 40);
    // Cells that end between rows are shared by them: here rows are a multiple of the height.
    frame.rows.end = frame.rows.begin + frame.rows.size() / frame.height * frame.height;
    if (frame.rows.empty()) continue;
    const LifeMap map = map_lives(file, run, 1, 2, frame, {});
    QVERIFY(map.read.empty());
    const RowIndex tall = frame.rows.size() / frame.height;
    for (int y = 0; y < frame.height; ++y) {
      for (int x = 0; x < frame.width; ++x) {
        const RowIndex first = frame.tokens.begin + x * frame.tokens.size() / frame.width;
        const RowIndex last =
            std::max(first + 1, frame.tokens.begin + (x + 1) * frame.tokens.size() / frame.width);
        std::int64_t born = 0;
        std::int64_t there = 0;
        for (RowIndex t = first; t < last; ++t) {
          for (RowIndex row = frame.rows.begin + y * tall; row < frame.rows.begin + (y + 1) * tall;
               ++row) {
            born += t <= row ? 1 : 0;
            there += held(deaths, t, row) ? 1 : 0;
          }
        }
        const auto pairs = static_cast<float>((last - first) * tall);
        const auto at = static_cast<std::size_t>(y * frame.width + x);
        QVERIFY(std::abs(map.born[at] - static_cast<float>(born) / pairs) < 1e-5F);
        QVERIFY(std::abs(map.held[at] - static_cast<float>(there) / pairs) < 1e-5F);
      }
    }
  }
}

void LivesTest::a_map_of_a_selector_shows_its_sampled_reads() {
  const LifetimesFile& file = *result_->lifetimes;
  const int run = run_of("quest");
  const auto& of = file.runs()[static_cast<std::size_t>(run)];
  QVERIFY(of.read_rows.size() > 10);
  const LifeFrame frame{{0, file.tokens()},
                        {0, file.tokens()},
                        static_cast<int>(file.tokens()),
                        static_cast<int>(file.tokens())};
  const LifeMap map = map_lives(file, run, 2, 1, frame, {});
  std::int64_t read = 0;
  std::int64_t unread = 0;
  for (std::size_t s = 0; s < of.read_rows.size(); s += 17) {
    const auto bits = file.reads(run, 2, 1, s);
    const RowIndex row = of.read_rows[s];
    for (RowIndex t = 0; t <= row; ++t) {
      const bool bit = ((bits[static_cast<std::size_t>(t / 8)] >> (t % 8)) & 1) != 0;
      (bit ? read : unread) += 1;
      const auto at = static_cast<std::size_t>(row * file.tokens() + t);
      QCOMPARE(map.read[at], bit ? 1.0F : 0.0F);
      QCOMPARE(map.held[at], 1.0F);
    }
  }
  QVERIFY(read > 0 && unread > 0);
}

void LivesTest::lives_are_those_of_the_file() {
  const LifetimesFile& file = *result_->lifetimes;
  const int run = run_of("h2o");
  const auto trace = Document().trace_of(*result_);
  QVERIFY(trace != nullptr);
  const auto deaths = file.deaths(run, 0, 1);
  const HeadAttention attention = attention_of_head(*trace, {0, 1, 3}, deaths);
  const std::int64_t gone =
      std::find_if(deaths.begin(), deaths.end(), [&](std::uint32_t d) { return d < 1000; }) -
      deaths.begin();
  const Life life = life_of(file, run, 0, 1, gone, &attention);
  QCOMPARE(life.death, RowIndex{deaths[static_cast<std::size_t>(gone)]});
  QCOMPARE(life.score, file.scores(run, 0, 1)[static_cast<std::size_t>(gone)]);
  QCOMPARE(life.rank, file.ranks(run, 0, 1)[static_cast<std::size_t>(gone)]);
  QVERIFY(life.rank >= 0 && !std::isnan(life.score));
  // What a token received and what was lost of it are all that it got from any row.
  const HeadAttention whole = attention_of_head(
      *trace, {0, 1, 3},
      std::vector<std::uint32_t>(deaths.size(), static_cast<std::uint32_t>(deaths.size())));
  QVERIFY(life.received > 0);
  QVERIFY(std::abs(life.received + life.lost - whole.received[static_cast<std::size_t>(gone)]) <
          1e-4F * whole.received[static_cast<std::size_t>(gone)]);
  QVERIFY(std::isnan(life_of(file, run, 0, 1, gone, nullptr).received));
}

void LivesTest::the_table_of_lives_reads_back() {
  const LifetimesFile& file = *result_->lifetimes;
  const int run = run_of("chunked(snapkv");
  const auto trace = Document().trace_of(*result_);
  const auto lines = parse_csv(csv_of_lives(file, run, 1, 0, trace.get(), nullptr));
  QCOMPARE(lines.size(), static_cast<std::size_t>(file.tokens()) + 1);
  const auto deaths = file.deaths(run, 1, 0);
  const auto scores = file.scores(run, 1, 0);
  for (std::size_t t = 0; t < deaths.size(); ++t) {
    const auto& line = lines[t + 1];
    QCOMPARE(line.size(), std::size_t{8});
    QCOMPARE(line[0], std::to_string(t));
    QCOMPARE(line[1], std::string(trace->token_text(static_cast<std::int64_t>(t))));
    const bool never = deaths[t] == deaths.size();
    QCOMPARE(line[3], never ? std::string() : std::to_string(deaths[t]));
    if (!line[4].empty()) QCOMPARE(std::stof(line[4]), scores[t]);
    QCOMPARE(line[4].empty(), std::isnan(scores[t]));
  }
}

void LivesTest::what_is_held_equals_a_walk_and_the_timeline() {
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

void LivesTest::heads_are_a_tree() {
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

void LivesTest::tokens_are_sorted_and_filtered() {
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

void LivesTest::kept_sets_equal_a_walk() {
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
void LivesTest::kept_sets_of_unequal_heads_compare_those_that_serve_the_same_queries() {
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

void LivesTest::kept_sets_of_other_traces_say_so() {
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

void LivesTest::the_lifetime_view_follows_and_leads_the_document() {
  const auto document = opened("h2o");
  QWidget window;
  View* view = make_lifetime_view(*document, &window);
  view->resize(920, 300);
  window.show();
  QVERIFY(wait_for(*view));
  const auto boxes = view->findChildren<QComboBox*>();
  QCOMPARE(boxes.size(), 2);
  QCOMPARE(boxes[0]->count(), result_->trace.layers());
  document->set_focus({1, 2, 40});
  QCOMPARE(boxes[0]->currentIndex(), 1);
  QCOMPARE(boxes[1]->currentIndex(), 2);
  QVERIFY(wait_for(*view));
  const auto line = view->findChild<QLabel*>();
  QVERIFY2(line->text().contains("token 40"), qPrintable(line->text()));
  const Life life = life_of(*result_->lifetimes, run_of("h2o"), 1, 2, 40, nullptr);
  QVERIFY(line->text().contains(life.death >= result_->trace.tokens
                                    ? QString("never evicted")
                                    : "evicted at row " + count_text(life.death)));
  QWidget* map = view->focusProxy();
  const RowIndex row = document->instant();
  QTest::keyClick(map, Qt::Key_Right);
  QCOMPARE(document->focus().token, std::int64_t{41});
  QTest::keyClick(map, Qt::Key_Up);
  QCOMPARE(document->instant(), row - 1);
  QTest::keyClick(map, Qt::Key_PageDown);
  QCOMPARE(document->focus().layer, 2);
  QCOMPARE(document->focus().head, 0);
  QTest::keyClick(map, Qt::Key_PageUp, Qt::ShiftModifier);
  QCOMPARE(document->focus().layer, 1);
  QTest::keyClick(map, Qt::Key_Plus);
  QVERIFY(document->zoom().size() < document->rows());
  QVERIFY(wait_for(*view));
  QTest::keyClick(map, Qt::Key_Home);
  QCOMPARE(document->zoom(), (Rows{0, document->rows()}));
  QTest::mouseClick(map, Qt::LeftButton, {}, map->rect().center());
  QVERIFY(document->focus().token > 41);
  QVERIFY(wait_for(*view));
  QTest::mousePress(map, Qt::LeftButton, {}, QPoint(300, 80));
  QTest::mouseMove(map, QPoint(500, 150));
  QTest::mouseRelease(map, Qt::LeftButton, {}, QPoint(500, 150));
  QVERIFY(document->zoom().size() < document->rows() * 2 / 3);
  QVERIFY(wait_for(*view));
  QCOMPARE(parse_csv(view->csv()).size(), static_cast<std::size_t>(result_->trace.tokens) + 1);
  document->close(result_);
  QVERIFY(view->csv().empty());
  view->grab();
}

void LivesTest::attention_can_be_shown_and_cancelled() {
  const auto document = opened("h2o");
  QWidget window;
  View* view = make_lifetime_view(*document, &window);
  view->resize(920, 300);
  window.show();
  QTest::keyClick(view->focusProxy(), Qt::Key_A);
  QVERIFY(!view->is_ready());
  QTest::keyClick(view->focusProxy(), Qt::Key_Escape);
  QVERIFY(wait_for(*view));
  QVERIFY(parse_csv(view->csv())[1][6].empty());
  QTest::keyClick(view->focusProxy(), Qt::Key_A);
  QVERIFY(wait_for(*view));
  const auto trace = document->trace_of(*result_);
  const HeadAttention whole =
      attention_of_head(*trace, {0, 0, 3}, result_->lifetimes->deaths(run_of("h2o"), 0, 0));
  const auto lines = parse_csv(view->csv());
  for (std::size_t t = 0; t < whole.lost.size(); t += 100) {
    QCOMPARE(std::stof(lines[t + 1][6]), whole.received[t]);
    QCOMPARE(std::stof(lines[t + 1][7]), whole.lost[t]);
  }
  document->set_focus({0, 0, 3});
  QVERIFY(view->findChild<QLabel*>()->text().contains("attention received"));
}

void LivesTest::the_resident_view_follows_and_leads_the_document() {
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

void LivesTest::the_kept_sets_panel_says_what_differs() {
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

void LivesTest::a_result_without_lifetimes_says_what_is_missing() {
  auto bare = std::make_shared<Result>(*result_);
  bare->lifetimes = nullptr;
  Document document;
  document.add(bare);
  QWidget window;
  View* lifetimes = make_lifetime_view(document, &window);
  View* resident = make_resident_view(document, &window);
  window.show();
  QVERIFY(wait_for(*lifetimes));
  QVERIFY(wait_for(*resident));
  QVERIFY(lifetimes->csv().empty());
  // How much is held is known from the timeline.
  const auto* heads = resident->findChild<QTreeView*>();
  QCOMPARE(static_cast<double>(
               heads->model()->index(0, HeadsModel::kEntries).data(Qt::EditRole).toLongLong()),
           document.current_run()->run().entries->at(document.instant()));
  bool said = false;
  for (const QLabel* label : resident->findChildren<QLabel*>()) {
    said = said || label->text().contains("--lifetimes FILE");
  }
  QVERIFY(said);
}

// Values are checked when they are asked for: here a death before the birth.
void LivesTest::without_the_trace_its_absence_is_told() {
  auto moved = std::make_shared<Result>(*result_);
  moved->path = "elsewhere.json";
  moved->trace.path = "no/such/trace.safetensors";
  Document document;
  document.add(moved);
  QWidget window;
  View* resident = make_resident_view(document, &window);
  window.show();
  QVERIFY(wait_for(*resident));
  QString why;
  QVERIFY(document.trace_of(*moved, &why) == nullptr);
  QVERIFY(!why.isEmpty());
  QVERIFY(resident->findChild<QLabel*>("no_text")->text().contains(why));
}

void LivesTest::damaged_lifetimes_are_one_sentence() {
  QFile good(work_folder().filePath("bundled.lifetimes.safetensors"));
  QVERIFY(good.open(QIODevice::ReadOnly));
  QByteArray bytes = good.readAll();
  std::uint64_t size = 0;
  std::memcpy(&size, bytes.constData(), sizeof size);
  const auto head = static_cast<qsizetype>(size) + 8;
  const auto header = nlohmann::json::parse(bytes.mid(8, head - 8).toStdString());
  const std::string name = "runs." + std::to_string(run_of("h2o")) + ".death";
  bytes.replace(head + header[name]["data_offsets"][0].get<qsizetype>() + 36, 4, QByteArray(4, 0));
  QFile bad(work_folder().filePath("damaged.lifetimes.safetensors"));
  QVERIFY(bad.open(QIODevice::WriteOnly));
  QVERIFY(bad.write(bytes) == bytes.size());
  bad.close();
  QFile text(bundled_result());
  QVERIFY(text.open(QIODevice::ReadOnly));
  auto json = nlohmann::json::parse(text.readAll().toStdString());
  json["files"]["lifetimes"] = bad.fileName().toStdString();
  QFile changed(work_folder().filePath("damaged.json"));
  QVERIFY(changed.open(QIODevice::WriteOnly));
  changed.write(QByteArray::fromStdString(json.dump()));
  changed.close();

  Document document;
  document.add(open_result(changed.fileName().toStdString()));
  document.set_current(run_of("h2o"));
  QWidget window;
  View* lifetimes = make_lifetime_view(document, &window);
  View* resident = make_resident_view(document, &window);
  QWidget* sets = make_kept_sets(document, &window);
  window.show();
  QVERIFY(wait_for(*lifetimes));
  QVERIFY(wait_for(*resident));
  QVERIFY(QTest::qWaitFor([&] { return sets->property("ready").toBool(); }, 20'000));
  document.set_focus({0, 0, 9});
  QVERIFY(wait_for(*lifetimes));
  QVERIFY(wait_for(*resident));
  QVERIFY(QTest::qWaitFor([&] { return sets->property("ready").toBool(); }, 20'000));
  for (const QWidget* widget : std::initializer_list<QWidget*>{lifetimes, resident, sets}) {
    bool said = false;
    for (const QLabel* label : widget->findChildren<QLabel*>()) {
      said = said ||
             label->text().contains(QString::fromStdString(name) + "': layer 0, head 0, token 9");
    }
    QVERIFY(said);
  }
  lifetimes->grab();
  document.set_focus({1, 0, 9});  // the other heads are sound
  QVERIFY(wait_for(*lifetimes));
  QVERIFY(lifetimes->findChild<QLabel*>()->text().startsWith("token 9"));
}

void LivesTest::hidden_views_catch_up_when_they_are_shown() {
  const auto document = opened("h2o");
  QWidget window;
  View* resident = make_resident_view(*document, &window);
  QWidget* sets = make_kept_sets(*document, &window);
  window.show();
  QVERIFY(wait_for(*resident));
  resident->hide();
  sets->hide();
  document->set_selection({700, 701});
  document->set_focus({2, 2, 5});
  document->close(result_);
  document->set_focus({});
  document->add(result_);
  document->set_current(run_of("quest"));
  document->set_baseline(run_of("h2o"));
  document->set_selection({700, 701});
  QVERIFY(resident->is_ready());
  resident->show();
  sets->show();
  QVERIFY(wait_for(*resident));
  QVERIFY(QTest::qWaitFor([&] { return sets->property("ready").toBool(); }, 20'000));
  const auto* heads = resident->findChild<QTreeView*>();
  QCOMPARE(static_cast<double>(
               heads->model()->index(0, HeadsModel::kEntries).data(Qt::EditRole).toLongLong()),
           document->current_run()->run().entries->at(700));
  QVERIFY(sets->findChild<QLabel*>()->text().startsWith("Row 700"));
}

// For a person to look at: both views as the window shows them, and as they are exported.
void LivesTest::pictures() {
  for (const char* run : {"h2o", "quest", "chunked(snapkv"}) {
    for (const bool dark : {false, true}) {
      set_theme(dark);
      const auto document = opened(run);
      document->set_selection({800, 1200});
      document->set_focus({1, 0, 300});
      QWidget window;
      for (View* view :
           {make_lifetime_view(*document, &window), make_resident_view(*document, &window)}) {
        view->resize(920, 300);
        window.resize(920, 300);
        window.show();
        QVERIFY(wait_for(*view));
        const QString name =
            QString("%1-%2-%3")
                .arg(view->name(), QString(run).remove('('), dark ? "dark" : "light");
        QVERIFY(view->grab().save(picture_folder().filePath(name + "-window.png")));
        export_view(*view, picture_folder().filePath(name + ".png"), {920, 300}, 1);
        QImage picture(picture_folder().filePath(name + ".png"));
        QCOMPARE(picture.size(), QSize(920, 300));
        if (view->name() == "resident" && QString(run) == "h2o") {
          document->set_focus({-1, -1, 300});
          QVERIFY(wait_for(*view));
          for (QToolButton* button : view->findChildren<QToolButton*>()) {
            if (button->text() == "Table") button->click();
          }
          QVERIFY(view->findChild<QTableView*>()->isVisible());
          QVERIFY(view->grab().save(picture_folder().filePath(name + "-table-window.png")));
        }
        if (view->name() == "lifetimes" && QString(run) == "h2o") {
          QTest::keyClick(view->focusProxy(), Qt::Key_A);
          QVERIFY(wait_for(*view));
          QVERIFY(view->grab().save(picture_folder().filePath(name + "-attention-window.png")));
          export_view(*view, picture_folder().filePath(name + "-attention.png"), {1280, 800}, 1);
          QVERIFY(wait_for(*view));
        }
        view->hide();
      }
    }
  }
  set_theme(false);
}

KVSPAN_GUI_TEST(LivesTest, "lives");

}  // namespace kvspan::gui::test

#include "lives_test.moc"
