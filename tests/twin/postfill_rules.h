// SPDX-License-Identifier: Apache-2.0
// What the policies that act after the prompt keep, one function each.
#pragma once

#include <vector>

#include "tests/twin/postfill_world.h"

namespace kvspan::twin::postfill {

// A cut by one statistic, parameters feature and feature_head.
void foresightkv(const World& u, const Moment& m, Memory& memory, Verdict& out);

// SnapKV's votes of the last rows before the end of the pass.
[[nodiscard]] Values votes(const World& u, const Choice& c, const Moment& m, int h,
                           const Tokens& entries, int window);

// What stays of the entries in their places, laid anew; ranks inside a partition may hang on near
// ties.
[[nodiscard]] Tokens lagkv(const World& u, const Choice& c, int l, int h, const Tokens& all,
                           int budget, bool& near);

// Scores from here on are of entries that a policy protects.
inline constexpr double kSafe = 1e3;

// What stays, by falling score, what is protected first; ties keep their places. `near`: two places
// hang on a near tie.
[[nodiscard]] Tokens laid(const Tokens& places, Values score, const std::vector<char>& stays,
                          bool& near);

// A cut of the cache as kvpress makes it: what it keeps lies by falling score from then on.
void decoding(const World& u, const Moment& m, bool due, Memory& memory, Verdict& out);

// Scores of one head by the policy's own rule, over the given candidates.
[[nodiscard]] Values score_by(const World& u, const Choice& c, const Moment& m, int h,
                              const Tokens& entries);

[[nodiscard]] Safe safe_of(const World& u, const Choice& c);

// Scores of methods of 2025 and 2026; compactor: of its halves, too.
[[nodiscard]] Values triattention(const World& u, const Moment& m, int h, const Tokens& entries);
[[nodiscard]] Values qfilter(const World& u, const Moment& m, int h, const Tokens& entries);
[[nodiscard]] Values lookahead(const World& u, const Choice& c, const Moment& m, int h,
                               const Tokens& entries);
[[nodiscard]] Values cap(const World& u, const Choice& c, const Moment& m, int h,
                         const Tokens& entries);
[[nodiscard]] Values compactor(const World& u, const Choice& c, const Moment& m, int h,
                               const Tokens& entries);

void simlayerkv(const World& u, const Moment& m, Memory& memory, Verdict& out);

// Votes of every head of the layer over the entries before the window.
struct Ballot {
  Tokens candidates;
  std::vector<Values> votes;  // [heads]
};

[[nodiscard]] Ballot ballot(const World& u, const Choice& c, const Moment& m, int window);

// The best `top` candidates of a head, and the window.
void keep_voted(const Ballot& x, const Moment& m, int h, int top, Verdict& out);

void keep_newest(const Moment& m, int count, Verdict& out);

void adakv(const World& u, const Moment& m, int model_layer, Verdict& out);

void chunkkv(const World& u, const Moment& m, int model_layer, Memory& memory, Verdict& out);

void dbudgetkv(const World& u, const Moment& m, Verdict& out);

// An entry, or a rank, among others.
struct Ranked {
  double score;
  int token, layer, head;
};

// The better score in fp32 first; ties to the lower token, layer, head.
[[nodiscard]] bool before(const Ranked& a, const Ranked& b);

// Whether the first `cut` of a sorted list hang on a near tie.
[[nodiscard]] bool near_cut(const std::vector<Ranked>& list, std::size_t cut);

// One ranking of all heads of all layers.
void global(const World& u, const Moment& m, Verdict& out);

// Layers that share a budget; cake cuts in decode, too.
void cake(const World& u, const Moment& m, Memory& memory, Verdict& out);
void lava(const World& u, const Moment& m, Verdict& out);

// Budgets of all layers by what replayed rows look at.
void kvzip(const World& u, const Moment& m, Verdict& out);
void kvcompose(const World& u, const Moment& m, Verdict& out);

// Rows of the question, which finch observes.
[[nodiscard]] int question_rows(const World& u, const Choice& c);
[[nodiscard]] Values finch(const World& u, const Choice& c, const Moment& m, int h,
                           const Tokens& entries);

// p' of a row over what is held, with tokens numbered by their places in the cache.
[[nodiscard]] Values renumbered(const World& u, int l, int g, int row, const Tokens& held);

[[nodiscard]] Values trimkv(const World& u, const Moment& m, int h, const Tokens& entries);

// At every pass: vase follows the order of the cache, caote(h2o) adds up what the rows gave.
void vase(const World& u, const Moment& m, Memory& memory, Verdict& out);
void caote(const World& u, const Moment& m, Memory& memory, Verdict& out);

// Entries of the heads of a layer by the curve of lukv.
[[nodiscard]] std::vector<int> lukv_counts(const World& u, const Moment& m, int budget);

// Importance of the stored heads: rows of the table that belong to stored layers.
void headkv(const World& u, const Moment& m, int model_layer, Verdict& out);

// [stored layers][heads] 1 = full head.
[[nodiscard]] std::vector<std::vector<int>> full_heads(const World& u);

// Budgets [layers, heads] of a power of the importance, within bounds, that add up to B heads.
[[nodiscard]] std::vector<int> water_filling(const World& u, int budget, bool& near);

// PyramidKV in the arithmetic of kvpress: entries of a layer, window included.
[[nodiscard]] int pyramid_count(const World& u, int model_layer, int n, int w);

// criticalkv, chunk, block: spend a budget in the inner policy's name.
void wrapped(const World& u, const Moment& m, Verdict& out);

// Entries that leave the window are judged.
void dms(const World& u, const Moment& m, Verdict& out);

// Whether a row reads an entry that is held: what masks rows before it evicts.
[[nodiscard]] bool dms_reads(const World& u, int l, int h, int row, int token);
[[nodiscard]] bool write_gate_reads(const World& u, int l, int h, int row, int token);

// What a decode row reads of the admitted entries by pages, and the entries of its window.
[[nodiscard]] Tokens admitted_pages(const World& u, int l, int h, int row, const Tokens& held);

// Which entries the gate lets in.
[[nodiscard]] std::vector<char> write_gate(const World& u);

void locret(const World& u, const Moment& m, Verdict& out);

// The best of a head by the table of scores; the `newest` stay.
[[nodiscard]] Tokens by_table(const World& u, const Moment& m, int h, int newest, int budget,
                              Verdict& out);

// The baselines of arXiv 2506.17121: whether it is one, and what a cut after a pass keeps.
[[nodiscard]] bool of_prulong(const Choice& c);
void prulong(const World& u, const Moment& m, int model_layer, Verdict& out);

}  // namespace kvspan::twin::postfill
