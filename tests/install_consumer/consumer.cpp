// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "sim/base/build_info.h"
#include "sim/base/file.h"

int main(int, char** argv) {
  std::printf("kvspan %s\n", std::string(kvspan::build_info().version).c_str());
  return kvspan::sha256_of_files({argv[0]}).size() == 64 ? 0 : 1;
}
