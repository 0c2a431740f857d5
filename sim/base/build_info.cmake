# SPDX-License-Identifier: Apache-2.0
# Writes `output` from `template` with `version`, `build` and the git revision of `source_dir`.
set(git unknown)
find_program(GIT git)
if(GIT)
  # A tarball unpacked inside somebody else's repository must not report that repository's revision.
  execute_process(COMMAND ${GIT} -C ${source_dir} rev-parse --show-toplevel
    OUTPUT_VARIABLE top OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  file(REAL_PATH ${source_dir} source_dir)
  if(top AND top STREQUAL source_dir)
    execute_process(COMMAND ${GIT} --no-optional-locks -C ${source_dir} describe --always --dirty
      OUTPUT_VARIABLE described OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(described)
      set(git ${described})
    endif()
  endif()
endif()
configure_file(${template} ${output} @ONLY)
