// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace kvspan {

// The catalogue of policies as Markdown, from the registry: the content of sim/policies/README.md.
[[nodiscard]] std::string policies_markdown();

}  // namespace kvspan
