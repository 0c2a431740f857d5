// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/residency.h"

#include <catch2/catch.hpp>

using namespace kvspan;

namespace {

std::vector<TokenIndex> entries(const Residency& held, int head) {
  const auto list = held.entries(head);
  return {list.begin(), list.end()};
}

}  // namespace

TEST_CASE("entries are born in every head and leave one head at a time", "[residency]") {
  Residency held(2, 100);
  held.add(0, 4);
  held.add(4, 5);
  CHECK(held.whole());
  CHECK(entries(held, 0) == std::vector<TokenIndex>{0, 1, 2, 3, 4});
  CHECK(held.evict({{.head = 0, .token = 1}, {.head = 1, .token = 0}, {.head = 1, .token = 3}}) ==
        nullptr);
  CHECK(entries(held, 0) == std::vector<TokenIndex>{0, 2, 3, 4});
  CHECK(entries(held, 1) == std::vector<TokenIndex>{1, 2, 4});
  CHECK_FALSE(held.whole());
  held.add(5, 6);
  CHECK(entries(held, 1) == std::vector<TokenIndex>{1, 2, 4, 5});
}

TEST_CASE("the mask is one where an entry is resident, and as long as a row of keys",
          "[residency]") {
  Residency held(1, 65);
  held.add(0, 3);
  REQUIRE(held.evict({{.head = 0, .token = 2}}) == nullptr);
  CHECK(held.mask(0).size() == 128);
  CHECK(std::vector<float>(held.mask(0).begin(), held.mask(0).begin() + 4) ==
        std::vector<float>{1, 1, 0, 0});
  CHECK(held.holds(0, 1));
  for (const TokenIndex token : {2, 3, -1, 1000}) CHECK_FALSE(held.holds(0, token));
}

TEST_CASE("a cache lies as it was arranged, and newborns lie behind", "[residency]") {
  Residency held(2, 10);
  held.add(0, 5);
  const auto cached = [&](int head) {
    const auto list = held.cached(head);
    return std::vector<TokenIndex>(list.begin(), list.end());
  };
  CHECK(cached(0) == std::vector<TokenIndex>{0, 1, 2, 3, 4});
  REQUIRE(held.evict({{.head = 0, .token = 1}}) == nullptr);
  held.arrange({0, {4, 2, 3}});  // 0 is not named and stays in front
  CHECK(cached(0) == std::vector<TokenIndex>{0, 4, 2, 3});
  held.add(5, 6);
  REQUIRE(held.evict({{.head = 0, .token = 2}}) == nullptr);
  CHECK(cached(0) == std::vector<TokenIndex>{0, 4, 3, 5});
  CHECK(entries(held, 0) == std::vector<TokenIndex>{0, 3, 4, 5});
  CHECK(cached(1) == std::vector<TokenIndex>{0, 1, 2, 3, 4, 5});
}

TEST_CASE("who is not resident cannot leave", "[residency]") {
  Residency held(2, 10);
  held.add(0, 4);
  const std::vector<Eviction> twice{{.head = 1, .token = 2}, {.head = 1, .token = 2}};
  CHECK(held.evict(twice) == &twice[1]);
  const std::vector<Eviction> unborn{{.head = 0, .token = 4}};
  CHECK(held.evict(unborn) == &unborn[0]);
  CHECK(held.whole(0));
}
