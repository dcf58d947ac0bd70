// What is given back by itself, and what may be done while a graph is captured.
#pragma once

#include <cuda_runtime.h>

#include <string>

namespace onnxprune {

// An object of cuSPARSELt, destroyed when it was made
template <class T>
class Made {
 public:
  Made() = default;
  ~Made() {
    if (destroy_) destroy_(&object_);
  }
  Made(const Made&) = delete;
  Made& operator=(const Made&) = delete;
  T* operator&() { return &object_; }
  int keep(int status, int (*destroy)(const T*)) {
    if (!status) destroy_ = destroy;
    return status;
  }

 private:
  T object_;
  int (*destroy_)(const T*) = nullptr;
};

// Device memory
class Room {
 public:
  Room() = default;
  ~Room() {
    if (memory_) cudaFree(memory_);
  }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  std::string make(const char* what, size_t bytes) {
    const cudaError_t status = bytes ? cudaMalloc(&memory_, bytes) : cudaSuccess;
    if (status == cudaSuccess) return "";
    cudaGetLastError();  // it would be the next caller's
    return std::string(what) + ", " + std::to_string(bytes) + " bytes: " + cudaGetErrorString(status);
  }
  void* get() const { return memory_; }

 private:
  void* memory_ = nullptr;
};

// Allocating while another thread captures a graph would break that graph
class Relaxed {
 public:
  Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  Relaxed(const Relaxed&) = delete;
  Relaxed& operator=(const Relaxed&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

inline bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) == cudaSuccess) return status != cudaStreamCaptureStatusNone;
  cudaGetLastError();  // of the default stream beside another's capture
  return true;
}

}  // namespace onnxprune
