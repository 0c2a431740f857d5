// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace kvspan {

// The catalogue of policies as Markdown, from the registry: the content of sim/policies/README.md.
[[nodiscard]] std::string policies_markdown();

// Where paper, code and other implementations of a policy differ, and what is followed; or empty.
[[nodiscard]] std::string differences_of(const std::string& policy);

}  // namespace kvspan
