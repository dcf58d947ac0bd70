// A Pool for tests and benchmarks: tasks in order on one thread, or handed out to threads of its own.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "kernels/kernel.h"

namespace onnxprune {

class TestPool final : public Pool {
 public:
  explicit TestPool(int64_t threads) : threads_(threads) {}

  void run(size_t tasks, const std::function<void(size_t)>& task) const override {
    std::atomic<size_t> next{0};
    const auto work = [&] {
      for (size_t i = next++; i < tasks; i = next++) task(i);
    };
    std::vector<std::thread> others;
    for (int64_t i = 1; i < threads_; ++i) others.emplace_back(work);
    work();
    for (auto& other : others) other.join();
  }

 private:
  int64_t threads_;
};

}  // namespace onnxprune
