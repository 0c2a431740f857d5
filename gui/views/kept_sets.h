// SPDX-License-Identifier: Apache-2.0
// What the current run and the baseline hold at the document's instant, one beside the other.
#pragma once

class QWidget;

namespace kvspan::gui {

class Document;

// Its property "ready" is false while what it shows is being computed.
[[nodiscard]] QWidget* make_kept_sets(Document& document, QWidget* parent);

}  // namespace kvspan::gui
