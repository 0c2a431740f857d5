// SPDX-License-Identifier: Apache-2.0
// Split GGUF files: NAME-00001-of-00003.gguf and so on. The first part has the metadata; each part
// has its own tensors, and says which part it is.
// Source: gguf-split of llama.cpp (split.no, split.count, split.tensors.count).
#include <algorithm>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "tracegen/model/gguf.h"

namespace kvspan::tracegen {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMostParts = 99999;  // that a name can number

// What the name of a part says: "STEM-00002-of-00003.gguf" is { "STEM", 2, 3 }.
struct PartName {
  std::string stem;
  std::int64_t number = 0, count = 0;
};

std::optional<PartName> part_name_of(const fs::path& path) {
  constexpr std::size_t kDigits = 5;
  constexpr std::string_view kOf = "-of-";
  const std::string stem = path.stem().string();
  constexpr std::size_t kTail = 1 + kDigits + kOf.size() + kDigits;  // "-00002-of-00003"
  if (path.extension() != ".gguf" || stem.size() <= kTail) return std::nullopt;
  const std::string tail = stem.substr(stem.size() - kTail);
  const std::string number = tail.substr(1, kDigits);
  const std::string count = tail.substr(kTail - kDigits);
  const auto digits = [](const std::string& text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  };
  if (tail[0] != '-' || tail.substr(1 + kDigits, kOf.size()) != kOf || !digits(number) ||
      !digits(count)) {
    return std::nullopt;
  }
  return PartName{stem.substr(0, stem.size() - kTail), std::stoll(number), std::stoll(count)};
}

std::string part_file(const std::string& stem, std::int64_t number, std::int64_t count) {
  return fmt::format("{}-{:05}-of-{:05}.gguf", stem, number, count);
}

// Which part a file says it is; a whole file is part 1 of 1.
struct Part {
  std::int64_t number = 1, count = 1;
};

Part part_of(const Gguf& file) {
  Part part;
  const auto count = file.integer("split.count");
  if (!count || *count == 0) return part;
  part.count = *count;
  if (part.count < 0 || part.count > kMostParts) {
    file.fail("split.count", fmt::format("is {}", part.count),
              fmt::format("a number of parts, 1 to {}", kMostParts));
  }
  const auto index = file.integer("split.no");
  if (!index || *index < 0 || *index >= part.count) {
    file.fail("split.no", index ? fmt::format("is {}", *index) : "is missing",
              fmt::format("0 to {}: which of the {} parts it is", part.count - 1, part.count));
  }
  part.number = *index + 1;
  return part;
}

// The other parts are found by the name, which must agree with what the file says.
std::string stem_of(const Gguf& file, const fs::path& path, const Part& part) {
  const std::optional<PartName> name = part_name_of(path);
  if (part.count == 1) {
    if (name && name->count > 1) {
      throw CheckpointError(fmt::format(
          "{}: its name says that it is part {} of {}, and it has no 'split.count'; expected a "
          "part that says so itself, as gguf-split writes it, or another name for a whole file",
          file.name(), name->number, name->count));
    }
    return {};
  }
  if (!name || name->number != part.number || name->count != part.count) {
    file.fail("split.no", fmt::format("says that this is part {} of {}", part.number, part.count),
              fmt::format("a name that says so, too, because the other parts are found by it: {}",
                          part_file("NAME", part.number, part.count)));
  }
  return name->stem;
}

void check_tensors(const Gguf& file) {
  const auto announced = file.integer("split.tensors.count");
  const auto found = static_cast<std::int64_t>(file.tensors().size());
  if (announced && *announced != found) {
    file.fail("split.tensors.count", fmt::format("is {}", *announced),
              fmt::format("the number of tensors in all {} parts, {}", file.files().size(), found));
  }
}

}  // namespace

void Gguf::add(Gguf part) {
  for (auto& [key, tensor] : part.tensors_) {
    if (!tensors_.try_emplace(key, std::move(tensor)).second) {
      throw CheckpointError(
          fmt::format("{}: tensor '{}' is in an earlier part, too; expected it "
                      "in one",
                      part.name_, key));
    }
  }
  files_.insert(files_.end(), part.files_.begin(), part.files_.end());
  owners_.insert(owners_.end(), part.owners_.begin(), part.owners_.end());
}

Gguf Gguf::open(const fs::path& path) {
  Gguf named = open_one(path);
  const Part part = part_of(named);
  const std::string stem = stem_of(named, path, part);
  if (part.count == 1) {
    check_tensors(named);
    return named;
  }
  std::optional<Gguf> all;
  for (std::int64_t i = 1; i <= part.count; ++i) {
    const fs::path file = path.parent_path() / part_file(stem, i, part.count);
    if (!fs::exists(file)) {
      throw CheckpointError(
          fmt::format("{} is missing: part {} of the {} parts of {}; expected all "
                      "of them in one folder",
                      path_text(file), i, part.count, named.name()));
    }
    Gguf next = i == part.number ? named : open_one(file);
    if (const Part says = part_of(next); says.number != i || says.count != part.count) {
      next.fail("split.no", fmt::format("says that this is part {} of {}", says.number, says.count),
                fmt::format("part {} of {}, as its name has it", i, part.count));
    }
    if (all) {
      all->add(std::move(next));
    } else {
      all = std::move(next);
    }
  }
  check_tensors(*all);
  return *std::move(all);
}

}  // namespace kvspan::tracegen
