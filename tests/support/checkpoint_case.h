// SPDX-License-Identifier: Apache-2.0
// Checkpoints of tests/data/tracegen/checkpoints, and what is said about damaged ones.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "sim/trace/safetensors.h"
#include "tests/support/file_bytes.h"
#include "tests/support/temporary_folder.h"
#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen::testing {

inline const std::filesystem::path kFixtures =
    std::filesystem::path(KVSPAN_TESTS_DIR) / "data" / "tracegen" / "checkpoints";

inline std::filesystem::path copy_fixture(const std::string& name,
                                          const kvspan::test::TemporaryFolder& to) {
  std::filesystem::copy(kFixtures / name, to / name, std::filesystem::copy_options::recursive);
  return to / name;
}

// The bundled model.
inline const Checkpoint& minimind() {
  static const Checkpoint checkpoint = Checkpoint::open(KVSPAN_MODELS_DIR "/minimind2-small");
  return checkpoint;
}

// Token 1 (bos), then ids of a text of the references.
inline std::vector<std::int32_t> real_ids(std::size_t count) {
  const TensorSet set = TensorSet::open(KVSPAN_TESTS_DIR "/data/references.safetensors");
  const TensorView& all = *set.find("minimind2.token_ids");
  std::vector<std::int32_t> ids(count);
  std::memcpy(ids.data(), all.bytes.data(), count * 4);
  return ids;
}

// The message of the CheckpointError, one line and short; empty if there was none.
inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const CheckpointError& error) {
    const std::string what = error.what();
    CHECK(what.size() < 1000);
    CHECK(what.find('\n') == std::string::npos);
    return what;
  }
  return {};
}
inline std::string open_error(const std::filesystem::path& path) {
  return error_of([&] { static_cast<void>(Checkpoint::open(path)); });
}

}  // namespace kvspan::tracegen::testing
