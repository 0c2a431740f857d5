// SPDX-License-Identifier: Apache-2.0
#include "gui/model/numbers.h"

#include <cmath>

#include "sim/base/text.h"

namespace kvspan::gui {

QString count_text(std::int64_t count) {
  QString digits = QString::number(count);
  for (qsizetype at = digits.size() - 3; at > (count < 0 ? 1 : 0); at -= 3) {
    digits.insert(at, QChar(0x2009));
  }
  return digits;
}

QString bytes_text(double bytes) {
  const QString text = QString::fromStdString(human_bytes(std::llround(std::abs(bytes))));
  return bytes < 0 ? QChar(0x2212) + text : text;
}

QString percent_text(std::optional<double> share, int decimals) {
  if (!share || std::isnan(*share)) return QString(QChar(0x2013));
  return QString::number(100 * *share, 'f', decimals) + " %";
}

QString tip_text(const QString& plain) {
  return "<qt>" + plain.toHtmlEscaped().replace('\n', "<br>") + "</qt>";
}

}  // namespace kvspan::gui
