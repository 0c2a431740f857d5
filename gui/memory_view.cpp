// SPDX-License-Identifier: Apache-2.0
#include "gui/view.h"

namespace kvspan::gui {
namespace {

class MemoryView final : public View {
 public:
  MemoryView(Document& document, QWidget* parent) : View(document, parent) {}
  [[nodiscard]] QString name() const override { return "memory"; }
  [[nodiscard]] QString title() const override { return "memory"; }
  [[nodiscard]] QString help() const override { return ""; }
  [[nodiscard]] std::string csv() const override { return ""; }
};

}  // namespace

View* make_memory_view(Document& document, QWidget* parent) {
  return new MemoryView(document, parent);
}

}  // namespace kvspan::gui
