// The custom ops: their names, and one OrtCustomOp for each.
//
//   Sparse (Bitmap|Gap4|Gap8) (MatMul|Gemm|Conv) [Add] [Relu|Clip|Gelu|GeluTanh|Silu|HardSwish] [Norm]
//   DirectConv [Add] [Relu|Clip|Gelu|GeluTanh|Silu|HardSwish]
//
// Y = act(op(X, W) + bias [+ residual]), normalised over the last axis with Norm. Inputs in order:
// X; mask or steps, values (DirectConv: W); bias; with Add the residual; with Norm gamma, beta. All but X
// and the residual are initializers. Gemm has no Add and no Norm, only MatMul has Norm, and never behind an
// activation.
#pragma once

#include <deque>
#include <optional>
#include <string>

#include "decode.h"
#include "kernels/kernel.h"
#include "ort_abi.h"

namespace onnxprune {

enum class Consumer { matmul, gemm, conv, direct_conv };

struct OpName {
  Consumer consumer = Consumer::matmul;
  Form form = Form::bitmap;  // not of direct_conv
  bool add = false;
  Activation activation = Activation::none;
  bool norm = false;

  std::string text() const;
  bool conv() const { return consumer == Consumer::conv || consumer == Consumer::direct_conv; }
  // Positions of inputs
  size_t weights() const { return consumer == Consumer::direct_conv ? 1 : 2; }
  size_t bias() const { return 1 + weights(); }
  size_t residual() const { return bias() + 1; }
  size_t gamma() const { return bias() + 1 + add; }
  size_t inputs() const { return bias() + 1 + add + 2 * norm; }
};

struct Op : OrtCustomOp {
  Op(const OpName& what, uint32_t api);
  OpName what;
  std::string name;
};

// Every op of the grammar; made once, never freed, since sessions keep pointers to them. inplace: the runtime can be
// told that a residual's memory may be the output's.
const std::deque<Op>& all_ops(bool inplace);

// As in names of ops; empty for none
const char* text_of(Activation activation);

}  // namespace onnxprune
