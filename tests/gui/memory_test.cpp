// SPDX-License-Identifier: Apache-2.0
#include <QCheckBox>
#include <QComboBox>
#include <QLabel>
#include <QSignalSpy>
#include <cmath>
#include <numeric>
#include <random>

#include <nlohmann/json.hpp>

#include "gui/model/columns.h"
#include "gui/model/csv.h"
#include "gui/model/stacking.h"
#include "gui/paint/theme.h"
#include "gui/paint/time_chart.h"
#include "gui/views/view.h"
#include "sim/trace/safetensors.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {
namespace {

constexpr std::array kStacks{Stack::layer, Stack::head_class, Stack::state};

// A view in a window of its own.
struct Shown {
  explicit Shown(View* (*make)(Document&, QWidget*), const QSize& size = {920, 400}) {
    view.reset(make(document, nullptr));
    view->resize(size);
    view->show();
  }
  void open(const QString& path) { document.add(open_result(path.toStdString())); }
  [[nodiscard]] TimeChart& chart() const { return *view->findChild<TimeChart*>(); }
  [[nodiscard]] QWidget* canvas() const { return chart().canvas(); }
  [[nodiscard]] QPoint at(double row, double height = 0.5) const {
    const QRectF area = chart().plot_area();
    return QPointF(chart().x_of(row + 0.5), area.top() + height * area.height()).toPoint();
  }
  void wheel(const QPoint& at, const QPoint& delta,
             Qt::KeyboardModifiers keys = Qt::NoModifier) const {
    QWheelEvent event(at, canvas()->mapToGlobal(at), {}, delta, Qt::NoButton, keys,
                      Qt::NoScrollPhase, false);
    QApplication::sendEvent(canvas(), &event);
  }
  void drag(const QPoint& from, const QPoint& to, Qt::MouseButton button = Qt::LeftButton) const {
    QTest::mousePress(canvas(), button, {}, from);
    QMouseEvent move(QEvent::MouseMove, to, canvas()->mapToGlobal(to), Qt::NoButton, button, {});
    QApplication::sendEvent(canvas(), &move);
    QTest::mouseRelease(canvas(), button, {}, to);
  }
  void key(int key, Qt::KeyboardModifiers keys = Qt::NoModifier) const {
    QTest::keyClick(view->focusProxy()->focusProxy(), static_cast<Qt::Key>(key), keys);
  }
  void picture(const QString& name) const {
    QTest::qWait(250);  // until it is smooth
    QVERIFY(view->grab().save(picture_folder().filePath(name)));
  }
  Document document;
  std::unique_ptr<View> view;
};

}  // namespace

class MemoryTest : public QObject {
  Q_OBJECT
 private slots:
  void peaks_of_lines_are_those_of_the_json();
  void the_wheel_zooms_around_the_cursor_and_pans();
  void a_drag_selects_the_rows_under_the_cursor();
  void clicks_select_instants_runs_and_zooms();
  void keys_do_what_the_mouse_does();
  void the_bar_and_the_keys_change_the_display();
  void lines_are_smooth_only_when_still();
  void tiny_results_have_charts();
  void views_say_what_is_missing();
  void the_difference_of_two_runs_is_shown();
  void pictures_of_every_state();
};

void MemoryTest::peaks_of_lines_are_those_of_the_json() {
  const ResultPtr result = open_result(bundled_result().toStdString());
  for (std::size_t r = 0; r < result->runs.size(); ++r) {
    const ShownRun shown{result, r};
    const Measure bytes = measure_of(shown, Quantity::bytes);
    QCOMPARE(bytes.at(peak_row(shown)), figure(shown.run(), "peak_bytes.total"));
    QCOMPARE(bytes.series->over(0, bytes.series->rows()).high, bytes.at(peak_row(shown)));
    const Measure share = measure_of(shown, Quantity::percent);
    const double most = share.series->over(0, share.series->rows()).high * share.scale;
    QVERIFY(std::abs(most - *figure(shown.run(), "peak_kv")) < 1e-12);
  }
}

