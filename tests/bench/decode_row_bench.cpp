// SPDX-License-Identifier: Apache-2.0
// Attention of one row over a pool in the memory of a GPU: bytes of K and V a second, to be held
// against the copy of device memory that cuda_bench.cpp measures. Shape of Llama-3.1-8B; blocks of
// 16; time of the kernels, launches included.
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "gpu_replay/cuda/module.h"
#include "sim/base/types.h"

namespace kvspan::gpu_replay {
namespace {

constexpr int kHeads = 8, kGroup = 4, kDim = 128;
constexpr std::int64_t kBlock = 16;

struct Form {
  const char* name;
  Element element;
  EntryFormat format;
};

Form kivi(const char* name, int bits) {
  return {name,
          Element::f16,
          {{VectorFormat::Kind::entry_groups, bits, 32},
           {VectorFormat::Kind::channel_groups, bits, 32}}};
}

// Slots of a head one after another, whatever lies in them: 0x1111 is a small number of fp16.
void bm_decode_row(benchmark::State& state, const Form& form, std::int64_t keys) {
  const ReplayModule& module = *kvspan_replay_module();
  const auto memory = module.make_memory(0, 0);
  const std::int64_t slot =
      bytes_of(form.format.k, kDim, form.element) + bytes_of(form.format.v, kDim, form.element);
  const std::int64_t bytes = memory->rounded(kHeads * keys * slot);
  const Address begin = memory->reserve(bytes);
  const std::vector<std::byte> filling(index(memory->granule()), std::byte{0x11});
  for (Address at = begin; at < begin + bytes; at += memory->granule()) {
    memory->back(at);
    memory->write(at, filling);
  }
  std::vector<HeadTable> tables(kHeads);
  std::vector<HeadCoding> codings(kHeads);
  for (int head = 0; head < kHeads; ++head) {
    HeadTable& table = tables[index(head)];
    table.block_size = kBlock;
    table.slot_bytes = slot;
    for (std::int64_t key = 0; key < keys; ++key) {
      if (key % kBlock == 0) table.blocks.push_back(begin + (head * keys + key) * slot);
      table.slots.push_back(static_cast<std::int32_t>(key));
      codings[index(head)].place.push_back(static_cast<std::int32_t>(key % 32));
    }
    codings[index(head)].format.assign(index(keys), 0);
  }
  const bool whole = form.format == EntryFormat{};
  const std::vector<float> q(index(kHeads * kGroup * kDim), 0.01F), ones(kHeads, 1);
  const std::vector<EntryFormat> formats = {form.format};
  DecodeRow row{.query_heads = kHeads * kGroup,
                .heads = kHeads,
                .k_dim = kDim,
                .v_dim = kDim,
                .element = form.element,
                .q = q,
                .tables = tables,
                .k_scale = ones,
                .v_scale = ones};
  if (!whole) {
    row.formats = formats;
    row.codings = codings;
  }
  DecodeResult out;
  (void)module.attend(row, out);
  for (auto _ : state) state.SetIterationTime(module.attend(row, out));
  state.SetBytesProcessed(state.iterations() * kHeads * keys * slot);
  for (Address at = begin; at < begin + bytes; at += memory->granule()) memory->give_back(at);
  memory->unreserve(begin);
}

const bool registered = [] {
  const Form forms[] = {{"fp16", Element::f16, {}},
                        {"bf16", Element::bf16, {}},
                        {"fp8", Element::fp8, {}},
                        kivi("4 bits", 4),
                        kivi("2 bits", 2)};
  for (const Form& form : forms) {
    for (const std::int64_t keys : {8192, 131072}) {
      const std::string name =
          std::string("one row against ") + std::to_string(keys) + " keys, " + form.name;
      benchmark::RegisterBenchmark(
          name.c_str(), [=](benchmark::State& state) { bm_decode_row(state, form, keys); })
          ->UseManualTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
  return true;
}();

}  // namespace
}  // namespace kvspan::gpu_replay
