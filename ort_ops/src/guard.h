// No exception leaves the library: what is thrown becomes a status of the runtime.
#pragma once

#include <new>

#include "decode.h"
#include "ort_abi.h"

namespace onnxprune {

template <class Body>
OrtStatus* guarded(const ort::Functions& ort, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Refusal& refusal) {
    return ort.CreateStatus(ort::invalid_argument, refusal.what());
  } catch (const std::bad_alloc&) {
    return ort.CreateStatus(ort::fail, "onnxprune: not enough memory");
  } catch (const std::exception& error) {
    return ort.CreateStatus(ort::fail, error.what());
  } catch (...) {
    return ort.CreateStatus(ort::fail, "onnxprune: unknown error");
  }
}

}  // namespace onnxprune