void MemoryTest::the_wheel_zooms_around_the_cursor_and_pans() {
  Shown shown(make_memory_view);
  shown.open(bundled_result());
  const RowIndex all = shown.document.rows();
  const QPoint at = shown.at(600);
  const auto row_under = [&] {
    const Rows zoom = shown.document.zoom();
    const QRectF area = shown.chart().plot_area();
    return static_cast<double>(zoom.begin) +
           (at.x() - area.left()) / area.width() * static_cast<double>(zoom.size());
  };
  for (int i = 0; i < 5; ++i) {
    const double before = row_under();
    const RowIndex size = shown.document.zoom().size();
    shown.wheel(at, {0, 120});
    QVERIFY(shown.document.zoom().size() < size);
    QVERIFY(std::abs(row_under() - before) <= 1);
  }
  const Rows near = shown.document.zoom();
  shown.wheel(at, {0, -120}, Qt::ShiftModifier);
  QCOMPARE(shown.document.zoom().size(), near.size());
  QVERIFY(shown.document.zoom().begin > near.begin);
  shown.wheel(at, {120, 0});
  QVERIFY(shown.document.zoom().begin <= near.begin + 1);
  const Rows before = shown.document.zoom();
  shown.drag(at, at - QPoint(100, 0), Qt::RightButton);
  const double rows_per_pixel =
      static_cast<double>(before.size()) / shown.chart().plot_area().width();
  QCOMPARE(shown.document.zoom().begin - before.begin, std::llround(100 * rows_per_pixel));
  for (int i = 0; i < 60; ++i) shown.wheel(at, {0, -120});
  QCOMPARE(shown.document.zoom(), (Rows{0, all}));
  // Steps too small for a row add up.
  shown.document.set_zoom({600, 604});
  for (int i = 0; i < 200 && shown.document.zoom().size() == 4; ++i) shown.wheel(at, {0, 5});
  QVERIFY(shown.document.zoom().size() < 4);
}

void MemoryTest::a_drag_selects_the_rows_under_the_cursor() {
  Shown shown(make_memory_view);
  shown.open(bundled_result());
  shown.document.set_zoom({400, 700});
  shown.drag(shown.at(450), shown.at(520));
  QCOMPARE(shown.document.selection(), (Rows{450, 521}));
  shown.drag(shown.at(640), shown.at(600));
  QCOMPARE(shown.document.selection(), (Rows{600, 641}));
  const Run& run = shown.document.current_run()->run();
  const auto label = shown.view->findChild<QLabel*>();
  QVERIFY(label->text().contains("rows 600 to 640"));
  QVERIFY(label->text().contains(bytes_text(run.bytes->at(600))));
  QVERIFY(label->text().contains(
      difference_text(Quantity::bytes, run.bytes->at(640) - run.bytes->at(600))));
  // Beyond the edge of the chart: up to its last row.
  shown.drag(shown.at(650), shown.at(650) + QPoint(5000, 0));
  QCOMPARE(shown.document.selection(), (Rows{650, 700}));
}

void MemoryTest::clicks_select_instants_runs_and_zooms() {
  Shown shown(make_memory_view);
  shown.open(bundled_result());
  shown.document.set_zoom({400, 700});
  QTest::mouseClick(shown.canvas(), Qt::LeftButton, {}, shown.at(555, 0.02));
  QCOMPARE(shown.document.selection(), (Rows{555, 556}));
  shown.document.set_selection({450, 500});
  for (const Rows wanted : {Rows{450, 500}, Rows{0, shown.document.rows()}}) {
    QTest::mouseClick(shown.canvas(), Qt::LeftButton, {}, shown.at(480, 0.02));
    QTest::mouseDClick(shown.canvas(), Qt::LeftButton, {}, shown.at(480, 0.02));
    QCOMPARE(shown.document.zoom(), wanted);
    shown.document.set_selection({600, 700});  // elsewhere: the next one shows all
  }
  // Every run can be chosen by its line, wherever no other one is as near.
  for (std::size_t r = 0; r < shown.document.runs().size(); ++r) {
    for (std::size_t other = 0; other < shown.document.runs().size(); ++other) {
      shown.document.set_visible(other, other == r);
    }
    bool chosen = false;
    const QRectF area = shown.chart().plot_area();
    shown.document.set_current(r == 0 ? 1 : 0);
    for (double y = area.top() + 4; y < area.bottom() && !chosen; y += 6) {
      const QPoint at(shown.at(300).x(), static_cast<int>(y));
      QTest::mouseClick(shown.canvas(), Qt::LeftButton, {}, at);
      chosen = shown.document.current() == static_cast<int>(r);
    }
    QVERIFY(chosen);
  }
}

