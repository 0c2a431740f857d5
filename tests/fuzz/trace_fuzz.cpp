// SPDX-License-Identifier: Apache-2.0
// One fuzz input is the bytes of one safetensors file: it is opened as a trace and, if that works,
// read as a user would read it. Anything but success or a TraceError is a defect. What passes the
// check is sometimes cut in half, and the half must pass it too.
// Built twice: with libFuzzer, and with replay_main.cpp for compilers that have none.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <span>
#include <string>
#include <unistd.h>
#include <vector>

#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/trace/safetensors.h"
#include "sim/trace/trace_tools.h"

namespace {

// Slow, because it writes a file: for a few inputs only, chosen by their content.
void check_slice(const kvspan::Trace& trace) {
  const std::filesystem::path path = std::filesystem::temp_directory_path() /
                                     ("kvspan-fuzz-" + std::to_string(::getpid()) + ".safetensors");
  const kvspan::TraceMeta& meta = trace.meta();
  try {
    static_cast<void>(slice_trace(trace, (meta.tokens + 1) / 2, {meta.layer_ids.back()}, path));
  } catch (const kvspan::ConfigError&) {
    return;  // no captured row is left
  }
  try {
    static_cast<void>(check_trace(kvspan::Trace::open(path)));
  } catch (const kvspan::TraceError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    __builtin_trap();
  }
  std::filesystem::remove(path);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using kvspan::Trace;
  try {
    const auto bytes = std::as_bytes(std::span(data, size));
    const Trace trace = Trace::from_tensors(kvspan::TensorSet::from_bytes(bytes, "fuzz"), "fuzz");
    const kvspan::TraceMeta& meta = trace.meta();
    static_cast<void>(describe_trace(trace));
    static_cast<void>(trace.token_text(0));
    static_cast<void>(trace.token_text(meta.tokens - 1));
    static_cast<void>(trace.token_ids());
    static_cast<void>(check_trace(trace));
    const std::uint32_t sum = std::accumulate(data, data + size, std::uint32_t{0});
    if (sum % 32 == 0) check_slice(trace);
    for (int l = 0; l < meta.layers; ++l) {
      static_cast<void>(trace.sink_logits(l));
      if (trace.is_qkv() && (trace.q(l) == nullptr || trace.k(l) == nullptr)) __builtin_trap();
      if (!trace.is_qkv() && trace.scores(l).rows.empty()) __builtin_trap();
    }
  } catch (const kvspan::TraceError& error) {
    // Errors are one line, and short whatever the input holds.
    const std::size_t length = std::strlen(error.what());
    if (length > 1000 || std::memchr(error.what(), '\n', length) != nullptr) __builtin_trap();
  }
  return 0;
}

// libFuzzer's own mutations, which it offers to custom mutators. Weak: replay_main.cpp has none.
// NOLINTNEXTLINE(readability-identifier-naming)
extern "C" __attribute__((weak)) std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size,
                                                              std::size_t max_size);

// Mutates, then mostly repairs the header length: otherwise every insertion into the header ends at
// the first check.
// NOLINTNEXTLINE(readability-identifier-naming)
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned int seed) {
  std::uint64_t header = 0;
  if (size >= 8) std::memcpy(&header, data, 8);
  if (size < 8 || header > size - 8 || seed % 8 == 0 || max_size > (1U << 20U)) {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  std::vector<std::uint8_t> tensors(data + 8 + header, data + size);
  if (seed % 8 == 1) {  // the values instead of the header
    if (tensors.empty()) return size;
    const std::size_t room = max_size - 8 - header;
    return 8 + header + LLVMFuzzerMutate(data + 8 + header, tensors.size(), room);
  }
  const std::size_t room = max_size - 8 - tensors.size();
  if (max_size < 8 + tensors.size() || room == 0) return LLVMFuzzerMutate(data, size, max_size);
  header = LLVMFuzzerMutate(data + 8, header, room);
  std::memcpy(data, &header, 8);
  if (!tensors.empty()) std::memcpy(data + 8 + header, tensors.data(), tensors.size());
  return 8 + header + tensors.size();
}
