// SPDX-License-Identifier: Apache-2.0
// TurboQuant, as vLLM has it (--kv-cache-dtype turboquant_*): every entry is held in few bits from
// the end of its pass on, nothing waits.
//   keys     length in fp16; direction times a Hadamard matrix, each coordinate to the nearest of
//            2^bits levels that are best for normal numbers of variance 1 / head_dim (levels=code:
//            as vLLM solves for them, up to 0.1 % off); what comes back is scaled to the length
//            ("norm correction"). k8v4: FP8 E4M3 as they are
//   values   2^bits equal steps from the smallest to the largest channel, both in fp16
// A head's slot of an entry has an even number of bytes.
// Source: Zandieh et al., arXiv 2504.19874; code vllm-project/vllm (quantization/turboquant,
// ops/triton_turboquant_store.py). The paper turns by a random matrix, treats values as keys, keeps
// outlier channels apart and adds a sign sketch of the residual, which vLLM leaves out.
#include <bit>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/quantise.h"
#include "sim/policies/turboquant_rule.h"

namespace kvspan::policies {
namespace {

struct TurboBits {
  int keys = 4;  // 8: FP8
  int values = 4;
};

class TurboStore final : public Store {
 public:
  TurboStore(const TurboBits& bits, std::vector<double> levels, int heads)
      : bits_(bits), levels_(std::move(levels)), held_(index(heads), 0) {}

  void age(const View& view, Decision& out) override {
    for (int head = 0; head < view.shape().heads; ++head) {
      TokenIndex& held = held_[index(head)];  // older ones are quantised
      const Alive alive(view, head, out);
      for (const TokenIndex t : alive.from(held)) {
        out.changes.push_back({view.pass().end, head, t, 1});
        if (view.measures_output()) out.rewrites.push_back(rewritten(view, head, t));
      }
      held = static_cast<TokenIndex>(view.pass().end);
    }
  }

 private:
  Rewrite rewritten(const View& view, int head, TokenIndex token) const {
    Rewrite out{head, token, view.key(head, token), view.value(head, token)};
    if (bits_.keys == 8) {
      for (float& x : out.k) x = round_e4m3(x);
    } else {
      through_levels(out.k, levels_);
    }
    through_steps(out.v, bits_.values);
    return out;
  }

  TurboBits bits_;
  std::vector<double> levels_;
  std::vector<TokenIndex> held_;  // [heads]
};

TurboBits bits_of(const std::string& preset) {
  if (preset == "k8v4") return {8, 4};
  if (preset == "k3v4_nc") return {3, 4};
  return preset == "3bit_nc" ? TurboBits{3, 3} : TurboBits{4, 4};
}

}  // namespace

PolicyEntry turboquant() {
  PolicyEntry entry;
  entry.name = "turboquant";
  entry.kind = MethodKind::quantisation;
  entry.summary = "keys turned and rounded to best levels, values in equal steps, at once";
  entry.source = "Zandieh et al. 2025, arXiv 2504.19874; code vllm-project/vllm";
  entry.evidence = "code read (vLLM)";
  entry.differs =
      "vLLM leaves the model's first and last two layers as they are, here all are quantised; its "
      "decode rows read their own entry quantised, here after the row; the paper turns by a random "
      "matrix, keeps outlier channels apart, sketches the residual, and means the best levels, "
      "which "
      "vLLM's solver misses by up to 0.0017 deviations (levels=)";
  entry.needs = "nothing; k and v for the error of the output; a head_dim that is a power of two";
  entry.parameters = {{.name = "preset",
                       .kind = Parameter::Kind::word,
                       .fallback = "4bit_nc",
                       .help = "bits of keys and values, by vLLM's names",
                       .choices = {"4bit_nc", "k8v4", "k3v4_nc", "3bit_nc"}},
                      {.name = "levels",
                       .kind = Parameter::Kind::word,
                       .fallback = "code",
                       .help = "of keys: as vLLM's solver finds them, or the best",
                       .choices = {"code", "best"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const TurboBits bits = bits_of(arguments.text("preset"));
    if (bits.keys != 8 && !std::has_single_bit(static_cast<unsigned>(geometry.k_dim))) {
      throw ConfigError(
          fmt::format("turboquant(preset={}): found head_dim {}, expected a power of two; nearest: "
                      "preset=k8v4",
                      arguments.text("preset"), geometry.k_dim));
    }
    const auto packed = [](std::int64_t dim, int b) { return (dim * b + 7) / 8; };
    const std::int64_t key =
        bits.keys == 8 ? geometry.k_dim : packed(geometry.k_dim, bits.keys) + 2;
    const std::int64_t slot = (key + packed(geometry.v_dim, bits.values) + 4 + 1) / 2 * 2;
    Storing store;
    std::vector<double> levels;  // FP8 has none
    if (bits.keys != 8)
      levels =
          arguments.is("levels", "best") ? normal_levels(bits.keys) : levels_of_vllm(bits.keys);
    store.make = [bits, levels](const LayerShape& shape) {
      return std::make_unique<TurboStore>(bits, levels, shape.heads);
    };
    store.representations = {{"turboquant " + arguments.text("preset"), slot, 0}};
    store.payload = [slot](TokenCount entries, const Pass&) { return entries * slot; };
    store.alters_vectors = true;
    store.entry_bytes = slot;
    Recipe recipe;
    recipe.store = own(std::move(store));
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
