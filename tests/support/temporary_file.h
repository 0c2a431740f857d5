// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <system_error>
#include <unistd.h>

namespace kvspan::test {

// A path that nothing else has; what lies there is removed with the object.
class TemporaryFile {
 public:
  TemporaryFile() {
    static int count = 0;
    path =
        std::filesystem::temp_directory_path() / ("kvspan_test_" + std::to_string(::getpid()) +
                                                  "_" + std::to_string(count++) + ".safetensors");
  }
  ~TemporaryFile() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  std::filesystem::path path;
};

}  // namespace kvspan::test
