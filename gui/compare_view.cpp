// SPDX-License-Identifier: Apache-2.0
#include "gui/view.h"

namespace kvspan::gui {
namespace {

class CompareView final : public View {
 public:
  CompareView(Document& document, QWidget* parent) : View(document, parent) {}
  [[nodiscard]] QString name() const override { return "compare"; }
  [[nodiscard]] QString title() const override { return "compare"; }
  [[nodiscard]] QString help() const override { return ""; }
  [[nodiscard]] std::string csv() const override { return ""; }
};

}  // namespace

View* make_compare_view(Document& document, QWidget* parent) {
  return new CompareView(document, parent);
}

}  // namespace kvspan::gui
