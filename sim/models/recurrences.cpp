// SPDX-License-Identifier: Apache-2.0
#include "sim/models/recurrences.h"

#include <string>

#include <nlohmann/json.hpp>

namespace kvspan::config {
namespace {

// The fields of Mamba 2 by family.
struct Mamba2Keys {
  const char *heads, *width, *groups, *state, *taps, *convolution_bias, *in_bias, *out_bias;
};
constexpr Mamba2Keys kNemotron{"mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size",
                               "conv_kernel",     "use_conv_bias",  "use_bias", "use_bias"};
constexpr Mamba2Keys kFalcon{"mamba_n_heads",   "mamba_d_head",   "mamba_n_groups",
                             "mamba_d_state",   "mamba_d_conv",   "mamba_conv_bias",
                             "mamba_proj_bias", "projectors_bias"};
constexpr Mamba2Keys kGranite{"mamba_n_heads",   "mamba_d_head",   "mamba_n_groups",
                              "mamba_d_state",   "mamba_d_conv",   "mamba_conv_bias",
                              "mamba_proj_bias", "mamba_proj_bias"};

Count mamba2_width(const Fields& c, const Mamba2Keys& keys, Count heads) {
  const nlohmann::json* width = c.find(keys.width);
  const bool follows = width != nullptr && width->is_string() && *width == "auto";
  if (!follows) return c.width(keys.width, "width of a Mamba head");
  return c.count("mamba_expand", "inner width / hidden_size", 1000) *
         c.count("hidden_size", "width of the model") / heads;
}

Recurrence mamba2(const Fields& c, const Family& family) {
  const bool falcon = family.mixing == Mixing::falcon_h1;
  const Mamba2Keys& keys = family.mixing == Mixing::nemotron ? kNemotron
                           : falcon                          ? kFalcon
                                                             : kGranite;
  const Count heads = c.width(keys.heads, "heads of a Mamba layer");
  const Count inner = heads * mamba2_width(c, keys, heads);
  const Count groups = c.width(keys.groups, "groups of B and C");
  const Count state = c.width(keys.state, "states a channel");
  Recurrence r;
  r.convolved = inner + 2 * groups * state;
  r.projected = inner + r.convolved + heads;
  r.taps = c.width(keys.taps, "taps of the convolution");
  r.convolution_bias = c.flag(keys.convolution_bias, true);
  r.in_bias = c.flag(keys.in_bias, false);
  r.out_bias = c.flag(keys.out_bias, false);
  r.out = inner;
  const bool norm = !falcon || c.flag("mamba_rms_norm", false);
  r.small = 3 * heads + (norm ? inner : 0);  // dt_bias, A, D; the norm
  r.state = inner * state;
  return r;
}

// Kimi delta attention, whose decay and gate are products of two narrow matrices.
Recurrence kimi(const Fields& c) {
  const Fields linear = c.has("linear_attn_config") ? c.part(c.at("linear_attn_config")) : c;
  const Count heads =
      linear.width(linear.one_of({"linear_num_heads", "num_heads"}), "heads of a linear layer");
  const Count width = linear.width(c.has("linear_attn_config") ? "head_dim" : "linear_head_dim",
                                   "width of a linear head");
  Recurrence r;
  r.out = heads * width;
  r.convolved = 3 * r.out;
  r.projected = r.convolved + 2 * width + heads;
  r.taps = linear.width(linear.one_of({"linear_conv_kernel_dim", "short_conv_kernel_size"}),
                        "taps of the convolution");
  r.small = 2 * width * r.out + r.out + heads + width;  // decay, gate; dt_bias, A, the norm
  r.state = heads * width * width;
  return r;
}

}  // namespace

Recurrence recurrence_of(const Fields& c, const Family& family, Mixer mixer) {
  Recurrence r;
  const auto hidden = [&] { return c.count("hidden_size", "width of the model"); };
  if (mixer == Mixer::mamba2) return mamba2(c, family);
  if (mixer == Mixer::kimi) return kimi(c);
  if (mixer == Mixer::mamba1) {
    const Count inner = c.count("mamba_expand", "inner width / hidden_size", 1000) * hidden();
    const Count state = c.width("mamba_d_state", "states a channel");
    const Count rank = c.width("mamba_dt_rank", "rank of the step's projection");
    r.projected = 2 * inner;
    r.convolved = inner;
    r.taps = c.width("mamba_d_conv", "taps of the convolution");
    r.convolution_bias = c.flag("mamba_conv_bias", true);
    r.in_bias = r.out_bias = c.flag("mamba_proj_bias", false);
    r.out = inner;
    // x_proj, dt_proj and its bias, A, D, and the norms of dt, B and C
    r.small = inner * (rank + 2 * state) + rank * inner + inner + inner * state + inner + rank +
              2 * state;
    r.state = inner * state;
  } else if (mixer == Mixer::delta) {
    const Count key_heads = c.width("linear_num_key_heads", "key heads of a linear layer");
    const Count value_heads = c.width("linear_num_value_heads", "value heads of a linear layer");
    const Count key = c.width("linear_key_head_dim", "width of a key head");
    const Count value = c.width("linear_value_head_dim", "width of a value head");
    r.convolved = 2 * key_heads * key + value_heads * value;
    r.projected = r.convolved + value_heads * value + 2 * value_heads;
    r.taps = c.width("linear_conv_kernel_dim", "taps of the convolution");
    r.out = value_heads * value;
    r.small = 2 * value_heads + value;  // dt_bias, A; the norm
    r.state = value_heads * key * value;
  } else {
    r.convolved = hidden();
    r.projected = 3 * hidden();
    r.taps = c.width("conv_L_cache", "taps of the convolution");
    r.convolution_bias = r.in_bias = r.out_bias = c.flag("conv_bias", false);
    r.out = hidden();
  }
  return r;
}

Count state_bytes(const Fields& c, const Family& family, const Layers& layers) {
  Count bytes = 4;
  for (const char* key : {"mamba_ssm_cache_dtype", "mamba_ssm_dtype"}) {
    const std::string dtype = c.text(key);
    if (dtype == "bfloat16" || dtype == "float16") bytes = 2;
  }
  Count sum = 0;
  for (const Mixer mixer : kRecurrent) {
    const auto n = static_cast<Count>(layers.with(mixer).size());
    if (n == 0) continue;
    const Recurrence r = recurrence_of(c, family, mixer);
    sum += n * (r.convolved * (r.taps - 1) * 2 + r.state * bytes);
  }
  return sum;
}

}  // namespace kvspan::config
