// SPDX-License-Identifier: Apache-2.0
// kvspan-viewer: the window, and without a display its pictures.
#include <QApplication>
#include <QDir>
#include <QElapsedTimer>
#include <QEventLoop>
#include <QStandardPaths>
#include <QStyleFactory>
#include <QTimer>
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "gui/model/session.h"
#include "gui/paint/theme.h"
#include "gui/window/main_window.h"
#include "gui/window/map_guard.h"
#include "sim/attention/simd_target.h"
#include "sim/base/build_info.h"
#include "sim/base/error.h"
#include "sim/policy/spec.h"

namespace kvspan::gui {
namespace {

constexpr int kMostWaiting = 120'000;  // milliseconds, for a view that is being computed

struct Settings {
  std::vector<std::string> files;
  std::vector<std::string> exports, views;
  std::string export_all;
  std::string size = "1280x800";
  double scale = 1;
  std::string rows, zoom;
  std::string run, baseline;
  std::vector<std::string> only;
  std::string quantity, stack, head_figure;
  bool log = false, attention = false, dark = false, new_session = false;
  int layer = -1, head = -1;
  std::int64_t token = -1;
  [[nodiscard]] bool exporting() const { return !exports.empty() || !export_all.empty(); }
};

std::pair<std::int64_t, std::int64_t> parse_pair(const std::string& text, char between,
                                                 const std::string& what,
                                                 const std::string& example) {
  std::int64_t first = 0;
  std::int64_t second = 0;
  const auto middle = std::min(text.find(between), text.size());
  const auto number = [](std::string_view digits, std::int64_t& value) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return error == std::errc() && end == digits.data() + digits.size() && value >= 0;
  };
  const std::string_view whole = text;
  if (middle == text.size() || !number(whole.substr(0, middle), first) ||
      !number(whole.substr(middle + 1), second) || second == 0) {
    throw ConfigError(fmt::format("{}: found '{}', expected {}", what, text, example));
  }
  return {first, second};
}

Rows parse_rows(const std::string& text, const std::string& what) {
  if (!text.empty() && text.find_first_not_of("0123456789") == text.npos && text.size() < 12) {
    return {std::stoll(text), std::stoll(text) + 1};
  }
  const auto [begin, end] = parse_pair(text, ':', what, "a row, or BEGIN:END with BEGIN < END");
  if (begin >= end) {
    throw ConfigError(
        fmt::format("{}: found '{}', expected BEGIN:END with BEGIN < END", what, text));
  }
  return {begin, end};
}

template <class T>
void set_named(const std::string& text, const std::vector<std::string>& names,
               const std::string& what, T& value) {
  if (text.empty()) return;
  const auto found = std::find(names.begin(), names.end(), text);
  if (found == names.end()) {
    throw ConfigError(fmt::format("{}: found '{}'; {}", what, text, nearest_hint(text, names)));
  }
  value = static_cast<T>(found - names.begin());
}

// The first run of that label or canonical spec, or whose label begins so.
int find_run(const Document& document, const std::string& text) {
  std::vector<std::string> labels;
  const auto& runs = document.runs();
  for (const ShownRun& shown : runs) labels.push_back(shown.run().label);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (labels[i] == text || runs[i].run().policy == text) return static_cast<int>(i);
  }
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (labels[i].starts_with(text)) return static_cast<int>(i);
  }
  throw ConfigError(fmt::format("no run is called '{}'; {}", text, nearest_hint(text, labels)));
}

void apply(const Settings& s, Document& document) {
  Display display = document.display();
  set_named(s.quantity, quantity_names(), "--quantity", display.quantity);
  set_named(s.stack, stack_names(), "--stack", display.stack);
  set_named(s.head_figure, head_figure_names(), "--heads", display.head_figure);
  display.log = display.log || s.log;
  display.attention = display.attention || s.attention;
  document.set_display(display);
  if (!s.run.empty()) document.set_current(find_run(document, s.run));
  if (!s.baseline.empty()) document.set_baseline(find_run(document, s.baseline));
  if (!s.only.empty()) {
    std::vector<int> shown;
    for (const std::string& text : s.only) shown.push_back(find_run(document, text));
    for (std::size_t i = 0; i < document.runs().size(); ++i) {
      document.set_visible(
          i, std::find(shown.begin(), shown.end(), static_cast<int>(i)) != shown.end());
    }
  }
  const auto rows_of = [&](const std::string& text, const char* what) {
    const Rows rows = parse_rows(text, what);
    if (rows.end > document.rows()) {
      throw ConfigError(fmt::format("{}: found '{}', the longest trace has the rows 0 to {}", what,
                                    text, document.rows() - 1));
    }
    return rows;
  };
  if (!s.zoom.empty()) document.set_zoom(rows_of(s.zoom, "--zoom"));
  if (!s.rows.empty()) document.set_selection(rows_of(s.rows, "--rows"));
  if (const ShownRun* shown = document.current_run()) {
    const auto check = [](const char* what, std::int64_t found, std::int64_t count) {
      if (found < count) return;
      throw ConfigError(
          fmt::format("{}: found {}, the current run has 0 to {}", what, found, count - 1));
    };
    check("--layer", s.layer, shown->result->trace.layers());
    check("--head", s.head, std::max(1, shown->run().heads));
    check("--token", s.token, shown->result->trace.tokens);
  }
  if (s.layer >= 0 || s.head >= 0 || s.token >= 0) document.set_focus({s.layer, s.head, s.token});
}

