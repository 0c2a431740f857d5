// SPDX-License-Identifier: Apache-2.0
// One fuzz input is a sweep's configuration, its plan, and a journal: whatever the bytes, each is
// read, or refused in one short line. Run by replay_main.cpp.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/sweep/journal.h"
#include "sim/sweep/records.h"

namespace {

template <class Action>
void expect_error_or_success(const Action& action) {
  try {
    action();
  } catch (const kvspan::ConfigError& error) {
    const std::size_t length = std::strlen(error.what());
    if (length > 1000 || std::memchr(error.what(), '\n', length) != nullptr) __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  expect_error_or_success([&] { static_cast<void>(kvspan::sweep::parse_config(text, "fuzz")); });
  expect_error_or_success([&] {
    constexpr std::size_t kMost = 10'000;
    static_cast<void>(make_grid(kvspan::sweep::parse_plan(text, "fuzz"), kMost));
  });
  kvspan::sweep::Records records;
  add_records(text, records);
  // The same bytes as the JSON of a record that is sound.
  const nlohmann::json record = nlohmann::json::parse(text, nullptr, false);
  if (!record.is_discarded()) add_records(kvspan::sweep::journal_line(record), records);
  return 0;
}
