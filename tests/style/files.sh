#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# How long and how wide files are, and whose licence they name. Lines: a policy 200, a header 200, any
# other source 400, a test, a twin or a benchmark 700. Columns: 100 in comments and Markdown (110 in
# README.md; tables, links and code in Markdown may be wider). tests/style/exceptions.txt says what
# may be longer, and why.
#   usage: files.sh REPOSITORY
set -euo pipefail
cd "$1"
exceptions=tests/style/exceptions.txt
failed=0
complain() { echo "$*" >&2; failed=1; }

files() {  # what git tracks or would take; in a tarball, all files
  git ls-files -co --exclude-standard "$@" 2>/dev/null | grep . || find cli sim tracegen gui tests traces \
    $([ ! -d gpu_replay ] || echo gpu_replay) \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' \
    -o -name '*.cuh' -o -name '*.py' -o -name '*.sh' -o -name CMakeLists.txt -o -name '*.md' \)
}
limit_of() {
  case $1 in
    tests/*) echo 700 ;;
    sim/policies/*.cpp | *.h | *.cuh) echo 200 ;;
    *) echo 400 ;;
  esac
}

sources=$(files '*.h' '*.cpp' '*.cu' '*.cuh' | grep -E '\.(h|cpp|cu|cuh)$')
declare -A allowed
while read -r file lines _; do
  case $file in '' | '#'*) ;; *) allowed[$file]=$lines ;; esac
done <"$exceptions"
while read -r lines file; do
  limit=${allowed[$file]:-$(limit_of "$file")}
  [ "$lines" -le "$limit" ] || complain "$file has $lines lines; expected at most $limit (or a line" \
    "with the reason in $exceptions)"
done < <(xargs wc -l <<<"$sources" | awk '$2 != "total"')
while read -r file lines _; do
  case $file in '' | '#'*) continue ;; esac
  [ -e "$file" ] || complain "$exceptions names $file, which does not exist"
  [ ! -e "$file" ] || [ "$(wc -l <"$file")" -gt "$(limit_of "$file")" ] ||
    complain "$exceptions: $file is short enough without an exception"
done <"$exceptions"

# clang-format wraps code and leaves comments alone.
wide=$(xargs grep -nE '^.{101,}$' <<<"$sources" | grep -E '//' || true)
[ -z "$wide" ] || complain "comments beyond column 100:"$'\n'"$wide"

# The language that Markdown is written in, not its tables, links, pictures and code.
wide=$(for file in $(files '*.md' | grep '\.md$'); do
  [ "$file" != sim/policies/README.md ] || continue  # generated
  limit=100
  [ "$file" != README.md ] || limit=110
  awk -v file="$file" -v limit="$limit" '
    /^```/ { code = !code }
    !code && length($0) > limit && !/^\|/ && !/^!\[/ && !/^ *[^ ]+$/ {
      print file ":" NR ": " length($0) " columns"
    }' "$file"
done)
[ -z "$wide" ] || complain "Markdown beyond its columns:"$'\n'"$wide"
lines=$(wc -l <README.md)
[ "$lines" -le 150 ] || complain "README.md has $lines lines; expected at most 150"

# Our sources are Apache-2.0, everywhere.
licences=$(files '*.h' '*.cpp' '*.cu' '*.cuh' '*.sh' '*.py' '*CMakeLists.txt' '*.cmake' |
  grep -E '\.(h|cpp|cu|cuh|sh|py|cmake)$|CMakeLists.txt$' | xargs grep -L 'SPDX-License-Identifier: Apache-2.0$' || true)
[ -z "$licences" ] || complain "without the line 'SPDX-License-Identifier: Apache-2.0':"$'\n'"$licences"

[ "$failed" -eq 0 ] && echo "lengths, columns and licences of $(wc -l <<<"$sources") sources are in order"
exit "$failed"
