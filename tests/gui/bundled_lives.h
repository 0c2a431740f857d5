// SPDX-License-Identifier: Apache-2.0
// The bundled result with its lifetimes, opened once for a test.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "gui/model/document.h"
#include "gui/views/view.h"
#include "tests/gui/gui_test.h"

namespace kvspan::gui::test {

class BundledLives {
 public:
  // The first run whose policy begins so.
  [[nodiscard]] int run_of(const char* begin) const {
    for (std::size_t r = 0; r < result_->runs.size(); ++r) {
      if (result_->runs[r].policy.starts_with(begin)) return static_cast<int>(r);
    }
    qFatal("no run %s", begin);
  }
  // A document that shows it.
  [[nodiscard]] std::unique_ptr<Document> opened(const char* current) const {
    auto document = std::make_unique<Document>();
    document->add(result_);
    document->set_current(run_of(current));
    return document;
  }

 protected:
  ResultPtr result_ = open_result(bundled_result().toStdString());
};

using Deaths = std::span<const std::uint32_t>;

inline bool held(Deaths deaths, RowIndex token, RowIndex row) {
  return token <= row && row < static_cast<RowIndex>(deaths[static_cast<std::size_t>(token)]);
}

inline bool wait_for(const View& view) {
  return QTest::qWaitFor([&] { return view.is_ready(); }, 20'000);
}

}  // namespace kvspan::gui::test
