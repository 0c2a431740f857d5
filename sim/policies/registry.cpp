// SPDX-License-Identifier: Apache-2.0
// The one list of policies. Explicit: self-registration silently fails in static libraries.
#include "sim/policy/recipe.h"

namespace kvspan {
namespace policies {
PolicyEntry full();
PolicyEntry random();
PolicyEntry streaming_llm();
PolicyEntry lambda();
PolicyEntry prulong();
PolicyEntry duoattention();
PolicyEntry baklava();
PolicyEntry h2o();
PolicyEntry tova();
PolicyEntry scissorhands();
PolicyEntry keyformer();
PolicyEntry fastgen();
PolicyEntry r_kv();
PolicyEntry foresightkv();
PolicyEntry snapkv();
PolicyEntry pyramidkv();
PolicyEntry adakv();
PolicyEntry headkv();
PolicyEntry chunkkv();
PolicyEntry dbudgetkv();
PolicyEntry sagekv();
PolicyEntry simlayerkv();
PolicyEntry judgeq();
PolicyEntry knorm();
PolicyEntry keydiff();
PolicyEntry lagkv();
PolicyEntry expected_attention();
PolicyEntry cur();
PolicyEntry observed_attention();
PolicyEntry write_gate();
PolicyEntry quest();
PolicyEntry retroattention();
PolicyEntry clusterkv();
PolicyEntry infinigen();
PolicyEntry refreshkv();
PolicyEntry minference();
PolicyEntry kivi();
PolicyEntry kvquant();
PolicyEntry qpruningkv();
PolicyEntry mikv();
PolicyEntry think();
PolicyEntry less();
PolicyEntry pyramid();
PolicyEntry locret();
PolicyEntry scores();
PolicyEntry deaths();
PolicyEntry chunked();
PolicyEntry decoding();
PolicyEntry dms();
PolicyEntry criticalkv();
PolicyEntry chunk();
PolicyEntry block();
}  // namespace policies

const std::vector<PolicyEntry>& registry() {
  // clang-format off
  static const std::vector<PolicyEntry> entries = {
      policies::full(),
      policies::random(),
      policies::streaming_llm(),
      policies::lambda(),
      policies::prulong(),
      policies::duoattention(),
      policies::baklava(),
      policies::h2o(),
      policies::tova(),
      policies::scissorhands(),
      policies::keyformer(),
      policies::fastgen(),
      policies::r_kv(),
      policies::foresightkv(),
      policies::snapkv(),
      policies::pyramidkv(),
      policies::adakv(),
      policies::headkv(),
      policies::chunkkv(),
      policies::dbudgetkv(),
      policies::sagekv(),
      policies::simlayerkv(),
      policies::judgeq(),
      policies::knorm(),
      policies::keydiff(),
      policies::lagkv(),
      policies::expected_attention(),
      policies::cur(),
      policies::observed_attention(),
      policies::write_gate(),
      policies::quest(),
      policies::retroattention(),
      policies::clusterkv(),
      policies::infinigen(),
      policies::refreshkv(),
      policies::minference(),
      policies::kivi(),
      policies::kvquant(),
      policies::qpruningkv(),
      policies::mikv(),
      policies::think(),
      policies::less(),
      policies::pyramid(),
      policies::locret(),
      policies::scores(),
      policies::deaths(),
      policies::chunked(),
      policies::decoding(),
      policies::dms(),
      policies::criticalkv(),
      policies::chunk(),
      policies::block(),
  };
  // clang-format on
  return entries;
}

}  // namespace kvspan
