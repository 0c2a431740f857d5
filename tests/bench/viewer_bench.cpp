// SPDX-License-Identifier: Apache-2.0
// Frames of the viewer's memory view, without a display, on a timeline of a million rows and 20
// runs that is made up once (in a temporary folder): opening, the first paint, zooming and panning,
// each frame painted whole into a picture. Goals at 1280 x 800 on two cores: open < 1 s, p95 < 33
// ms.
//
// Counters: p50, p95, max over the frames in ms; the same p95 of processor time, which other
// programs disturb less; points of the longest line per pixel column; MiB: resident memory of the
// process, what of the file is (its pages that were touched), and all of the file.
#include <QApplication>
#include <QChart>
#include <QChartView>
#include <QImage>
#include <QLineSeries>
#include <QMouseEvent>
#include <QPainter>
#include <QTemporaryDir>
#include <QValueAxis>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <malloc.h>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "gui/paint/time_chart.h"
#include "gui/views/view.h"
#include "sim/report/timeline_writer.h"

namespace kvspan::gui {
namespace {

using Clock = std::chrono::steady_clock;

constexpr RowIndex kRows = 1'000'000;
constexpr RowIndex kPrompt = 700'000;
constexpr int kRuns = 20;
constexpr QSize kWindow(1280, 800);

// Every series goes up and falls at random, so that no column is flat.
const std::string& timeline_file() {
  static const QTemporaryDir folder;
  static const std::string path = [] {
    RunReport report;
    report.trace.tokens = kRows;
    report.trace.prompt_tokens = kPrompt;
    report.chunk = 8192;
    report.trace.layer_ids = {0};
    report.trace.model_layers = report.trace.layers = 1;
    std::mt19937 random(1);
    for (int r = 0; r < kRuns; ++r) {
      RunResult& run = report.runs.emplace_back();
      run.spec = run.label = "made(" + std::to_string(r) + ")";
      run.ledger.layers = run.ledger.heads = 1;
      run.ledger.plan.tokens = kRows;
      run.ledger.representations = {{}};
      run.ledger.death.assign(kRows, kRows);
      Timeline& line = run.metrics.timeline;
      std::int64_t held = 0;
      for (RowIndex row = 0; row < kRows; ++row) {
        held += static_cast<std::int64_t>(random() % 8);
        if (held > 4 * (r + 5) * (row / 50 + 1000))
          held -= static_cast<std::int64_t>(random()) % (held / 2);
        line.resident_entries.push_back(held);
        line.resident_bytes.push_back(256 * held);
        line.overhead_bytes.push_back(0);
        line.host_bytes.push_back(0);
        line.active_entries.push_back(held / 2);
      }
    }
    std::string name = folder.filePath("bench.timeline.safetensors").toStdString();
    write_timeline(report, name);
    report = {};
    malloc_trim(0);  // what is resident later is the viewer's
    return name;
  }();
  return path;
}

// MiB that are resident: of the process, or of what it has mapped of a file.
double resident_mib(const std::string& file = {}) {
  std::ifstream maps("/proc/self/smaps");
  double kib = 0;
  bool counts = file.empty();
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words(line);
    std::string key;
    words >> key;
    if (!key.empty() && key.back() != ':') {  // the line of a mapping
      counts = file.empty() || line.find(file) != line.npos;
    } else if (key == "Rss:" && counts) {
      double value = 0;
      words >> value;
      kib += value;
    }
  }
  return kib / 1024;
}

void count_memory(benchmark::State& state) {
  state.counters["MiB"] = resident_mib();
  state.counters["MiB of file"] = resident_mib(timeline_file());
  state.counters["MiB whole"] =
      static_cast<double>(std::filesystem::file_size(timeline_file())) / (1 << 20);
}

class Window {
 public:
  explicit Window(View* (*make)(Document&, QWidget*) = make_memory_view)
      : view_(make(document, nullptr)), image_(kWindow, QImage::Format_RGB32) {
    view_->resize(kWindow);
    view_->show();
  }
  void frame() {
    QCoreApplication::processEvents(QEventLoop::ExcludeUserInputEvents);
    view_->render(&image_);
  }
  [[nodiscard]] TimeChart& chart() const { return *view_->findChild<TimeChart*>(); }
  Document document;

