// SPDX-License-Identifier: Apache-2.0
// Until every caller includes what it uses.
#pragma once

#include "sim/report/csv.h"
#include "sim/report/json.h"
#include "sim/report/listing.h"
#include "sim/report/table.h"
