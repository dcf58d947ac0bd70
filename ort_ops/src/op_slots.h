// What all our OrtCustomOps have alike: the slots that do not depend on the op, and what the runtime holds of a node.
#pragma once

#include <limits>
#include <memory>

#include "guard.h"
#include "ort_abi.h"

namespace onnxprune {

// A Node has compute(OrtKernelContext*) and throws Refusal
template <class Node>
struct Instance {
  ort::Functions ort;
  std::unique_ptr<Node> node;
};

template <class Node>
OrtStatus* compute_node(void* kernel, OrtKernelContext* context) noexcept {
  const auto& instance = *static_cast<const Instance<Node>*>(kernel);
  return guarded(instance.ort, [&] { instance.node->compute(context); });
}

template <class Node>
void destroy_node(void* kernel) noexcept { delete static_cast<Instance<Node>*>(kernel); }

// An Op is an OrtCustomOp with a name: one output, all inputs required, in the provider's own memory, every version
template <class Op, class Node>
void set_common_slots(Op& op) {
  op.GetName = [](const OrtCustomOp* self) noexcept { return static_cast<const Op*>(self)->name.c_str(); };
  op.GetOutputTypeCount = [](const OrtCustomOp*) noexcept -> size_t { return 1; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) noexcept -> int { return ort::required; };
  op.GetOutputCharacteristic = op.GetInputCharacteristic;
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) noexcept -> int { return 0; };  // OrtMemTypeDefault
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) noexcept { return 0; };
  op.GetVariadicInputHomogeneity = op.GetVariadicInputMinArity;
  op.GetVariadicOutputMinArity = op.GetVariadicInputMinArity;
  op.GetVariadicOutputHomogeneity = op.GetVariadicInputMinArity;
  op.KernelDestroy = destroy_node<Node>;
  op.KernelComputeV2 = compute_node<Node>;
  op.GetStartVersion = [](const OrtCustomOp*) noexcept { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) noexcept { return std::numeric_limits<int>::max(); };
}

}  // namespace onnxprune
