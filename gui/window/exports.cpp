// SPDX-License-Identifier: Apache-2.0
#include "gui/window/exports.h"

#include <QApplication>
#include <QDir>
#include <QEventLoop>
#include <QTimer>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "gui/model/kept_sets.h"
#include "gui/model/several.h"
#include "gui/model/sweep_state.h"
#include "gui/views/view.h"
#include "sim/base/error.h"
#include "sim/policy/spec.h"

namespace kvspan::gui {
namespace {

constexpr int kMostWaiting = 120'000;  // milliseconds, for a view that is being computed

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
//   size  nullopt: as the view needs it
void export_one(View& view, const std::string& path, std::optional<QSize> size, double scale) {
  view.setParent(nullptr);
  view.resize(size.value_or(kPictureSize));
  view.show();
  QApplication::processEvents();
  wait_until_ready(view);
  QApplication::processEvents();
  export_view(view, QString::fromStdString(path), size.value_or(view.picture_size()), scale);
  view.hide();
  fmt::print("{}\n", path);
}

std::optional<QSize> size_of(const std::string& text) {
  if (text.empty()) return std::nullopt;
  const auto [width, height] = parse_pair(text, 'x', "--size", "WIDTHxHEIGHT, such as 1280x800");
  if (width < 200 || height < 120 || width > 20'000 || height > 20'000) {
    throw ConfigError(fmt::format("--size: found '{}', expected 200x120 to 20000x20000", text));
  }
  return QSize(static_cast<int>(width), static_cast<int>(height));
}

// What was not chosen is chosen so that pictures tell something: a run beside another one, in the
// row in which they differ most.
void choose_the_rest(const Settings& s, Document& document) {
  if (document.current_run() == nullptr) return;
  if (document.current() == document.baseline() && s.baseline.empty()) {
    document.set_baseline(document.current() == 0 ? 1 : 0);
  }
  if (!s.rows.empty()) return;
  const RowIndex row = telling_row(*document.current_run(), *document.baseline_run());
  document.set_selection({row, row + 1});
}

}  // namespace

void run_exports(const Settings& s) {
  Document document;
  for (const std::string& file : s.files) {
    if (const auto folder = sweep_folder_of(file)) {
      document.sweep().set(open_sweep_folder(*folder));
      continue;
    }
    for (ResultPtr& result : open_results(file)) {
      for (const std::string& warning : result->warnings) {
        fmt::print(stderr, "kvspan-viewer: {}\n", warning);
      }
      document.add(std::move(result));
    }
  }
  const std::optional<QSize> size = size_of(s.size);
  QWidget owner;
  const std::vector<View*> views = make_views(document, &owner);
  apply(s, document);
  for (View* view : views) set_threshold(s, *view);
  choose_the_rest(s, document);
  if (s.views.size() > s.exports.size()) {
    throw ConfigError("--view belongs to an --export: there are more views than exports");
  }
  for (std::size_t i = 0; i < s.exports.size(); ++i) {
    const char* first = document.runs().empty() ? "curves" : "memory";
    View& view = find_view(views, i < s.views.size() ? s.views[i] : first);
    export_one(view, s.exports[i], size, s.scale);
  }
  if (!s.export_all.empty()) {
    const QDir folder(QString::fromStdString(s.export_all));
    if (!folder.mkpath(".")) {
      throw ConfigError(fmt::format("--export-all: cannot make the folder '{}'", s.export_all));
    }
    for (View* view : views) {
      if (!view->has_content()) continue;
      for (const char* ending : {".png", ".svg", ".csv"}) {
        export_one(*view, folder.filePath(view->name() + ending).toStdString(), size, s.scale);
      }
    }
  }
  for (View* view : views) delete view;
}

}  // namespace kvspan::gui
