// Activations and LayerNormalization on vectors. Included by level_*.cpp only.
//
// Relative errors against the exact functions, float32: exp 2e-7, erf 4e-7 (absolute), gelu, silu 1e-6 where the
// result does not cancel.
#pragma once

#include "kernels/kernel.h"
#include "simd.h"

namespace onnxprune {
namespace ONNXPRUNE_LEVEL {

// Horner's scheme, coefficients from the highest power to the constant
template <int N>
static inline V polynomial(V x, const float (&c)[N]) {
  V sum = splat(c[0]);
  ONNXPRUNE_UNROLL for (int i = 1; i < N; ++i) sum = fma(sum, x, splat(c[i]));
  return sum;
}

static inline V exp(V x) {
  // 2^n e^r with |r| <= ln(2) / 2. Beyond these bounds float32 overflows or is no longer normal.
  x = min(splat(88.37f), max(splat(-87.33f), x));
  const V magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  const V shifted = fma(x, splat(1.44269504f), magic);
  const V n = shifted - magic;
  V r = fma(n, splat(-0.693359375f), x);  // ln 2 in two parts, the first exact for |n| < 2^15
  r = fma(n, splat(2.12194440e-4f), r);
  // Cephes expf
  const V p = polynomial(r, {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                             5.0000001201e-1f});
  const V e = fma(p, r * r, r) + splat(1.f);
  const I exponent = reinterpret_cast<I>(shifted) << 23;
  return reinterpret_cast<V>(reinterpret_cast<I>(e) + exponent);
}

// Rational minimax fit of erf(z) / z in z^2 on [0, 3.925]; erf is 1 to float32 beyond
static inline V erf(V z) {
  z = min(splat(3.925f), max(splat(-3.925f), z));
  const V u = z * z;
  const V p = polynomial(u, {2.0460188352444675e-06f, 2.848417207133025e-04f, 3.7725160364061594e-03f,
                             5.276918783783913e-02f, 1.9059310853481293e-01f, 1.1283791065216064f});
  const V q = polynomial(u, {3.804759035119787e-05f, 1.1638476280495524e-03f, 1.4983129687607288e-02f,
                             1.1418243497610092e-01f, 5.022414922714233e-01f, 1.f});
  return min(splat(1.f), max(splat(-1.f), z * p / q));
}

static inline V sigmoid_times(V x, V y) { return x / (splat(1.f) + exp(-y)); }  // x sigmoid(y)

template <Activation A>
static inline V activate(V x, const Epilogue& epilogue) {
  switch (A) {
    case Activation::relu: return max(splat(0.f), x);
    case Activation::clip: return min(splat(epilogue.high), max(splat(epilogue.low), x));
    case Activation::gelu: {
      const V half = splat(0.5f) * x;
      return fma(half, erf(splat(0.70710678f) * x), half);
    }
    case Activation::gelu_tanh:  // 0.5 x (1 + tanh(u)) = x sigmoid(2 u)
      return sigmoid_times(x, splat(1.5957691216f) * x * fma(splat(0.044715f), x * x, splat(1.f)));
    case Activation::silu: return sigmoid_times(x, x);
    case Activation::hardswish:
      return x * min(splat(1.f), max(splat(0.f), fma(x, splat(1.f / 6.f), splat(0.5f))));
    default: return x;
  }
}

template <Activation A>
struct ActivationConstant {
  static constexpr Activation value = A;
};

// Calls body(the activation as a constant): one compiled copy of the body for each activation
template <typename Body>
static inline void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::relu: return body(ActivationConstant<Activation::relu>{});
    case Activation::clip: return body(ActivationConstant<Activation::clip>{});
    case Activation::gelu: return body(ActivationConstant<Activation::gelu>{});
    case Activation::gelu_tanh: return body(ActivationConstant<Activation::gelu_tanh>{});
    case Activation::silu: return body(ActivationConstant<Activation::silu>{});
    case Activation::hardswish: return body(ActivationConstant<Activation::hardswish>{});
    default: return body(ActivationConstant<Activation::none>{});
  }
}

// For code that is not worth a copy for each activation
static inline V activate(V x, Activation activation, float low = 0.f, float high = 0.f) {
  const Epilogue unused;
  switch (activation) {
    case Activation::none: return x;
    case Activation::relu: return activate<Activation::relu>(x, unused);
    case Activation::clip: return min(splat(high), max(splat(low), x));
    case Activation::gelu: return activate<Activation::gelu>(x, unused);
    case Activation::gelu_tanh: return activate<Activation::gelu_tanh>(x, unused);
    case Activation::silu: return activate<Activation::silu>(x, unused);
    case Activation::hardswish: return activate<Activation::hardswish>(x, unused);
    default: return x;
  }
}

}  // namespace ONNXPRUNE_LEVEL
}  // namespace onnxprune
