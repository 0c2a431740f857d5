// SPDX-License-Identifier: Apache-2.0
// One fuzz input is the bytes of one GGUF file. What is accepted is read whole. Anything but
// success or a CheckpointError of one short line is a defect. Run by replay_main.cpp.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "sim/base/error.h"
#include "tracegen/model/gguf.h"

namespace {

void expect_error_or_success(const std::function<void()>& action) {
  try {
    action();
  } catch (const kvspan::CheckpointError& error) {
    const std::size_t length = std::strlen(error.what());
    if (length > 1000 || std::memchr(error.what(), '\n', length) != nullptr) __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using kvspan::tracegen::Gguf;
  using kvspan::tracegen::widen_weights;
  expect_error_or_success([&] {
    const Gguf file = Gguf::from_bytes(std::as_bytes(std::span(data, size)), "fuzz");
    for (const char* key : {"general.architecture", "general.name", "llama.block_count",
                            "llama.rope.freq_base", "general.alignment", "tokenizer.ggml.tokens"}) {
      expect_error_or_success([&] { static_cast<void>(file.text(key)); });
      expect_error_or_success([&] { static_cast<void>(file.integer(key)); });
      expect_error_or_success([&] { static_cast<void>(file.real(key)); });
      expect_error_or_success([&] { static_cast<void>(file.flag(key)); });
      expect_error_or_success([&] { static_cast<void>(file.texts(key)); });
      expect_error_or_success([&] { static_cast<void>(file.integers(key)); });
      expect_error_or_success([&] { static_cast<void>(file.reals(key)); });
    }
    for (const auto& [name, tensor] : file.tensors()) {
      if (!tensor.type) continue;
      const std::size_t count = tensor.bytes.size() /
                                static_cast<std::size_t>(weight_block_bytes(*tensor.type)) *
                                static_cast<std::size_t>(weight_block(*tensor.type));
      std::vector<float> values(count);
      widen_weights(*tensor.type, tensor.bytes.data(), static_cast<std::int64_t>(count),
                    values.data());
    }
  });
  return 0;
}
