// SPDX-License-Identifier: Apache-2.0
#include "gui/view.h"

namespace kvspan::gui {
namespace {

class HeadView final : public View {
 public:
  HeadView(Document& document, QWidget* parent) : View(document, parent) {}
  [[nodiscard]] QString name() const override { return "head"; }
  [[nodiscard]] QString title() const override { return "head"; }
  [[nodiscard]] QString help() const override { return ""; }
  [[nodiscard]] std::string csv() const override { return ""; }
};

}  // namespace

View* make_head_view(Document& document, QWidget* parent) { return new HeadView(document, parent); }

}  // namespace kvspan::gui
