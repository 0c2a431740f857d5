// SPDX-License-Identifier: Apache-2.0
// What policies share, under one name.
#pragma once

#include "sim/policies/shared/budgets.h"  // IWYU pragma: export
#include "sim/policies/shared/groups.h"   // IWYU pragma: export
#include "sim/policies/shared/scorers.h"  // IWYU pragma: export
