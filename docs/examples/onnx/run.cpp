// An exported model.onnx in C++: floats (one line of numbers for one sample) from standard input, its outputs to
// standard output. Takes any model with one input and one output; a shape's open sizes (the batch) are 1.
//   c++ -std=c++17 run.cpp -I ONNXRUNTIME/include -L ONNXRUNTIME/lib -lonnxruntime -o run && ./run model.onnx < sample.txt
#include <iostream>
#include <iterator>
#include <vector>

#include <onnxruntime_cxx_api.h>

int main(int, char **arguments) {
    Ort::Env env;
    Ort::Session session(env, arguments[1], Ort::SessionOptions{});
    Ort::AllocatorWithDefaultOptions allocator;
    auto input = session.GetInputNameAllocated(0, allocator), output = session.GetOutputNameAllocated(0, allocator);
    auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    for (auto &size : shape) size = size < 0 ? 1 : size;
    std::vector<float> sample{std::istream_iterator<float>(std::cin), {}};
    auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    auto tensor = Ort::Value::CreateTensor<float>(memory, sample.data(), sample.size(), shape.data(), shape.size());
    const char *in = input.get(), *out = output.get();
    auto found = session.Run(Ort::RunOptions{}, &in, &tensor, 1, &out, 1);
    for (size_t at = 0; at < found[0].GetTensorTypeAndShapeInfo().GetElementCount(); at++)
        std::cout << found[0].GetTensorData<float>()[at] << '\n';
}
