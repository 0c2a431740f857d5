// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/task_draws.h"

#include <algorithm>
#include <cassert>
#include <set>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/random.h"

namespace kvspan::tracegen {
namespace {

const std::vector<std::string> kAdjectives{
    "able",   "amber",   "ancient", "awake",   "bold",   "brave",  "brief",  "bright", "broad",
    "calm",   "careful", "cheap",   "clean",   "clear",  "clever", "cold",   "crisp",  "curious",
    "dark",   "deep",    "dense",   "dry",     "eager",  "early",  "easy",   "empty",  "exact",
    "faint",  "famous",  "fierce",  "fine",    "flat",   "fresh",  "gentle", "glad",   "grand",
    "green",  "happy",   "hollow",  "honest",  "humble", "idle",   "jolly",  "keen",   "kind",
    "large",  "late",    "light",   "little",  "lively", "lonely", "loud",   "loyal",  "lucky",
    "mellow", "merry",   "mild",    "modest",  "narrow", "neat",   "noble",  "odd",    "patient",
    "plain",  "polite",  "proud",   "quick",   "quiet",  "rapid",  "rare",   "ready",  "rough",
    "royal",  "rusty",   "sharp",   "shiny",   "silent", "simple", "sleepy", "slow",   "smooth",
    "solid",  "steady",  "stern",   "strange", "sunny",  "sweet",  "swift",  "tall",   "tame",
    "tender", "thick",   "tidy",    "tiny",    "vast",   "vivid",  "warm",   "wise",   "witty",
    "wooden", "young"};
const std::vector<std::string> kNouns{
    "acorn",   "anchor",  "apple",    "arrow",    "badge",   "barn",    "basket",  "beacon",
    "bell",    "bench",   "bird",     "blanket",  "boat",    "book",    "bottle",  "bridge",
    "brook",   "brush",   "bucket",   "button",   "cabin",   "candle",  "canyon",  "carpet",
    "castle",  "cellar",  "chair",    "cherry",   "circle",  "cloud",   "coast",   "compass",
    "copper",  "corner",  "cotton",   "cradle",   "desert",  "donkey",  "drum",    "eagle",
    "engine",  "falcon",  "farmer",   "feather",  "fence",   "ferry",   "field",   "flame",
    "flute",   "forest",  "fountain", "garden",   "glacier", "glove",   "goose",   "grain",
    "hammer",  "harbor",  "hedge",    "honey",    "horse",   "island",  "jacket",  "kettle",
    "ladder",  "lantern", "lemon",    "letter",   "lizard",  "marble",  "market",  "meadow",
    "mirror",  "monkey",  "mountain", "needle",   "ocean",   "orchard", "otter",   "oven",
    "paddle",  "palace",  "pebble",   "pencil",   "pepper",  "pillow",  "planet",  "pocket",
    "quarry",  "rabbit",  "ribbon",   "river",    "rocket",  "saddle",  "sailor",  "shadow",
    "shelter", "silver",  "spoon",    "squirrel", "stable",  "statue",  "stone",   "stream",
    "summit",  "table",   "temple",   "thread",   "tiger",   "tower",   "tunnel",  "turtle",
    "valley",  "velvet",  "village",  "violin",   "wagon",   "walnut",  "whistle", "willow",
    "window",  "winter",  "wizard",   "zebra"};
const std::vector<std::string> kVerbs{
    "admire", "answer", "arrive", "borrow", "bring", "build",  "carry",  "catch",  "climb",
    "count",  "cross",  "dance",  "decide", "draw",  "drift",  "enjoy",  "follow", "gather",
    "greet",  "guess",  "hurry",  "invite", "laugh", "learn",  "listen", "mend",   "notice",
    "offer",  "paint",  "plant",  "praise", "reach", "remain", "repair", "return", "search",
    "share",  "shout",  "smile",  "travel", "trust", "visit",  "wander", "watch",  "wonder"};

}  // namespace

std::int64_t Draws::below(std::int64_t n) {
  const double u = uniform(seed_, {drawn_++});
  return std::min(n - 1, static_cast<std::int64_t>(u * static_cast<double>(n)));
}

std::vector<std::int64_t> Draws::distinct(std::int64_t n, std::int64_t count) {
  assert(count <= n);
  std::vector<std::int64_t> out;
  std::set<std::int64_t> taken;
  while (std::ssize(out) < count) {
    const std::int64_t drawn = below(n);
    if (taken.insert(drawn).second) out.push_back(drawn);
  }
  return out;
}

std::string Draws::digits(int count) {
  std::string out(1, static_cast<char>('1' + below(9)));
  while (std::ssize(out) < count) out += static_cast<char>('0' + below(10));
  return out;
}

std::string Draws::letters(char first, int count) {
  std::string out;
  while (std::ssize(out) < count) out += static_cast<char>(first + below(26));
  return out;
}

std::string Draws::word() { return of(kAdjectives) + "-" + of(kNouns); }

std::string Draws::uuid() {
  std::string out;
  for (int i = 0; i < 32; ++i) {
    if (i == 8 || i == 12 || i == 16 || i == 20) out += '-';
    const std::int64_t digit = i == 12 ? 4 : i == 16 ? 8 + below(4) : below(16);
    out += "0123456789abcdef"[digit];
  }
  return out;
}

std::vector<std::string> draw_words(Draws& draws, std::int64_t count) {
  std::vector<std::string> all = kAdjectives;
  all.insert(all.end(), kNouns.begin(), kNouns.end());
  all.insert(all.end(), kVerbs.begin(), kVerbs.end());
  draws.shuffle(all);
  std::set<std::string> made;
  while (std::ssize(all) < count) {
    std::string word = draws.of(kAdjectives) + draws.of(kNouns);
    if (made.insert(word).second) all.push_back(std::move(word));
  }
  all.resize(static_cast<std::size_t>(count));
  return all;
}

std::vector<std::string> draw_names(Draws& draws, std::int64_t count) {
  static const std::vector<std::string> kSyllables{
      "al",  "ber", "cor", "dan", "el",  "fal", "gar", "hol", "il",  "jor", "kel", "lan",
      "mor", "nes", "or",  "pel", "ren", "sal", "tor", "ul",  "vel", "wan", "yor", "zan"};
  std::set<std::string> known;
  std::vector<std::string> out;
  while (std::ssize(out) < count) {
    std::string name;
    // Two syllables give 576 names, and longer ones join when these run out.
    const int syllables = std::ssize(out) < 200 ? 2 : 4;
    for (int i = 0; i < syllables; ++i) name += draws.of(kSyllables);
    name.front() = static_cast<char>(name.front() - 'a' + 'A');
    if (known.insert(name).second) out.push_back(std::move(name));
  }
  return out;
}

std::vector<Sample> draw_samples(const TaskRequest& request, const Size& size, const Draft& draft) {
  const auto tokens = [&](const Sample& s) {
    return request.tokens(s.prompt + s.answer_prefix) + s.generate;
  };
  const auto seed_of = [&](std::int64_t sample) {
    return splitmix64(request.seed * 1000003 + static_cast<std::uint64_t>(sample + 1));
  };
  const auto drawn = [&](std::int64_t sample, std::int64_t fillers) {
    Draws draws(seed_of(sample));
    return draft(draws, fillers);
  };
  const double each =
      static_cast<double>(tokens(drawn(-1, size.probe))) / static_cast<double>(size.probe);
  std::int64_t low = size.step;
  std::int64_t high =
      std::max(static_cast<std::int64_t>(static_cast<double>(size.length) / each) * size.reach,
               2 * size.step);
  std::int64_t most = size.step;
  while (low <= high) {
    const std::int64_t middle = (low + high) / 2;
    if (tokens(drawn(-1, middle)) <= size.length) {
      most = middle;
      low = middle + 1;
    } else {
      high = middle - 1;
    }
  }
  std::vector<Sample> out;
  for (std::int64_t i = 0; i < std::max<std::int64_t>(1, request.samples); ++i) {
    std::int64_t fillers = most;
    Sample sample = drawn(i, fillers);
    while (tokens(sample) > size.length) {
      if (fillers <= size.step) {
        throw ConfigError(fmt::format(
            "--task {}: length={} is too short: a prompt and its answer take {} tokens at least",
            request.text, size.length, tokens(sample)));
      }
      fillers = std::max(size.step, fillers - size.step);
      sample = drawn(i, fillers);
    }
    sample.name = fmt::format("{}#{}", request.text, i);
    out.push_back(std::move(sample));
  }
  return out;
}

void name_span(Sample& sample, const std::string& name, const std::string& text) {
  const std::size_t at = sample.prompt.find(text);
  assert(at != std::string::npos);
  sample.spans.push_back({name, at, at + text.size()});
}

}  // namespace kvspan::tracegen
