// SPDX-License-Identifier: Apache-2.0
// A synthetic trace, as a file or in memory.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>

#include <Eigen/Core>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <tbb/parallel_for.h>

#include "sim/trace/safetensors.h"
#include "tracegen/synth/channels.h"
#include "tracegen/synth/synth.h"

namespace kvspan::tracegen {
namespace {

constexpr std::int64_t kBlockTokens = 1024;

Metadata metadata_of(const SynthOptions& o, const SynthPlan& plan, const SynthProfile& profile) {
  nlohmann::json spans = nlohmann::json::array();
  for (const auto* list : {&plan.turns, &plan.needles, &plan.questions}) {
    for (const Span& span : *list)
      spans.push_back({{"name", span.name}, {"begin", span.begin}, {"end", span.end}});
  }
  return {
      {"format", "kvspan.trace"},
      {"version", "1"},
      {"layers", std::to_string(o.layers)},
      {"model_layers", std::to_string(o.model_layers)},
      {"layer_ids", nlohmann::json(o.layer_ids).dump()},
      {"query_heads", std::to_string(o.query_heads)},
      {"kv_heads", std::to_string(o.kv_heads)},
      {"head_dim", std::to_string(o.head_dim)},
      {"tokens", std::to_string(o.tokens)},
      {"prompt_tokens", std::to_string(o.prompt_tokens)},
      {"score_scale", fmt::format("{:.17g}", 1 / std::sqrt(static_cast<double>(o.head_dim)))},
      {"rope_theta", fmt::format("{:.0f}", synth_theta(o.tokens))},
      {"rope_dim", std::to_string(Channels(o.head_dim).rope)},
      {"rope_layout", "half"},
      {"special_ids", "[0, 1]"},
      {"spans", spans.dump()},
      {"model", fmt::format("synthetic ({})", profile.name)},
      {"source", fmt::format("synthetic: kvspan synth, profile {}, seed {}", profile.name, o.seed)},
      {"text", "none: words are random numbers"},
      {"licence", "generated data, no text and no weights in it"},
      {"created_by", "kvspan synth"}};
}

// A block of tokens of one layer, as F16.
struct Block {
  std::vector<Eigen::half> q, k, v;
};

Block make_block(const SynthLayer& layer, const SynthOptions& o, std::int64_t first,
                 std::int64_t count) {
  const auto q_size =
      static_cast<std::size_t>(o.query_heads) * static_cast<std::size_t>(o.head_dim);
  const auto k_size = static_cast<std::size_t>(o.kv_heads) * static_cast<std::size_t>(o.head_dim);
  const auto tokens = static_cast<std::size_t>(count);
  Block out;
  out.q.resize(tokens * q_size);
  out.k.resize(tokens * k_size);
  if (o.values) out.v.resize(tokens * k_size);
  tbb::parallel_for(tbb::blocked_range<std::size_t>(0, tokens, 64), [&](const auto& range) {
    std::vector<float> q(q_size);
    std::vector<float> k(k_size);
    std::vector<float> v(o.values ? k_size : 0);
    for (std::size_t t = range.begin(); t < range.end(); ++t) {
      layer.token(first + static_cast<std::int64_t>(t), q, k, v);
      const auto narrow = [&](const std::vector<float>& from, std::vector<Eigen::half>& to) {
        std::transform(from.begin(), from.end(),
                       to.begin() + static_cast<std::ptrdiff_t>(t * from.size()),
                       [](float x) { return Eigen::half(x); });
      };
      narrow(q, out.q);
      narrow(k, out.k);
      narrow(v, out.v);
    }
  });
  return out;
}

using Write = std::function<void(const std::string& name, std::int64_t byte_offset,
                                 std::span<const std::byte> bytes)>;

std::vector<SafetensorsWriter::Entry> entries_of(const SynthOptions& o) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (int l = 0; l < o.layers; ++l) {
    const auto name = [l](const char* what) { return fmt::format("layers.{}.{}", l, what); };
    entries.push_back({name("q"), Dtype::f16, {o.tokens, o.query_heads, o.head_dim}});
    entries.push_back({name("k"), Dtype::f16, {o.tokens, o.kv_heads, o.head_dim}});
    if (o.values) entries.push_back({name("v"), Dtype::f16, {o.tokens, o.kv_heads, o.head_dim}});
  }
  entries.push_back({"token_ids", Dtype::i32, {o.tokens}});
  return entries;
}

void generate(const SynthOptions& o, const SynthPlan& plan, const SynthProfile& profile,
              const std::function<void(double)>& tick, const Write& write) {
  for (int l = 0; l < o.layers; ++l) {
    const SynthLayer layer(o, plan, profile, l);
    for (std::int64_t t = 0; t < o.tokens; t += kBlockTokens) {
      const std::int64_t count = std::min(kBlockTokens, o.tokens - t);
      const Block block = make_block(layer, o, t, count);
      const auto put = [&](const char* what, const std::vector<Eigen::half>& values) {
        const auto bytes = std::as_bytes(std::span(values));
        if (bytes.empty()) return;
        write(fmt::format("layers.{}.{}", l, what),
              t * static_cast<std::int64_t>(bytes.size()) / count, bytes);
      };
      put("q", block.q);
      put("k", block.k);
      put("v", block.v);
      if (tick) {
        tick((l + static_cast<double>(t + count) / static_cast<double>(o.tokens)) / o.layers);
      }
    }
    if (l > 0) continue;
    std::vector<std::int32_t> ids(static_cast<std::size_t>(std::min(kBlockTokens, o.tokens)));
    for (std::int64_t t = 0; t < o.tokens; t += kBlockTokens) {
      const std::int64_t count = std::min(kBlockTokens, o.tokens - t);
      for (std::int64_t i = 0; i < count; ++i)
        ids[static_cast<std::size_t>(i)] = layer.token_id(t + i);
      write("token_ids", t * 4,
            std::as_bytes(std::span(ids).first(static_cast<std::size_t>(count))));
    }
  }
}

}  // namespace

void write_synth(const SynthOptions& options, const SynthPlan& plan, const SynthProfile& profile,
                 const std::filesystem::path& path, const std::function<void(double)>& tick) {
  SafetensorsWriter writer(path, metadata_of(options, plan, profile), entries_of(options));
  generate(options, plan, profile, tick,
           [&](const std::string& name, std::int64_t offset, std::span<const std::byte> bytes) {
             writer.write(name, offset, bytes);
           });
  writer.finish();
}

Trace synth_trace(const SynthOptions& options, const SynthPlan& plan, const SynthProfile& profile) {
  std::map<std::string, TensorSet::Owned> tensors;
  for (const SafetensorsWriter::Entry& entry : entries_of(options)) {
    std::int64_t bytes = dtype_bytes(entry.dtype);
    for (const std::int64_t size : entry.shape) bytes *= size;
    tensors[entry.name] = {entry.dtype, entry.shape,
                           std::vector<std::byte>(static_cast<std::size_t>(bytes))};
  }
  generate(options, plan, profile, {},
           [&](const std::string& name, std::int64_t offset, std::span<const std::byte> bytes) {
             std::memcpy(tensors.at(name).bytes.data() + offset, bytes.data(), bytes.size());
           });
  return Trace::from_tensors(
      TensorSet::from_memory(metadata_of(options, plan, profile), std::move(tensors)),
      "synthetic trace");
}

}  // namespace kvspan::tracegen
