// SPDX-License-Identifier: Apache-2.0
#include <QApplication>

#include "gui/view.h"

int main(int argc, char** argv) {
  QApplication app(argc, argv);
  kvspan::gui::Document document;
  if (argc > 1) document.add(kvspan::gui::open_result(argv[1]));
  QWidget window;
  const auto views = kvspan::gui::make_views(document, &window);
  if (argc > 3)
    kvspan::gui::export_view(*views[static_cast<std::size_t>(std::atoi(argv[2]))], argv[3],
                             {1280, 800}, 1);
  return 0;
}
