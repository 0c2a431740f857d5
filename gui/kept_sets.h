// SPDX-License-Identifier: Apache-2.0
// What the current run holds at the instant and the baseline does not, and the reverse.
#pragma once

class QWidget;

namespace kvspan::gui {

class Document;

[[nodiscard]] QWidget* make_kept_sets(Document& document, QWidget* parent);

}  // namespace kvspan::gui
