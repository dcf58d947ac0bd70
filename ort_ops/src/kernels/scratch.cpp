#include "scratch.h"

#include <memory>
#include <new>

namespace onnxprune {
namespace {

struct Free {
  void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
};

struct Buffer {
  std::unique_ptr<float, Free> data;
  size_t floats = 0;
};

}  // namespace

float* scratch(Scratch use, size_t floats) {
  static thread_local Buffer buffers[static_cast<size_t>(Scratch::count)];
  Buffer& b = buffers[static_cast<size_t>(use)];
  if (b.floats < floats) {
    b.data.reset();
    b.floats = 0;
    b.data.reset(static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t{64})));
    b.floats = floats;
  }
  return b.data.get();
}

}  // namespace onnxprune
