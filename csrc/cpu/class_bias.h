// Logits edited by token class: x * scale[class] + bias[class], before anything else of mode_sample sees them.
#pragma once
#include <vector>

#include "row.h"

namespace adapt {

// The ids of a class other than 0, ascending.
std::vector<int32_t> classed_ids(const uint8_t* classes, int64_t count);

// Edits row number `row_index` of the call, whose values are in `row`, and its maxima, finite count and flags with it.
void edit_by_class(const ClassEdits& edits, const std::vector<int32_t>& ids, int64_t row_index, RowValues& row);

}  // namespace adapt
