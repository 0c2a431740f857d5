// SPDX-License-Identifier: Apache-2.0
// Text for people.
#include "sim/base/text.h"

#include <cstdint>
#include <string_view>

#include <catch2/catch.hpp>

TEST_CASE("text is measured and shortened by terminal columns", "[report][text]") {
  CHECK(kvspan::display_width("a\u00e9\u4e2de\u0301") == 5);
  CHECK(kvspan::shorten_middle("snapkv(budget=512)", 18) == "snapkv(budget=512)");
  CHECK(kvspan::shorten_middle("snapkv(budget=512)", 11) == "snap...512)");
  CHECK(kvspan::shorten_middle("snapkv", 3) == "...");
  CHECK(kvspan::shorten_middle("snapkv", 0) == "");
  for (int width = 0; width < 12; ++width) {
    CHECK(kvspan::display_width(
              kvspan::shorten_middle("\u4e2d\u6587\u4e2d\u6587\u4e2d\u6587", width)) <= width);
  }
  CHECK(kvspan::valid_utf8("\xC0\x80\xED\xA0\x80\xF5z\xE4\xB8") ==
        "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDz\uFFFD\uFFFD");
  CHECK(kvspan::one_line(std::string_view("a\tb\x7F\u0085")) == "a b  ");
}

TEST_CASE("bytes are printed with three digits in binary units", "[report][text]") {
  CHECK(kvspan::human_bytes(0) == "0 B");
  CHECK(kvspan::human_bytes(1023) == "1023 B");
  CHECK(kvspan::human_bytes(1024) == "1.00 KiB");
  CHECK(kvspan::human_bytes(1024 * 1024 - 1) == "1.00 MiB");
  CHECK(kvspan::human_bytes(46137344) == "44.0 MiB");
  CHECK(kvspan::human_bytes(std::int64_t{80} << 30) == "80.0 GiB");
}