View& find_view(const std::vector<View*>& views, const std::string& name) {
  std::vector<std::string> names;
  for (View* view : views) {
    if (view->name().toStdString() == name) return *view;
    names.push_back(view->name().toStdString());
  }
  throw ConfigError(fmt::format("--view: found '{}'; {}", name, nearest_hint(name, names)));
}

void wait_until_ready(View& view) {
  QEventLoop loop;
  QTimer too_long;
  too_long.setSingleShot(true);
  QObject::connect(&too_long, &QTimer::timeout, &loop, [&loop] { loop.exit(1); });
  QObject::connect(&view, &View::ready, &loop, [&loop] { loop.exit(0); });
  too_long.start(kMostWaiting);
  while (!view.is_ready()) {
    if (loop.exec() != 0)
      throw Error(fmt::format("view '{}' is not ready after {} s", view.name().toStdString(),
                              kMostWaiting / 1000),
                  1);
  }
}

// Shown (offscreen), so that layouts and models settle as in the window.
void export_one(View& view, const std::string& path, const QSize& size, double scale) {
  view.setParent(nullptr);
  view.resize(size);
  view.show();
  QApplication::processEvents();
  wait_until_ready(view);
  QApplication::processEvents();
  export_view(view, QString::fromStdString(path), size, scale);
  view.hide();
  fmt::print("{}\n", path);
}

void run_exports(const Settings& s) {
  Document document;
  for (const std::string& file : s.files) {
    ResultPtr result = open_result(file);
    for (const std::string& warning : result->warnings) {
      fmt::print(stderr, "kvspan-viewer: {}\n", warning);
    }
    document.add(std::move(result));
  }
  const auto [width, height] = parse_pair(s.size, 'x', "--size", "WIDTHxHEIGHT, such as 1280x800");
  if (width < 200 || height < 120 || width > 20'000 || height > 20'000) {
    throw ConfigError(fmt::format("--size: found '{}', expected 200x120 to 20000x20000", s.size));
  }
  const QSize size(static_cast<int>(width), static_cast<int>(height));
  QWidget owner;
  const std::vector<View*> views = make_views(document, &owner);
  apply(s, document);
  if (s.views.size() > s.exports.size()) {
    throw ConfigError("--view belongs to an --export: there are more views than exports");
  }
  for (std::size_t i = 0; i < s.exports.size(); ++i) {
    View& view = find_view(views, i < s.views.size() ? s.views[i] : "memory");
    export_one(view, s.exports[i], size, s.scale);
  }
  if (!s.export_all.empty()) {
    const QDir folder(QString::fromStdString(s.export_all));
    if (!folder.mkpath(".")) {
      throw ConfigError(fmt::format("--export-all: cannot make the folder '{}'", s.export_all));
    }
    for (View* view : views) {
      for (const char* ending : {".png", ".svg", ".csv"}) {
        export_one(*view, folder.filePath(view->name() + ending).toStdString(), size, s.scale);
      }
    }
  }
  for (View* view : views) delete view;
}

int run_window(const Settings& s) {
  guard_mapped_files();
  const QString session =
      QStandardPaths::writableLocation(QStandardPaths::AppDataLocation) + "/session.json";
  MainWindow window(session);
  QStringList files;
  for (const std::string& file : s.files) files << QString::fromStdString(file);
  const auto look = [&s, &window] {
    try {
      apply(s, window.document());
    } catch (const Error& error) {
      window.show_message(error.what());
    }
  };
  if (files.isEmpty() && !s.new_session) {
    window.restore_session();
  } else {
    window.open(files, look);
  }
  if (!s.views.empty()) window.show_view(QString::fromStdString(s.views.front()));
  window.show();
  return QApplication::exec();
}

