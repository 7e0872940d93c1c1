// Milliseconds of one of oneDNN's convolutions, called again and again in a loop of its own.

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <unordered_map>
#include <vector>

#include "dnnl.hpp"

using dnnl::memory;
using Clock = std::chrono::steady_clock;

// The median over `times` calls. kind: 0 forward, 1 gradient of the image, 2 of the kernel. shape:
// batch, side, channels, features, kernel, stride, padding before and after, side of the result.
// Images are [batch, height, width, channels], the kernel is as oneDNN likes it best.
extern "C" double onednn_loop(int kind, const int* shape, int threads, int times) {
  omp_set_num_threads(threads);
  dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  auto [n, side, in, out, k, s, before, after, made] = *reinterpret_cast<const int(*)[9]>(shape);
  auto image = [](int b, int c, int h) {
    return memory::desc({b, c, h, h}, memory::data_type::f32, memory::format_tag::nhwc);
  };
  memory::desc x = image(n, in, side), y = image(n, out, made);
  memory::desc any({out, in, k, k}, memory::data_type::f32, memory::format_tag::any);
  memory::dims strides{s, s}, low{before, before}, high{after, after};
  constexpr auto kDirect = dnnl::algorithm::convolution_direct;
  dnnl::convolution_forward::primitive_desc forward(
      engine, dnnl::prop_kind::forward_training, kDirect, x, any, y, strides, low, high);
  dnnl::primitive primitive;
  memory::desc kernel;
  if (kind == 0) {
    primitive = dnnl::convolution_forward(forward);
    kernel = forward.weights_desc();
  } else if (kind == 1) {
    dnnl::convolution_backward_data::primitive_desc backward(engine, kDirect, x, any, y, strides,
                                                             low, high, forward);
    primitive = dnnl::convolution_backward_data(backward);
    kernel = backward.weights_desc();
  } else {
    dnnl::convolution_backward_weights::primitive_desc backward(engine, kDirect, x, any, y, strides,
                                                                low, high, forward);
    primitive = dnnl::convolution_backward_weights(backward);
    kernel = backward.diff_weights_desc();
  }
  memory images(x, engine), results(y, engine), weights(kernel, engine);
  for (memory* one : {&images, &results, &weights}) {
    float* data = static_cast<float*>(one->get_data_handle());
    for (size_t i = 0; i < one->get_desc().get_size() / sizeof(float); ++i)
      data[i] = 0.01f * (i % 17);
  }
  std::unordered_map<int, memory> arguments = {
      {kind == 1 ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, images},
      {kind == 2 ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, weights},
      {kind == 0 ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, results}};
  std::vector<double> took;
  for (int i = 0; i < times + 2; ++i) {
    auto began = Clock::now();
    primitive.execute(stream, arguments);
    stream.wait();
    took.push_back(std::chrono::duration<double, std::milli>(Clock::now() - began).count());
  }
  std::sort(took.begin() + 2, took.end());  // the first two warm up
  return took[2 + times / 2];
}
