// SPDX-License-Identifier: Apache-2.0
// KVQuant: keys before their rotation and per channel, values per token, to a codebook of 2^bits
// levels ("nuq"); the most extreme `outliers` of the elements are kept as they are, and so is the
// first token. Ranges of the keys' channels and both codebooks are fixed beforehand, those of a
// value's token are taken when it comes. A range goes without floor(outliers / 2 n) of n elements
// at either end, and is held as fp16 centre and half width, which the codebook's [-1, 1] is
// stretched to; an element outside it is an outlier. Every entry is quantised at the end of its
// pass.
// Source: Hooper et al., arXiv 2401.18079; code SqueezeAILab/KVQuant (quant and deployment trees).
//
// Stand-in ("kvquant-noFisher"): ranges and codebooks come from the first half of the prompt of the
// replayed trace, but for its first token, and the k-means is not weighted by Fisher information;
// the authors calibrate on 16 sequences of another corpus. Left out: Q-Norm (2 bits), the cap on
// outliers per token. Without rope_* fields keys are quantised as they stand in the trace, after
// the rotation.
//
// Bytes of a layer, T tokens, D = KV heads x channels (paper, section 3.6):
//   keys    T D bits/8 + outliers T D 4 + 4 T       + 4 D + 2 x 2^bits
//   values  T D bits/8 + outliers T D 4 + 4 T + 4 T       + 2 x 2^bits
// (outlier: 16-bit value and index; a pointer per token; scale and zero per channel or token). What
// grows with T is spread over the entries so that the sum over the first T of a head is its floor.
// accounting=deploy is the released code: slots for outliers of 8 bytes and, for values, a table of
// 2^bits fp32 per token, all allocated for the whole run.
#include <cmath>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/kvquant_rule.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/quantise.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

// Bytes that come with the entries and beside them.
void set_paper_bytes(NonUniform::Settings& s, const Geometry& g, double outliers, Charge& charge) {
  const double dims = g.k_dim + g.v_dim;
  s.bytes = dims * s.bits / 8 + outliers * dims * 4 + 12.0 / g.kv_heads;
  charge.once = g.layers() * (std::int64_t{4} * g.kv_heads * g.k_dim + (4LL << s.bits));
}

void set_deployed_bytes(NonUniform::Settings& s, const Geometry& g, double outliers,
                        Charge& charge) {
  const auto slots = [&](std::int64_t dim) {  // of a token: two tails, rounded up
    const double tail = outliers / 2 * static_cast<double>(g.kv_heads * dim);
    return 2 * (static_cast<std::int64_t>(std::floor(tail)) + 1);
  };
  const std::int64_t codes =
      (std::int64_t{g.k_dim} * s.bits + 7) / 8 + (std::int64_t{g.v_dim} * s.bits + 7) / 8;
  const std::int64_t token = 8 * (slots(g.k_dim) + slots(g.v_dim)) + (4LL << s.bits);
  s.bytes = static_cast<double>(codes);
  const std::int64_t layers = g.layers();
  charge.once = layers * g.tokens * token;
  charge.during = [=, heads = g.kv_heads, tokens = g.tokens](RowIndex row) {
    return layers * heads * codes * (tokens - row - 1);  // not yet filled
  };
}

}  // namespace

PolicyEntry kvquant() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "kvquant";
  entry.kind = MethodKind::quantisation;
  entry.summary = "keys before rotation per channel, values per token, to a fitted codebook";
  entry.source = "Hooper et al. 2024, arXiv 2401.18079; code SqueezeAILab/KVQuant";
  entry.evidence = "code read";
  entry.differs =
      "the paper's accounting and the released deployment code differ in bytes "
      "(accounting=); codebooks are fitted here without Fisher information";
  entry.needs = "nothing; k, v and the rope_* fields for the error of the output";
  entry.parameters = {
      {.name = "bits",
       .kind = Kind::word,
       .fallback = "4",
       .unit = "bits",
       .help = "of keys and values",
       .choices = {"4", "3", "2"}},
      {.name = "outliers",
       .kind = Kind::amount,
       .fallback = "1%",
       .unit = "% of the elements",
       .help = "kept as they are"},
      {.name = "accounting",
       .kind = Kind::word,
       .fallback = "paper",
       .help = "deploy: the released code's slots and tables, allocated for the whole run",
       .choices = {"paper", "deploy"}},
      {.name = "codebook",
       .kind = Kind::word,
       .fallback = "nuq",
       .help = "nuq: k-means on the prompt's first half; uniform: equal steps",
       .choices = {"nuq", "uniform"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const double outliers = share_argument(arguments, "outliers");
    Recipe recipe;
    NonUniform::Settings s;
    s.bits = std::stoi(arguments.text("bits"));
    s.tails = outliers / 2;
    s.fit = arguments.is("codebook", "nuq");
    if (arguments.is("accounting", "paper")) {
      set_paper_bytes(s, geometry, outliers, recipe.charge);
    } else {
      set_deployed_bytes(s, geometry, outliers, recipe.charge);
    }
    Storing store;
    const std::int64_t full = geometry.entry_bytes();
    const std::int64_t least = s.bytes_below(1);
    store.make = [s](const LayerShape&) { return std::make_unique<NonUniform>(s); };
    store.representations = {{fmt::format("nuq{}", s.bits), least, 0},
                             {fmt::format("nuq{} and one more byte", s.bits), least + 1, 0}};
    store.payload = [s, full](TokenCount entries, const Pass&) {  // the first token is whole
      return entries < 1 ? 0 : full + s.bytes_below(entries) - s.bytes_below(1);
    };
    store.exact = Storing::Exact::without_evictions;
    store.bound = [full, least](TokenCount entries, const Pass&) {
      return entries < 1 ? 0 : std::max(full, least + 1) + (entries - 1) * (least + 1);
    };
    store.alters_vectors = true;
    store.entry_bytes = least + 1;
    recipe.store = own(std::move(store));
    recipe.notes.emplace_back(
        "stand-in: ranges and codebooks from the prompt's first half, k-means without Fisher "
        "information; not the authors' calibration");
    if (geometry.trace != nullptr && geometry.trace->is_qkv() && !geometry.trace->meta().rope)
      recipe.notes.emplace_back("keys are quantised after rotation: the trace lacks rope_*");
    recipe.knob = Knob{"bits", 2, 4, true, [](TokenCount bits) { return std::to_string(bits); }};
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