void add_options(CLI::App& app, Settings& s) {
  app.add_option("files", s.files, "Results (.json), timelines, lifetimes or traces (.safetensors)")
      ->type_name("FILE");
  app.add_option(
         "--export", s.exports,
         "Write a view without a window: .png, .svg or .csv; may be repeated, one --view each")
      ->type_name("FILE")
      ->allow_extra_args(false);
  app.add_option(
         "--view", s.views,
         "memory, runs, lifetimes, resident, peak, heads, tradeoff or compare; of the window: "
         "the one to start with")
      ->type_name("NAME")
      ->allow_extra_args(false);
  app.add_option("--export-all", s.export_all, "Write every view as .png, .svg and .csv")
      ->type_name("FOLDER");
  app.add_option("--size", s.size, "Size of pictures in logical pixels")->type_name("WxH");
  app.add_option("--scale", s.scale, "Pixels of a PNG per logical pixel")
      ->check(CLI::Range(0.25, 8.0))
      ->type_name("S");
  app.add_option("--run", s.run, "The run that views of one run show; a label or its beginning")
      ->type_name("LABEL");
  app.add_option("--baseline", s.baseline, "The run that others are compared with")
      ->type_name("LABEL");
  app.add_option("--only", s.only, "Show this run in charts, and no other; may be repeated")
      ->type_name("LABEL")
      ->allow_extra_args(false);
  app.add_option("--rows", s.rows, "Selected rows; of one row, what is held there")
      ->type_name("ROW|BEGIN:END");
  app.add_option("--zoom", s.zoom, "Rows that charts over time show")->type_name("BEGIN:END");
  app.add_option("--quantity", s.quantity, "entries, bytes, percent or mass")->type_name("NAME");
  app.add_flag("--log", s.log, "Logarithmic scale");
  app.add_option("--stack", s.stack, "none, layer, head_class or state: memory of --run, stacked")
      ->type_name("NAME");
  app.add_option("--heads", s.head_figure, "footprint, peak_kv or retained_mass: the map of heads")
      ->type_name("NAME");
  app.add_flag("--attention", s.attention,
               "Show attention in the map of lifetimes; needs the trace");
  app.add_option("--layer", s.layer, "Selected layer, counted in the trace from 0")->type_name("L");
  app.add_option("--head", s.head, "Selected stored head")->type_name("H");
  app.add_option("--token", s.token, "Selected token")->type_name("T");
  app.add_flag("--dark", s.dark, "Dark colours");
  app.add_flag("--new-session", s.new_session, "Do not open what the last session had open");
  const BuildInfo& build = build_info();
  app.set_version_flag("--version", fmt::format("kvspan-viewer {} ({})", build.version, build.git));
  app.footer(R"help(
Examples:
  kvspan-viewer RESULT.json                                open a result (with its timeline and lifetimes)
  kvspan-viewer                                            go on where the last session ended
  kvspan-viewer --export memory.png --view memory RESULT.json
  kvspan-viewer --export map.svg --view lifetimes --attention --run snapkv --layer 1 RESULT.json
  kvspan-viewer --export-all FOLDER RESULT.json            every view as picture and as numbers
Make a result: kvspan run TRACE --out R.json --timeline R.timeline.safetensors --lifetimes R.lifetimes.safetensors

Environment: KVSPAN_SIMD=avx512|avx2|sse4 caps the instructions used (default: the best of the machine).
Exit codes: 0 ok, 1 internal or a full disk, 2 arguments, 3 files that cannot be read.)help");
}

int run_program(int argc, char** argv) {
  kernels::choose_simd_target();
  Settings settings;
  CLI::App options("See where KV memory goes: traces and results of kvspan over time");
  options.name("kvspan-viewer");
  add_options(options, settings);
  try {
    options.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = error.get_exit_code();
    if (code == 0) return options.exit(error);
    fmt::print(stderr, "kvspan-viewer: {}; --help shows what is known\n", error.what());
    return 2;
  }
  if (settings.exporting() && settings.files.empty()) {
    throw ConfigError("--export needs a result: kvspan-viewer --export memory.png RESULT.json");
  }
  // Pictures need no display, and must look alike with and without one. What the platform then
  // cannot do is of no interest.
  if (settings.exporting()) {
    qputenv("QT_QPA_PLATFORM", "offscreen");
    qInstallMessageHandler([](QtMsgType type, const QMessageLogContext&, const QString& text) {
      if (type == QtCriticalMsg || type == QtFatalMsg) {
        fmt::print(stderr, "kvspan-viewer: {}\n", text.toStdString());
      }
    });
  }
  if (!qEnvironmentVariableIsSet("DISPLAY") && !qEnvironmentVariableIsSet("WAYLAND_DISPLAY") &&
      !qEnvironmentVariableIsSet("QT_QPA_PLATFORM")) {
    throw ConfigError("there is no display; --export-all FOLDER writes every view as a picture");
  }
  int no_arguments = 1;
  QApplication app(no_arguments, argv);
  QApplication::setApplicationName("kvspan-viewer");
  QApplication::setOrganizationName("kvspan");
  QApplication::setStyle(QStyleFactory::create("Fusion"));
  set_theme(settings.dark);
  if (settings.exporting()) {
    run_exports(settings);
    return 0;
  }
  return run_window(settings);
}

}  // namespace
}  // namespace kvspan::gui

int main(int argc, char** argv) {
  try {
    return kvspan::gui::run_program(argc, argv);
  } catch (const kvspan::Error& error) {
    fmt::print(stderr, "kvspan-viewer: {}\n", error.what());
    return error.exit_code();
  } catch (const std::exception& error) {
    fmt::print(stderr, "kvspan-viewer: internal error: {}\n", error.what());
    return 1;
  }
}
