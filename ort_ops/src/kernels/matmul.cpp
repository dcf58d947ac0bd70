#include "matmul.h"

#include <algorithm>

namespace onnxprune {
namespace {

Facts::Lanes fill(const Csr& weight, const std::vector<std::vector<uint32_t>>& sets, size_t lanes) {
  Facts::Lanes sum;
  for (const auto& set : sets)
    for (size_t i = 0; i < set.size(); i += lanes) {
      const size_t size = std::min(lanes, set.size() - i);
      sum.stored += static_cast<double>(lanes * (weight.start[set[0] + 1] - weight.start[set[0]]));
      if (set[i + size - 1] - set[i] + 1 != size) sum.apart += static_cast<double>(size);
    }
  return sum;
}

}  // namespace

Facts::Facts(const Csr& weight)
    : rows(static_cast<double>(weight.rows)), cols(static_cast<double>(weight.cols)),
      entries(static_cast<double>(weight.value.size())) {
  const auto sets = equal_rows(weight, 0, weight.rows);
  shares = onnxprune::shares(weight, sets);
  lanes4 = fill(weight, sets, 4);
  lanes8 = fill(weight, sets, 8);
  lanes16 = fill(weight, sets, 16);
}

}  // namespace onnxprune
