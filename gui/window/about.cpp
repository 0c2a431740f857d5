// SPDX-License-Identifier: Apache-2.0
#include "gui/window/about.h"

#include <QtGlobal>

#include <fmt/format.h>

#include "sim/base/build_info.h"

namespace kvspan::gui {

std::string version_text() {
  const BuildInfo& build = build_info();
  return fmt::format(
      "kvspan-viewer {} ({})\n"
      "Sources: Apache-2.0. This binary, combined with Qt Charts (GPL-3.0), is under GPL-3.0.",
      build.version, build.git);
}

QString about_text() {
  const BuildInfo& build = build_info();
  return QString(
             "<p><b>kvspan-viewer %1</b> (%2), with Qt %3</p>"
             "<p>Shows where the memory of a KV cache goes over time, why its peak is where it is, "
             "and what is lost.</p>"
             "<p>The sources of kvspan, those of this viewer among them, are licensed under the "
             "Apache License 2.0.</p>"
             "<p>This binary is a combined work with Qt Charts, which is licensed under the GNU "
             "General Public License 3.0; as a whole it is distributed under GPL-3.0. It comes "
             "without any warranty.</p>")
      .arg(QString::fromStdString(std::string(build.version)),
           QString::fromStdString(std::string(build.git)), qVersion());
}

}  // namespace kvspan::gui
