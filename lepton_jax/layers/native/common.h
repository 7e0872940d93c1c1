// What the custom calls share: XLA's threads, kept memory, kept primitives, errors.
//
// oneDNN itself always runs on one thread. A call is cut into parts, which the calling thread and
// the free ones of XLA's own pool take one after another. Where the cuts are depends on shapes
// alone, so the order of a sum, and every bit of a result, is the same on one core and on many. No
// thread waits for a part that has not begun, so devices that compute side by side cannot block
// each other, and there are never more threads than XLA has.

#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace lepton {

namespace ffi = xla::ffi;
using dnnl::memory;
using Dims = std::vector<int64_t>;
using Arguments = std::unordered_map<int, memory>;

constexpr int64_t kMostParts = 32;       // of a call
constexpr double kPartFlops = 2e6;       // a part of fewer is not worth handing to another thread
constexpr size_t kMostPrimitives = 512;  // kept by each kind of call

inline size_t Aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Memory that a thread keeps for its next call.
class Scratch {
 public:
  char* Get(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = Aligned(bytes);
      data_ = static_cast<char*>(std::aligned_alloc(64, size_));
      if (data_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_;
  }
  ~Scratch() { std::free(data_); }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

// Holds oneDNN to this thread alone for as long as it lives; other users of OpenMP keep their
// threads.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;
};

inline const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

inline dnnl::stream& Stream() {
  thread_local dnnl::stream stream(Engine());
  return stream;
}

// Runs task(0) to task(count - 1) on this thread and on those of the pool that are free.
template <typename Task>
void InParallel(ffi::ThreadPool& pool, int64_t count, const Task& task) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t left;
    std::string error;
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto shared = std::make_shared<Shared>();
  shared->left = count;
  // One that comes late finds no part left, and `task` is gone by then.
  auto work = [shared, count, &task] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < count;) {
      std::string error;
      try {
        OneThread one;
        task(i);
      } catch (const std::exception& e) {
        error = *e.what() ? e.what() : "unknown";
      }
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (!error.empty()) shared->error = error;
      if (--shared->left == 0) shared->finished.notify_all();
    }
  };
  for (int64_t i = std::min(count, pool.num_threads()); i > 1; --i)
    pool.Schedule([work] { work(); });
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->left == 0; });
  if (!shared->error.empty()) throw std::runtime_error(shared->error);
}

// A primitive for one thread and the order in which it wants the array whose order it may choose.
struct Compiled {
  template <typename Description>
  Compiled(dnnl::primitive primitive, const Description& description, const memory::desc& order)
      : primitive(std::move(primitive)), order(order), scratchpad(description.scratchpad_desc()) {}

  void Run(Arguments arguments) const {
    thread_local Scratch scratch;
    arguments.emplace(DNNL_ARG_SCRATCHPAD,
                      memory(scratchpad, Engine(), scratch.Get(scratchpad.get_size())));
    primitive.execute(Stream(), arguments);
  }

  dnnl::primitive primitive;
  memory::desc order, scratchpad;
  uint64_t used = 0;
};

using Kept = std::shared_ptr<Compiled>;

inline dnnl::primitive_attr OwnScratchpad() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

// Primitives by what they are made from; the least recently used one makes room.
class Primitives {
 public:
  Kept Get(const Dims& key, const std::function<Kept()>& make) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = kept_.find(key);
    if (found == kept_.end()) {
      if (kept_.size() >= kMostPrimitives) {
        auto older = [](auto& a, auto& b) { return a.second->used < b.second->used; };
        kept_.erase(std::min_element(kept_.begin(), kept_.end(), older));
      }
      found = kept_.emplace(key, make()).first;
    }
    found->second->used = ++clock_;
    return found->second;
  }

 private:
  std::mutex mutex_;
  std::map<Dims, Kept> kept_;
  uint64_t clock_ = 0;
};

inline void Reorder(const memory::desc& from, void* source, const memory::desc& to, void* target) {
  memory a(from, Engine(), source), b(to, Engine(), target);
  dnnl::reorder(a, b).execute(Stream(), a, b);
}

inline Dims Shape(const ffi::AnyBuffer& buffer) {
  return Dims(buffer.dimensions().begin(), buffer.dimensions().end());
}

inline char* Data(const ffi::AnyBuffer& buffer) {
  return static_cast<char*>(buffer.untyped_data());
}

// How many numbers an array of this shape has.
inline int64_t Size(const Dims& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>());
}

// The product of all but the last `rank` dimensions: how many problems of one shape lie behind each
// other.
inline int64_t Lanes(const Dims& shape, size_t rank) {
  if (shape.size() < rank) throw std::runtime_error("too few dimensions");
  return Size(Dims(shape.begin(), shape.end() - rank));
}

inline memory::data_type Type(const ffi::AnyBuffer& buffer) {
  if (buffer.element_type() == ffi::DataType::F32) return memory::data_type::f32;
  if (buffer.element_type() == ffi::DataType::BF16) return memory::data_type::bf16;
  throw std::runtime_error("allowed are float32 and bfloat16");
}

inline float* Floats(const ffi::AnyBuffer& buffer) {
  if (Type(buffer) != memory::data_type::f32) throw std::runtime_error("allowed is float32");
  return reinterpret_cast<float*>(Data(buffer));
}

// Runs `call`; what it throws becomes an error that names the operation and its shapes.
inline ffi::Error Guarded(const char* name, const std::vector<Dims>& shapes,
                          const std::function<void()>& call) {
  std::ostringstream why;
  try {
    OneThread one;
    call();
    return ffi::Error::Success();
  } catch (const dnnl::error& error) {
    why << error.what() << " (oneDNN status " << static_cast<int>(error.status) << ")";
  } catch (const std::exception& error) {
    why << error.what();
  }
  std::ostringstream text;
  text << name;
  for (const auto& shape : shapes) {
    text << " [";
    for (size_t i = 0; i < shape.size(); ++i) text << (i ? "," : "") << shape[i];
    text << "]";
  }
  text << ": " << why.str();
  return ffi::Error(ffi::ErrorCode::kInternal, text.str());
}

}  // namespace lepton
