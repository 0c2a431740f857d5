// SPDX-License-Identifier: Apache-2.0
// Pictures and numbers without a window.
#pragma once

#include "gui/window/settings.h"

namespace kvspan::gui {

// Writes what --export and --export-all ask for, and the names of the files to stdout.
// Errors: those of open_result(), apply() and export_view().
void run_exports(const Settings& settings);

}  // namespace kvspan::gui
