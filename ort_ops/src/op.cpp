#include "op.h"

#include "infer.h"
#include "node.h"
#include "op_slots.h"

namespace onnxprune {
namespace {

constexpr Form forms[] = {Form::bitmap, Form::gap4, Form::gap8};
constexpr Activation activations[] = {Activation::none,      Activation::relu, Activation::clip,
                                      Activation::gelu,      Activation::gelu_tanh,
                                      Activation::silu,      Activation::hardswish};

const char* text_of(Form form) {
  switch (form) {
    case Form::bitmap: return "Bitmap";
    case Form::gap4: return "Gap4";
    case Form::gap8: return "Gap8";
  }
  return "";
}

const Op& self(const OrtCustomOp* op) { return *static_cast<const Op*>(op); }

OrtStatus* create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) noexcept {
  const ort::Functions ort(api);
  *kernel = nullptr;
  return guarded(ort, [&] { *kernel = new Instance<Node>{ort, make_node(self(op).what, api, info)}; });
}

int input_type(const OrtCustomOp* op, size_t index) noexcept {
  const OpName& what = self(op).what;
  if (what.consumer == Consumer::direct_conv || index == 0 || index > 2) return ort::float32;
  return index == 1 ? ort::uint8 : ort::undefined;  // values: float32 or float16, checked at creation
}

std::vector<OpName> grammar() {
  std::vector<OpName> names;
  const auto add_all = [&](Consumer consumer, Form form) {
    for (const bool add : {false, true}) {
      if (add && consumer == Consumer::gemm) continue;
      for (const Activation activation : activations) names.push_back({consumer, form, add, activation, false});
      if (consumer == Consumer::matmul) names.push_back({consumer, form, add, Activation::none, true});
    }
  };
  for (const Form form : forms)
    for (const Consumer consumer : {Consumer::matmul, Consumer::gemm, Consumer::conv}) add_all(consumer, form);
  add_all(Consumer::direct_conv, Form::bitmap);
  return names;
}

// The residual's memory may become the output's, where no other node needs it: every kernel reads it where it writes,
// and before it does. The runtime asks without naming the op, hence a function for each position.
template <int RESIDUAL>
size_t may_inplace(int** inputs, int** outputs) noexcept {
  static int input = RESIDUAL, output = 0;
  *inputs = &input, *outputs = &output;
  return 1;
}

}  // namespace

const char* text_of(Activation activation) {
  switch (activation) {
    case Activation::none: return "";
    case Activation::relu: return "Relu";
    case Activation::clip: return "Clip";
    case Activation::gelu: return "Gelu";
    case Activation::gelu_tanh: return "GeluTanh";
    case Activation::silu: return "Silu";
    case Activation::hardswish: return "HardSwish";
  }
  return "";
}

std::string OpName::text() const {
  std::string text;
  switch (consumer) {
    case Consumer::matmul: text = std::string("Sparse") + text_of(form) + "MatMul"; break;
    case Consumer::gemm: text = std::string("Sparse") + text_of(form) + "Gemm"; break;
    case Consumer::conv: text = std::string("Sparse") + text_of(form) + "Conv"; break;
    case Consumer::direct_conv: text = "DirectConv"; break;
  }
  return text + (add ? "Add" : "") + text_of(activation) + (norm ? "Norm" : "");
}

Op::Op(const OpName& what, uint32_t api) : OrtCustomOp{}, what(what), name(what.text()) {
  version = api;
  set_common_slots<Op, Node>(*this);
  GetExecutionProviderType = [](const OrtCustomOp*) noexcept -> const char* { return "CPUExecutionProvider"; };
  GetInputType = input_type;
  GetInputTypeCount = [](const OrtCustomOp* op) noexcept { return self(op).what.inputs(); };
  GetOutputType = [](const OrtCustomOp*, size_t) noexcept -> int { return ort::float32; };
  CreateKernelV2 = create;
  InferOutputShapeFn = infer_output_shape;
  if (what.add) {
    GetMayInplace = what.residual() == 4 ? may_inplace<4> : may_inplace<3>;
    ReleaseMayInplace = [](int*, int*) noexcept {};
  }
}

const std::deque<Op>& all_ops(bool inplace) {
  const auto make = [](uint32_t api) {
    auto* made = new std::deque<Op>;
    for (const OpName& name : grammar()) made->emplace_back(name, api);
    return made;
  };
  static const auto *oldest = make(ort::api_version), *newer = make(ort::inplace_version);
  return inplace ? *newer : *oldest;
}

}  // namespace onnxprune