void MemoryTest::keys_do_what_the_mouse_does() {
  Shown shown(make_memory_view);
  shown.open(bundled_result());
  Document& document = shown.document;
  document.set_zoom({400, 700});
  document.set_selection({500, 501});
  shown.key(Qt::Key_Right);
  QCOMPARE(document.selection(), (Rows{501, 502}));
  shown.key(Qt::Key_Right, Qt::ShiftModifier);
  shown.key(Qt::Key_PageDown, Qt::ShiftModifier);
  QCOMPARE(document.selection(), (Rows{501, 533}));
  shown.key(Qt::Key_Left, Qt::ShiftModifier);
  QCOMPARE(document.selection(), (Rows{501, 532}));
  shown.key(Qt::Key_Left);
  QCOMPARE(document.selection(), (Rows{500, 531}));
  shown.key(Qt::Key_Return);
  QCOMPARE(document.zoom(), (Rows{500, 531}));
  shown.key(Qt::Key_Right, Qt::ControlModifier);
  QCOMPARE(document.zoom(), (Rows{503, 534}));
  shown.key(Qt::Key_Minus);
  QVERIFY(document.zoom().size() > 31);
  shown.key(Qt::Key_Plus);
  shown.key(Qt::Key_P);
  const RowIndex peak = peak_row(*document.current_run());
  QCOMPARE(document.selection(), (Rows{peak, peak + 1}));
  QVERIFY(document.zoom().begin <= peak && peak < document.zoom().end);
  shown.key(Qt::Key_Home);
  QCOMPARE(document.zoom(), (Rows{0, document.rows()}));
  document.set_selection({0, 1});
  shown.key(Qt::Key_Left);
  QCOMPARE(document.selection(), (Rows{0, 1}));
  document.set_current(1);
  document.set_visible(2, false);
  shown.key(Qt::Key_Down);
  QCOMPARE(document.current(), 3);
  shown.key(Qt::Key_Up);
  QCOMPARE(document.current(), 1);
}

void MemoryTest::the_bar_and_the_keys_change_the_display() {
  Shown shown(make_memory_view);
  shown.open(bundled_result());
  const auto& display = shown.document.display();
  const std::array keys{
      std::pair(Qt::Key_E, Quantity::entries), std::pair(Qt::Key_B, Quantity::bytes),
      std::pair(Qt::Key_Percent, Quantity::percent), std::pair(Qt::Key_M, Quantity::mass)};
  const auto lists = shown.view->findChildren<QComboBox*>();
  for (const auto& [key, quantity] : keys) {
    shown.key(key);
    QCOMPARE(display.quantity, quantity);
    QCOMPARE(lists[0]->currentIndex(), static_cast<int>(quantity));
  }
  shown.key(Qt::Key_L);
  QVERIFY(display.log && shown.view->findChild<QCheckBox*>()->isChecked());
  for (const Stack stack : {Stack::layer, Stack::head_class, Stack::state, Stack::none}) {
    shown.key(Qt::Key_S);
    QCOMPARE(display.stack, stack);
    QCOMPARE(lists[1]->currentIndex(), static_cast<int>(stack));
  }
}

