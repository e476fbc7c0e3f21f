// Logits edited by token class, in the thread's copy of the row: the classed ids alone, or all where class 0 is edited.
#include "class_bias.h"

#include <cstring>

#include "simd.h"

namespace adapt {
namespace {

// Each step rounds to float32, as torch does in two operations: a fused multiply-add would differ in the last bit.
float edited(float x, float scale, float bias) {
  if (x == -__builtin_inff() || bias == -__builtin_inff()) return -__builtin_inff();
  const float product = float(double(x) * double(scale));
  const float sum = float(double(product) + double(bias));
  return sum != sum ? -__builtin_inff() : sum;
}

void remeasure_group(RowValues& row, int64_t g) {
  f32x8 peak = splat(-__builtin_inff());
  for (int64_t i = g * kGroupSize; i < (g + 1) * kGroupSize; i += 8) {
    const f32x8 v = load<f32x8>(row.x.data() + i);
    peak = v > peak ? v : peak;
  }
  row.group_max[g] = peak[0];
  for (int j = 1; j < 8; ++j) row.group_max[g] = std::max(row.group_max[g], peak[j]);
}

}  // namespace

std::vector<int32_t> classed_ids(const uint8_t* classes, int64_t count) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count;) {
    uint64_t eight = 0;
    const int64_t step = std::min<int64_t>(8, count - i);
    std::memcpy(&eight, classes + i, step);
    if (eight)
      for (int64_t j = i; j < i + step; ++j)
        if (classes[j]) ids.push_back(int32_t(j));
    i += step;
  }
  return ids;
}

void edit_by_class(const ClassEdits& edits, const std::vector<int32_t>& ids, int64_t row_index, RowValues& row) {
  const float* scale = edits.scale + row_index * edits.classes;
  const float* bias = edits.bias + row_index * edits.classes;
  const auto acts = [&](int64_t c) { return scale[c] != 1.0f || bias[c] != 0.0f; };
  bool any = false;
  for (int64_t c = 0; c < edits.classes; ++c) any |= acts(c);
  if (!any) return;
  const auto edit = [&](int64_t id, int64_t c) {
    float& x = row.x[id];
    const float before = x;
    x = edited(x, scale[c], bias[c]);
    row.finite += int64_t(x > -__builtin_inff()) - int64_t(before > -__builtin_inff());
  };
  if (acts(0)) {
    for (int64_t id = 0; id < row.vocab_size; ++id) edit(id, id < edits.count ? edits.token_classes[id] : 0);
    for (int64_t g = 0; g < row.num_groups; ++g) remeasure_group(row, g);
  } else {
    int64_t group = -1;
    for (const int32_t id : ids) {
      const int64_t c = edits.token_classes[id];
      if (!acts(c)) continue;
      if (id / kGroupSize != group) {
        if (group >= 0) remeasure_group(row, group);
        group = id / kGroupSize;
      }
      edit(id, c);
    }
    if (group >= 0) remeasure_group(row, group);
  }
  row.max = *std::max_element(row.group_max.begin(), row.group_max.end());
  row.flags = (row.flags & ~kFlagInf) | (row.max == __builtin_inff() ? kFlagInf : 0);
}

}  // namespace adapt
