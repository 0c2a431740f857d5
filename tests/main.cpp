// SPDX-License-Identifier: Apache-2.0
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>

#include "tests/support/chosen_target.h"

int main(int argc, char** argv) {
  const int refused = kvspan::test::choose_target();
  return refused != 0 ? refused : Catch::Session().run(argc, argv);
}
