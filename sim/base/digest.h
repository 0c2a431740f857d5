// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace kvspan {

// Lower-case hex SHA-256 of a text; of files: sha256_of_files() of file.h.
[[nodiscard]] std::string sha256_of_text(std::string_view text);

}  // namespace kvspan
