// SPDX-License-Identifier: Apache-2.0
// Random cases of the methods of 2025 and 2026.
#include "tests/twin/postfill_draws.h"

namespace kvspan::test {

const Draws& recent_draws() {
  static const Draws all = {
      {"global",
       [](Random& r, Drawn& d, const std::string&) {
         inner_policy(r, d,
                      one_of(r, {"snapkv", "snapkv", "knorm", "keydiff", "expected_attention",
                                 "cur", "observed_attention"}),
                      true);
         if (d.parameters["inner"] == "knorm" && coin(r)) d.set_inner("skip", 1);
         d.set("alpha", one_of(r, {"0", "0.2", "1"}));
       }},
      {"cake",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("budget", some_budget(r, d));
         d.set("window", pick(r, 2, 8));
         d.set("kernel", one_of(r, {"1", "3", "5"}));
         d.set("gamma", one_of(r, {"0", "1", "200"}));
         d.set("tau1", one_of(r, {"0.4", "1", "1.6"}));
         d.set("tau2", one_of(r, {"0.4", "1", "2"}));
       }},
      {"lava",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("budget", some_budget(r, d));
         d.set("window", pick(r, 1, 8));
         d.set("kernel", one_of(r, {"1", "3", "7"}));
         d.set("alpha", one_of(r, {"0", "0.2", "0.5"}));
         d.set("floor", one_of(r, {"code", "layer"}));
       }},
      {"triattention",
       [](Random& r, Drawn& d, const std::string&) {
         const bool stays = coin(r, 3);
         const int lowest = stays ? d.prompt() + 1 : 1;
         d.set("budget", pick(r, lowest, d.prompt() + 6));
         d.set("every", pick(r, 1, 8));
         if (!stays) return;
         d.set("prompt", "stay");
         d.plan.evict_point = -1;
         d.parameters["prompt_tokens"] = std::to_string(d.prompt());
       }},
      {"qfilter",
       [](Random& r, Drawn& d, const std::string&) { d.set("budget", some_budget(r, d)); }},
      {"cap",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("budget", some_budget(r, d));
         d.set("sinks", pick(r, 0, 4));
         d.set("future", pick(r, 1, 20));
         d.set("tau", one_of(r, {"0", "1", "5"}));
       }},
      {"compactor",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("budget", some_budget(r, d));
         d.set("chunk", pick(r, 2, 12));
         d.set("sketch", "0");
         d.set("sinks", pick(r, 0, 3));
         d.set("recent", pick(r, 0, 3));
         if (coin(r)) d.set("blending", one_of(r, {"0", "0.35", "1"}));
       }},
      {"chunkkv",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("budget", some_budget(r, d));
         d.set("preset", "entropy");
         d.set("length", pick(r, 3, 8));
         d.set("spiky", pick(r, 1, 2));
         d.set("window", pick(r, 1, 10));
       }},
      {"lookahead",
       [](Random& r, Drawn& d, const std::string&) {
         const std::string group = one_of(r, {"mean", "max", "sum", "none"});
         d.set("budget", some_budget(r, d, group == "none" ? d.meta.query_heads : d.meta.kv_heads));
         d.set("window", pick(r, 1, 5));
         d.set("ahead", pick(r, 0, 5));
         d.set("kernel", one_of(r, {"1", "3", "7"}));
         d.set("group", group);
         d.set("mask", one_of(r, {"code", "causal"}));
         d.plan.evict_point = -1;
       }},
      {"leverage",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("budget", some_budget(r, d));
         d.set("sketch", "0");
       }},
      {"noncausal",
       [](Random& r, Drawn& d, const std::string&) {
         d.set("budget", some_budget(r, d));
         d.set("chunk", pick(r, 2, 12));
       }},
  };
  return all;
}

}  // namespace kvspan::test
