// SPDX-License-Identifier: Apache-2.0
// Feeds every file of a directory, and seeded mutations of each, to the fuzz target, so that it
// runs with any compiler.
//   kvspan_fuzz_replay DIRECTORY [MUTATIONS_PER_FILE [SEED]]
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<std::uint8_t>;

constexpr std::size_t kMaxBytes = 1U << 16U;

Bytes read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : engine_(seed) {}

  Bytes mutate(const Bytes& seed) {
    std::uint64_t header = 0;
    if (seed.size() >= 8) std::memcpy(&header, seed.data(), 8);
    Bytes out = seed;
    if (seed.size() < 8 || header > seed.size() - 8 || below(8) == 0) {
      for (std::size_t n = 1 + below(4); n > 0; --n) change(&out);
      return out;
    }
    // The header alone, with its length repaired: otherwise most mutations end at the first check.
    const auto split = seed.begin() + 8 + static_cast<std::ptrdiff_t>(header);
    Bytes text(seed.begin() + 8, split);
    for (std::size_t n = 1 + below(4); n > 0; --n) change(&text);
    header = text.size();
    out.resize(8);
    std::memcpy(out.data(), &header, 8);
    out.insert(out.end(), text.begin(), text.end());
    out.insert(out.end(), split, seed.end());
    return out;
  }

 private:
  // Not std::uniform_int_distribution, whose numbers differ between standard libraries.
  std::size_t below(std::size_t limit) { return static_cast<std::size_t>(engine_() % limit); }

  void change(Bytes* bytes) {
    static const char* const kTokens[] = {
        "-1",      "0", "1e999",      "18446744073709551616", "null", "{}", "[]", "[[", "\"\"",
        "\\u0000", ",", "2147483648", "9223372036854775807",  "nan"};
    const std::size_t at = below(bytes->size() + 1);
    const auto place = bytes->begin() + static_cast<std::ptrdiff_t>(at);
    const std::size_t rest = bytes->size() - at;
    switch (below(6)) {
      case 0:  // flip a bit
        if (rest > 0) *place = static_cast<std::uint8_t>(*place ^ (1U << below(8)));
        break;
      case 1:  // any byte
        if (rest > 0) *place = static_cast<std::uint8_t>(below(256));
        break;
      case 2:  // remove a few bytes
        bytes->erase(place, place + static_cast<std::ptrdiff_t>(std::min(rest, 1 + below(16))));
        break;
      case 3: {  // repeat a few bytes
        const Bytes piece(place,
                          place + static_cast<std::ptrdiff_t>(std::min(rest, 1 + below(64))));
        bytes->insert(bytes->begin() + static_cast<std::ptrdiff_t>(below(bytes->size() + 1)),
                      piece.begin(), piece.end());
        break;
      }
      case 4: {  // something that parsers dislike
        const std::string token = kTokens[below(std::size(kTokens))];
        bytes->insert(place, token.begin(), token.end());
        break;
      }
      default: {  // another number
        const auto digit =
            std::find_if(place, bytes->end(), [](std::uint8_t c) { return c >= '0' && c <= '9'; });
        if (digit != bytes->end()) *digit = static_cast<std::uint8_t>('0' + below(10));
        break;
      }
    }
    if (bytes->size() > kMaxBytes) bytes->resize(kMaxBytes);
  }

  std::mt19937_64 engine_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4 || !fs::is_directory(argv[1])) {
    std::fprintf(stderr, "usage: %s DIRECTORY [MUTATIONS_PER_FILE [SEED]]\n", argv[0]);
    return 2;
  }
  const unsigned long mutations = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 2000;
  const unsigned long seed = argc > 3 ? std::strtoul(argv[3], nullptr, 10) : 1;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(argv[1])) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) {
    std::fprintf(stderr, "%s: no files\n", argv[1]);
    return 2;
  }
  for (const fs::path& file : files) {
    // Each file has its own sequence: adding one to the corpus does not change the others.
    std::printf("%s, seed %lu\n", file.filename().c_str(), seed);
    std::fflush(stdout);
    const Bytes bytes = read_file(file);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    Mutator mutator(seed);
    for (unsigned long i = 0; i < mutations; ++i) {
      const Bytes input = mutator.mutate(bytes);
      LLVMFuzzerTestOneInput(input.data(), input.size());
    }
  }
  std::printf("%zu files, %lu mutations of each\n", files.size(), mutations);
  return 0;
}