void MemoryTest::lines_are_smooth_only_when_still() {
  Shown shown(make_memory_view);
  shown.open(bundled_result());
  QTest::qWait(200);
  const auto colours = [&] {
    const QImage image = shown.canvas()->grab(shown.chart().plot_area().toRect()).toImage();
    QSet<QRgb> found;
    for (int y = 0; y < image.height(); ++y) {
      for (int x = 0; x < image.width(); ++x) found.insert(image.pixel(x, y));
    }
    return found.size();
  };
  QVERIFY(!shown.chart().moving());
  shown.wheel(shown.at(600), {0, 120});
  QVERIFY(shown.chart().moving());
  const auto moving = colours();
  QTRY_VERIFY(!shown.chart().moving());
  QVERIFY(colours() > moving);
  // Dashes of the ninth colour are dashes.
  const auto ink = [&](int slot) {
    for (std::size_t r = 0; r < shown.document.runs().size(); ++r) {
      shown.document.set_visible(r, r == 0);
    }
    shown.document.set_colour(0, slot);
    const QImage image = shown.canvas()->grab(shown.chart().plot_area().toRect()).toImage();
    double sum = 0;
    for (int y = 0; y < image.height(); ++y) {
      for (int x = 0; x < image.width(); ++x) {
        sum += qGray(image.pixel(x, y)) < 128 ? 1 : 0;
      }
    }
    return sum;
  };
  const double solid = ink(0);
  const double dashed = ink(8);
  QVERIFY2(dashed > 0.5 * solid && dashed < 0.8 * solid,
           qPrintable(QString::number(dashed / solid)));
  for (std::size_t r = 0; r < shown.document.runs().size(); ++r)
    shown.document.set_visible(r, true);
  const auto width = static_cast<std::size_t>(shown.chart().plot_area().width());
  for (std::size_t i = 0; i < shown.document.runs().size(); ++i) {
    QVERIFY(shown.chart().points(i) > 0);
    QVERIFY(shown.chart().points(i) <= 2 * width);
  }
}

void MemoryTest::tiny_results_have_charts() {
  for (const std::uint32_t tokens : {1U, 2U, 3U}) {
    Shown shown(make_memory_view);
    shown.open(result_of_deaths("tiny.safetensors", std::vector<std::uint32_t>(tokens, tokens)));
    QCOMPARE(shown.document.zoom(), (Rows{0, tokens}));
    for (const int key : {Qt::Key_Plus, Qt::Key_Minus, Qt::Key_Right, Qt::Key_Left, Qt::Key_P,
                          Qt::Key_L, Qt::Key_S, Qt::Key_E, Qt::Key_Percent}) {
      shown.key(key);
      shown.wheel(shown.at(0), {0, 120});
      shown.wheel(shown.at(0), {0, -120}, Qt::ShiftModifier);
      shown.drag(shown.at(0), shown.at(tokens));
      QVERIFY(!shown.view->grab().isNull());
    }
    QCOMPARE(parse_csv(shown.view->csv()).size(),
             static_cast<std::size_t>(shown.document.zoom().size()) + 1);
    export_view(*shown.view, work_folder().filePath("tiny.png"), {400, 300}, 1);
  }
}

void MemoryTest::views_say_what_is_missing() {
  Shown shown(make_memory_view);
  QVERIFY(!shown.view->grab().isNull());
  QCOMPARE(shown.view->csv(), "row\n");
  const auto ink = [&] {  // pixels that are not paper
    const QImage image = shown.canvas()->grab().toImage();
    int count = 0;
    for (int y = 0; y < image.height(); ++y) {
      for (int x = 0; x < image.width(); ++x) count += image.pixel(x, y) != theme().paper.rgb();
    }
    return count;
  };
  QVERIFY(ink() > 100);
  shown.key(Qt::Key_Right);
  shown.wheel({100, 100}, {0, 120});
  shown.open(bundled_json_alone());
  QVERIFY(shown.document.current_run()->run().heads_over_time.empty());
  const int lines = ink();
  shown.document.set_display({.stack = Stack::layer});
  const Stacking stacking(*shown.document.current_run(), Quantity::bytes, Stack::layer);
  QVERIFY(stacking.missing().contains("--timeline"));
  QVERIFY(ink() > 100 && ink() < lines);
  shown.document.set_display({});
  for (std::size_t r = 0; r < shown.document.runs().size(); ++r)
    shown.document.set_visible(r, false);
  QVERIFY(ink() > 100 && ink() < lines);
  QCOMPARE(parse_csv(shown.view->csv())[0].size(), std::size_t{1});
  shown.document.close(shown.document.runs()[0].result);
  QVERIFY(ink() > 100);
}

