// SPDX-License-Identifier: Apache-2.0
// Where a paper, its authors' code and other implementations differ, or say nothing, and what is the
// default here. The files of the policies say more.
#include <map>

#include "sim/policies_doc.h"

namespace kvspan {

std::string differences_of(const std::string& policy) {
  static const std::map<std::string, std::string> known = {
      {"streaming_llm",
       "the authors number positions by cache slot (positions=cache; default original, deaths are "
       "equal) and evict before adding, here a row is added first"},
      {"lambda", "LM-Infinite also clips distances; the logged scores are taken as they are"},
      {"prulong",
       "the hard-concrete constants of paper and code differ; only the order of the gates counts "
       "here, and the code's random ties go to the lower (layer, head)"},
      {"duoattention",
       "the paper rounds gates at 0.5, the code cuts at a quantile: sparsity= is the code's, a "
       "file "
       "without it the paper's"},
      {"baklava",
       "no public code; the cosine's input, the GQA operator and the map from importance to tokens "
       "are unpublished, so that this is a stand-in by name"},
      {"h2o",
       "the repository holds three definitions of the budget (variant=) and one that reads future "
       "rows (not offered); the paper is for MHA, GQA sums the group"},
      {"scissorhands",
       "the released evaluation code is another rule than the paper's (mode=eval_code); the "
       "paper's "
       "curve over layers is unpublished, every layer has the same budget"},
      {"keyformer",
       "the code first shrinks at the first decode step, here at the prompt's end; one of its "
       "variants evicts every 8 rows (every=8)"},
      {"fastgen",
       "the paper bounds |A - softmax(QK_C)|, read here as recovered mass >= T; MHA only, a group "
       "takes its most demanding head's class"},
      {"r_kv", "lambda is 0.1 in the README and 0.07 in the code's signature; here 0.1"},
      {"foresightkv",
       "the interval is 256 in training and 128 in evaluation; the evaluation code rebuilds the "
       "decayed sum from the wrong tensor, here it decays as in training"},
      {"snapkv",
       "the authors' code keeps one set per query head (group=none); kvpress averages the group "
       "and "
       "pools by average (pool=avg,order=pool_then_group,window=64,kernel=5)"},
      {"pyramidkv",
       "the code's integer step overspends small budgets (rounding=code), the paper's line does "
       "not "
       "(exact), kvpress counts the window inside (kvpress)"},
      {"adakv", "the authors' repository and kvpress allocate differently (form=code|kvpress)"},
      {"headkv",
       "the README says that a larger beta shares more, the formula that it shares less: the "
       "formula; the code stores per query head (group=none), here per KV head"},
      {"chunkkv",
       "the paper sums over 10 tokens and adds the window, kvpress averages 20 and quantises the "
       "budget (preset=)"},
      {"dbudgetkv",
       "the paper's norm includes the sinks, the code's does not (norm=code is the default: the "
       "published budgets look like it); 1 % in the paper, 5 % in its scripts"},
      {"sagekv",
       "no public code: whether entries chosen by several heads of a group are stored once is not "
       "said (dup=fill keeps exactly B, union the distinct ones)"},
      {"simlayerkv",
       "kvpress' default threshold 1.0 never fires; the authors use 0.65 to 0.9 a model"},
      {"judgeq",
       "the official code could not be obtained: pooling, window and group reduction are ours"},
      {"knorm", "the authors leave the first two layers alone (skip=2), kvpress does not"},
      {"lagkv",
       "the authors keep a share of every partition and go on in decode; kvpress ranks once over "
       "the "
       "prompt, as here"},
      {"cur", "the paper's random sketch is unseeded in kvpress; the local norms are taken here"},
      {"write_gate",
       "the authors train the gate end to end; oracles, fitted gates and a random control stand in "
       "for it; their cap is over all layers, here per layer"},
      {"quest",
       "the kernel always reads the last page (last_page=true), the evaluation code reads at least "
       "3 "
       "pages; both select per query head, WG-KV's port per KV head (per=kv)"},
      {"retroattention",
       "page size and dense layers are not stated: Quest's 16 and 2; rewritten keys and values are "
       "not in a trace"},
      {"clusterkv",
       "4 new clusters per 320 tokens in the paper, 8 in the efficiency code, none in the accuracy "
       "code (added=); the code's buffers are per query head (buffers=query)"},
      {"infinigen",
       "the query of a layer is guessed from the layer below, which a trace does not hold: the "
       "row's "
       "own query; r is 0.2 in the scripts, 0.3 in the paper"},
      {"refreshkv",
       "no public code; thresholds differ between versions and models (0.8, 0.95); version 1 "
       "refreshes on a fixed stride (schedule=fixed)"},
      {"minference",
       "released patterns are vertical-slash for every head; block-sparse is left out"},
      {"kivi",
       "2 bits are recommended for MHA, 4 for GQA; scale and zero are fp16, as in the code"},
      {"kvquant",
       "the paper's accounting and the released deployment code differ in bytes (accounting=); "
       "codebooks are fitted here without Fisher information"},
      {"qpruningkv",
       "the paper counts no scales, the bytes here do; the code's default HQQ axis is a strided "
       "grouping, here groups run along a vector; the code stores per query head"},
      {"mikv",
       "no public code; whether the high tier grows with the text is not said (ratio_mode=), nor "
       "how "
       "a group's heads share it (importance summed)"},
      {"think",
       "the reference has one mask per query head, kvpress one per KV head, as here; kvpress "
       "zeroes "
       "channels of the newest keys too and saves no byte (preset=kvpress)"},
      {"less",
       "MHA only in the code: states per KV head, features per query head; the learned kernels are "
       "replaced by stand-ins of the same size"},
      {"locret",
       "the metric of arXiv 2506.17121 adds the stabilizers to every chunk, the code counts them "
       "inside: the code is followed, the metric is locret_head() of the analytic model"},
      {"chunked",
       "the paper's metric keeps the window on top of every chunk's share, its evaluation code "
       "inside it (count=metric|implementation)"},
      {"chunk",
       "kvpress spends int(share x length) in every chunk, here the whole budget is spent"},
      {"decoding",
       "kvpress rotates all buffered queries to the current position; here each has its own"},
      {"dms", "kvpress masks and frees nothing; here entries leave"},
  };
  const auto it = known.find(policy);
  return it == known.end() ? "" : it->second;
}

}  // namespace kvspan
