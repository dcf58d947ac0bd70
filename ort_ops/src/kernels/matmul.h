// What the MatMul kernels of the table have in common.
#pragma once

#include <memory>

#include "groups.h"
#include "kernel.h"

namespace onnxprune {

struct Level;

class MatMul : public MatMulKernel {
 public:
  virtual Csr csr() const = 0;  // the weight again, to build another kernel of it
};

// What the cost models know of a weight
struct Facts {
  explicit Facts(const Csr& weight);

  double rows, cols;
  double entries;
  Shares shares;            // of the entries, by groups of 4, 2, 1 rows
  struct Lanes {
    double stored = 0;  // weights, when rows of a common support fill up groups of so many
    double apart = 0;   // rows in groups that are no neighbours
  };
  Lanes lanes4, lanes8, lanes16;
};

}  // namespace onnxprune