 private:
  std::unique_ptr<View> view_;
  QImage image_;
};

// Times `frames` calls of step(i) and the frame after it.
template <class Step>
void time_frames(benchmark::State& state, Window& window, const Step& step) {
  std::vector<double> times;
  std::vector<double> processor;
  int i = 0;
  for (auto _ : state) {
    const std::clock_t used = std::clock();
    const auto begin = Clock::now();
    step(i++);
    window.frame();
    times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    processor.push_back(static_cast<double>(std::clock() - used) / CLOCKS_PER_SEC);
    state.SetIterationTime(times.back());
  }
  const auto at = [](std::vector<double>& list, double share) {
    std::sort(list.begin(), list.end());
    return 1e3 * list[static_cast<std::size_t>(share * static_cast<double>(list.size() - 1))];
  };
  state.counters["p50 ms"] = at(times, 0.5);
  state.counters["p95 ms"] = at(times, 0.95);
  state.counters["max ms"] = at(times, 1);
  state.counters["p95 processor"] = at(processor, 0.95);
  std::size_t points = 0;
  for (int line = 0; line < kRuns; ++line) {
    if (window.document.display().stack == Stack::none) {
      points = std::max(points, window.chart().points(static_cast<std::size_t>(line)));
    }
  }
  state.counters["points/column"] =
      static_cast<double>(points) / window.chart().plot_area().width();
  count_memory(state);
}

void open(benchmark::State& state) {
  (void)timeline_file();
  for (auto _ : state) {
    const auto begin = Clock::now();
    benchmark::DoNotOptimize(open_result(timeline_file()));
    state.SetIterationTime(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  count_memory(state);
}

void open_and_first_paint(benchmark::State& state) {
  for (auto _ : state) {
    Window window;
    window.frame();
    const auto begin = Clock::now();
    window.document.add(open_result(timeline_file()));
    window.frame();
    state.SetIterationTime(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  count_memory(state);
}

// From all rows to 200 and back, 100 steps each way.
Rows zoom_at(int i) {
  const int step = i % 200;
  const double share = std::pow(2e-4, (step < 100 ? step : 200 - step) / 100.0);
  const auto size = static_cast<RowIndex>(share * kRows);
  const auto begin = static_cast<RowIndex>(0.6 * static_cast<double>(kRows - size));
  return {begin, begin + size};
}

void zoom(benchmark::State& state, const Display& display) {
  Window window;
  window.document.add(open_result(timeline_file()));
  window.document.set_display(display);
  time_frames(state, window, [&](int i) { window.document.set_zoom(zoom_at(i)); });
}

void pan(benchmark::State& state, RowIndex size) {
  Window window;
  window.document.add(open_result(timeline_file()));
  time_frames(state, window, [&](int i) {
    const RowIndex begin = (kRows - size) / 300 * (i % 300);
    window.document.set_zoom({begin, begin + size});
  });
}

// The mouse over lines that are still: a frame of the crosshair alone.
void hover(benchmark::State& state) {
  Window window;
  window.document.add(open_result(timeline_file()));
  const QRectF area = window.chart().plot_area();
  time_frames(state, window, [&](int i) {
    const QPointF at(area.left() + (i * 7) % static_cast<int>(area.width()), area.center().y());
    QMouseEvent move(QEvent::MouseMove, at, at, Qt::NoButton, Qt::NoButton, Qt::NoModifier);
    QApplication::sendEvent(window.chart().canvas(), &move);
  });
}

// The first frame after it has come to rest.
void still(benchmark::State& state) {
  Window window;
  window.document.add(open_result(timeline_file()));
  time_frames(state, window, [&](int i) {
    window.document.set_display({.log = i % 2 == 1});  // not a move: smooth at once
  });
}

// The levels of a difference, which the comparison makes in the background.
void difference(benchmark::State& state) {
  const ResultPtr result = open_result(timeline_file());
  for (auto _ : state) {
    const auto begin = Clock::now();
    benchmark::DoNotOptimize(series_of_difference(
        {result->runs[0].bytes, 1}, {result->runs[1].bytes, 1}, [] { return false; }));
    state.SetIterationTime(std::chrono::duration<double>(Clock::now() - begin).count());
  }
}

// What the item replaces: the same points as QLineSeries, one a run.
void zoom_with_line_series(benchmark::State& state) {
  const ResultPtr result = open_result(timeline_file());
  QChartView view;
  QChart& chart = *view.chart();
  chart.legend()->hide();
  QValueAxis x;
  QValueAxis y;
  chart.addAxis(&x, Qt::AlignBottom);
  chart.addAxis(&y, Qt::AlignLeft);
  std::vector<QLineSeries*> lines;
  for (int r = 0; r < kRuns; ++r) {
    lines.push_back(new QLineSeries);
    chart.addSeries(lines.back());
    lines.back()->attachAxis(&x);
    lines.back()->attachAxis(&y);
  }
  view.resize(kWindow);
  view.show();
  QImage image(kWindow, QImage::Format_RGB32);
  int i = 0;
  std::vector<double> times;
  for (auto _ : state) {
    const auto begin = Clock::now();
    const Rows rows = zoom_at(i++);
    double high = 0;
    for (std::size_t r = 0; r < lines.size(); ++r) {
      const auto points = sample_line({result->runs[r].bytes, 1}, Columns(rows, 1198));
      for (const QPointF& point : points) high = std::max(high, point.y());
      lines[r]->replace(QList<QPointF>(points.begin(), points.end()));
    }
    x.setRange(static_cast<double>(rows.begin), static_cast<double>(rows.end));
    y.setRange(0, high);
    QCoreApplication::processEvents(QEventLoop::ExcludeUserInputEvents);
    static_cast<QWidget&>(view).render(&image);
    times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    state.SetIterationTime(times.back());
  }
  std::sort(times.begin(), times.end());
  state.counters["p50 ms"] = 1e3 * times[times.size() / 2];
  state.counters["p95 ms"] = 1e3 * times[times.size() * 95 / 100];
  state.counters["max ms"] = 1e3 * times.back();
  for (QLineSeries* line : lines) chart.removeSeries(line);
  chart.removeAxis(&x);
  chart.removeAxis(&y);
  qDeleteAll(lines);
}

benchmark::internal::Benchmark* in_ms(benchmark::internal::Benchmark* bench, int times) {
  return bench->UseManualTime()->Iterations(times)->Unit(benchmark::kMillisecond);
}

void add_all() {
  const auto add = [](const char* name, auto function, int times) {
    in_ms(benchmark::RegisterBenchmark(name, function), times);
  };
  add("open", open, 5);
  add("open_and_first_paint", open_and_first_paint, 5);
  add(
      "pan/all_but_a_tenth", [](benchmark::State& state) { pan(state, kRows * 9 / 10); }, 300);
  add(
      "pan/20000_rows", [](benchmark::State& state) { pan(state, 20'000); }, 300);
  add(
      "zoom/bytes", [](benchmark::State& state) { zoom(state, {}); }, 300);
  add(
      "zoom/log", [](benchmark::State& state) { zoom(state, {.log = true}); }, 300);
  add(
      "zoom/stack", [](benchmark::State& state) { zoom(state, {.stack = Stack::state}); }, 300);
  add("hover", hover, 300);
  add("still", still, 50);
  add("difference", difference, 10);
  add("zoom/line_series", zoom_with_line_series, 100);
}

}  // namespace
}  // namespace kvspan::gui

int main(int argc, char** argv) {
  qputenv("QT_QPA_PLATFORM", "offscreen");
  QApplication app(argc, argv);
  benchmark::Initialize(&argc, argv);
  kvspan::gui::add_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
