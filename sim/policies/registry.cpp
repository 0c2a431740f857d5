// SPDX-License-Identifier: Apache-2.0
// The one list of policies. Explicit: self-registration silently fails in static libraries.
#include "sim/recipe.h"

namespace kvspan {
namespace policies {
PolicyEntry full();
PolicyEntry random();
PolicyEntry streaming_llm();
PolicyEntry h2o();
PolicyEntry tova();
PolicyEntry snapkv();
PolicyEntry pyramidkv();
PolicyEntry pyramid();
PolicyEntry duoattention();
PolicyEntry scores();
PolicyEntry deaths();
PolicyEntry chunked();
PolicyEntry knorm();
PolicyEntry keydiff();
PolicyEntry lagkv();
PolicyEntry expected_attention();
PolicyEntry cur();
PolicyEntry observed_attention();
PolicyEntry simlayerkv();
PolicyEntry criticalkv();
PolicyEntry chunk();
PolicyEntry block();
PolicyEntry dms();
PolicyEntry decoding();
PolicyEntry lambda();
PolicyEntry scissorhands();
PolicyEntry keyformer();
PolicyEntry r_kv();
PolicyEntry fastgen();
PolicyEntry sagekv();
PolicyEntry quest();
PolicyEntry retroattention();
PolicyEntry infinigen();
PolicyEntry clusterkv();
PolicyEntry refreshkv();
PolicyEntry minference();
PolicyEntry kivi();
PolicyEntry kvquant();
PolicyEntry qpruningkv();
PolicyEntry mikv();
PolicyEntry think();
PolicyEntry less();
PolicyEntry adakv();
PolicyEntry headkv();
PolicyEntry baklava();
PolicyEntry prulong();
PolicyEntry chunkkv();
PolicyEntry dbudgetkv();
PolicyEntry foresightkv();
PolicyEntry write_gate();
PolicyEntry judgeq();
PolicyEntry locret();
}  // namespace policies

const std::vector<PolicyEntry>& registry() {
  // clang-format off
  static const std::vector<PolicyEntry> entries = {
      policies::full(),          policies::random(),
      policies::streaming_llm(), policies::h2o(),
      policies::tova(),          policies::snapkv(),
      policies::pyramidkv(),     policies::pyramid(),
      policies::duoattention(),  policies::scores(),
      policies::deaths(),        policies::chunked(),
      policies::knorm(),         policies::keydiff(),
      policies::lagkv(),         policies::expected_attention(),
      policies::cur(),           policies::observed_attention(),
      policies::simlayerkv(),    policies::criticalkv(),
      policies::chunk(),         policies::block(),
      policies::dms(),           policies::decoding(),
  };
      policies::full(),
      policies::random(),
      policies::streaming_llm(),
      policies::h2o(),
      policies::tova(),
      policies::snapkv(),
      policies::pyramidkv(),
      policies::pyramid(),
      policies::duoattention(),
      policies::scores(),
      policies::deaths(),
      policies::chunked(),
      policies::lambda(),
      policies::scissorhands(),
      policies::keyformer(),
      policies::r_kv(),
      policies::fastgen(),
      policies::sagekv(),
  };
  // clang-format on
      policies::full(),         policies::random(), policies::streaming_llm(), policies::h2o(),
      policies::tova(),         policies::snapkv(), policies::pyramidkv(),     policies::pyramid(),
      policies::duoattention(), policies::scores(), policies::deaths(),        policies::chunked(),
      policies::quest(),
      policies::retroattention(),
      policies::infinigen(),
      policies::clusterkv(),
      policies::refreshkv(),
      policies::minference()};
      policies::full(),         policies::random(),  policies::streaming_llm(), policies::h2o(),
      policies::tova(),         policies::snapkv(),  policies::pyramidkv(),     policies::pyramid(),
      policies::duoattention(), policies::scores(),  policies::deaths(),        policies::chunked(),
      policies::kivi(),         policies::kvquant(), policies::qpruningkv(),    policies::mikv(),
      policies::think(),        policies::less()};
      policies::full(),      policies::random(),  policies::streaming_llm(),
      policies::h2o(),       policies::tova(),    policies::snapkv(),
      policies::pyramidkv(), policies::pyramid(), policies::duoattention(),
      policies::scores(),    policies::deaths(),  policies::chunked(),
      policies::adakv(),     policies::headkv(),  policies::baklava(),
      policies::prulong(),   policies::chunkkv(), policies::dbudgetkv()};
      policies::full(),        policies::random(),     policies::streaming_llm(),
      policies::h2o(),         policies::tova(),       policies::snapkv(),
      policies::pyramidkv(),   policies::pyramid(),    policies::duoattention(),
      policies::scores(),      policies::deaths(),     policies::chunked(),
      policies::foresightkv(), policies::write_gate(), policies::judgeq(),
      policies::locret(),
  };
  return entries;
}

}  // namespace kvspan
