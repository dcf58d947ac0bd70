// A node of a session: its weight checked and repacked at creation, its inputs checked at every run.
#pragma once

#include <memory>

#include "op.h"

namespace onnxprune {

class Node {
 public:
  virtual ~Node() = default;
  // Throws Refusal when the inputs do not fit
  virtual void compute(OrtKernelContext* context) const = 0;
};

// Throws Refusal when the node's initializers or attributes are wrong
std::unique_ptr<Node> make_node(const OpName& what, const OrtApi* api, const OrtKernelInfo* info);

}  // namespace onnxprune