void MemoryTest::the_difference_of_two_runs_is_shown() {
  Shown shown(make_compare_view, {920, 320});
  QVERIFY(shown.view->is_ready());
  shown.open(bundled_result());
  shown.document.set_baseline(0);
  shown.document.set_current(2);
  QTRY_VERIFY(shown.view->is_ready());
  QVERIFY(shown.chart().points(0) > 0);
  const auto lines = parse_csv(shown.view->csv());
  QCOMPARE(lines.size(), static_cast<std::size_t>(shown.document.rows()) + 1);
  const Run& base = shown.document.baseline_run()->run();
  const Run& run = shown.document.current_run()->run();
  for (std::size_t i = 1; i < lines.size(); ++i) {
    const RowIndex row = std::stol(lines[i][0]);
    QCOMPARE(std::stod(lines[i][1]), base.bytes->at(row));
    QCOMPARE(std::stod(lines[i][2]), run.bytes->at(row));
    QCOMPARE(std::stod(lines[i][3]), run.bytes->at(row) - base.bytes->at(row));
  }
  shown.document.set_zoom({550, 750});
  shown.drag(shown.at(600), shown.at(700));
  QCOMPARE(shown.document.selection(), (Rows{600, 701}));
  shown.document.zoom_out();
  shown.picture("compare.png");
  shown.key(Qt::Key_X);
  QCOMPARE(shown.document.current(), 0);
  QCOMPARE(shown.document.baseline(), 2);
  QTRY_VERIFY(shown.view->is_ready());
  export_view(*shown.view, picture_folder().filePath("compare.export.png"), {900, 500}, 1);
  shown.document.close(shown.document.runs()[0].result);
  QVERIFY(shown.view->is_ready());
}

void MemoryTest::pictures_of_every_state() {
  Shown shown(make_memory_view);
  shown.open(bundled_result());
  shown.document.set_current(3);
  shown.picture("memory.png");
  shown.drag(shown.at(600), shown.at(700));
  QTest::mouseMove(shown.canvas(), shown.at(760));
  QMouseEvent move(QEvent::MouseMove, shown.at(760), {}, Qt::NoButton, Qt::NoButton, {});
  QApplication::sendEvent(shown.canvas(), &move);
  shown.picture("memory.hover.png");
  shown.document.set_display({.quantity = Quantity::entries, .log = true});
  shown.picture("memory.log.png");
  shown.document.set_display({.quantity = Quantity::mass});
  shown.picture("memory.mass.png");
  shown.document.set_display({.quantity = Quantity::percent});
  shown.document.set_zoom({490, 540});
  shown.picture("memory.zoom.png");
  shown.document.zoom_out();
  for (const Stack stack : kStacks) {
    for (const Quantity quantity : {Quantity::entries, Quantity::bytes}) {
      shown.document.set_display({.quantity = quantity, .stack = stack});
      shown.picture(QString("memory.stack%1.%2.png")
                        .arg(static_cast<int>(stack))
                        .arg(static_cast<int>(quantity)));
    }
  }
  shown.document.set_display({});
  set_theme(true);
  shown.picture("memory.dark.png");
  export_view(*shown.view, picture_folder().filePath("memory.export.dark.png"), {1280, 800}, 1);
  set_theme(false);
  const QString svg = picture_folder().filePath("memory.svg");
  export_view(*shown.view, svg, {900, 500}, 1);
  QFile file(svg);
  QVERIFY(file.open(QIODevice::ReadOnly));
  const QByteArray text = file.readAll();
  QVERIFY(text.contains("streaming_llm") && text.contains("Memory (MiB)"));
  QVERIFY(!text.contains("<image"));
  const QString csv = work_folder().filePath("memory.csv");
  export_view(*shown.view, csv, {}, 1);
  QFile numbers(csv);
  QVERIFY(numbers.open(QIODevice::ReadOnly));
  QCOMPARE(numbers.readAll().toStdString(), memory_csv(shown.document));
}

KVSPAN_GUI_TEST(MemoryTest, "memory");

}  // namespace kvspan::gui::test

#include "memory_test.moc"
