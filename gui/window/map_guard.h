// SPDX-License-Identifier: Apache-2.0
// Mapped files that shrink while they are shown.
#pragma once

namespace kvspan::gui {

// Reading a mapped page that its file lost (another program cut it short) ends a process with
// SIGBUS. From here on such a page reads as zeros instead, and pages_lost() counts it: the window
// says so and goes on. Other causes of SIGBUS end the process as ever. Once per process.
void guard_mapped_files();
[[nodiscard]] int pages_lost();

}  // namespace kvspan::gui
