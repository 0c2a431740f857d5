// SPDX-License-Identifier: Apache-2.0
#define CATCH_CONFIG_RUNNER
#include <cstdlib>
#include <ctime>

#include <catch2/catch.hpp>

#include "tests/support/chosen_target.h"

// Random cases are the same in every run, so that what is checked is a change and not the seed;
// with KVSPAN_DEEP they are others each time.
int main(int argc, char** argv) {
  const int refused = kvspan::test::choose_target();
  if (refused != 0) return refused;
  Catch::Session session;
  session.configData().rngSeed =
      std::getenv("KVSPAN_DEEP") == nullptr ? 1 : static_cast<unsigned>(std::time(nullptr));
  return session.run(argc, argv);
}
