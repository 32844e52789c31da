// ExecuTorch's C++ runtime behind five C functions, for executorch_native.py. `Module` shares one memory arena between
// methods: K/V that one of them writes, another reads. Android's own Java class does not ask for that.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <cstdint>
#include <string>
#include <vector>

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::runtime::EValue;

namespace {
struct Program {
  Module module;
  std::vector<EValue> outputs;
};
}  // namespace

extern "C" {

Program* program_open(const char* path) {
  return new Program{Module(path, Module::LoadMode::Mmap, nullptr, nullptr, nullptr, /*share_memory_arenas=*/true), {}};
}

int32_t program_load(Program* program, const char* method) {
  return static_cast<int32_t>(program->module.load_method(method));
}

// Inputs are `count` arrays; `shapes` holds their dimensions one after the other, `ranks` how many each has.
int32_t program_execute(Program* program, const char* method, int32_t count, void** data, const int8_t* dtypes,
                        const int32_t* ranks, const int32_t* shapes) {
  std::vector<executorch::extension::TensorPtr> tensors;
  std::vector<EValue> inputs;
  for (int32_t i = 0; i < count; ++i) {
    std::vector<executorch::aten::SizesType> sizes(shapes, shapes + ranks[i]);
    shapes += ranks[i];
    tensors.push_back(executorch::extension::from_blob(data[i], sizes, static_cast<ScalarType>(dtypes[i])));
    inputs.emplace_back(tensors.back());
  }
  auto made = program->module.execute(method, inputs);
  if (!made.ok()) return static_cast<int32_t>(made.error());
  program->outputs = std::move(made.get());
  return 0;
}

int32_t program_outputs(Program* program) { return static_cast<int32_t>(program->outputs.size()); }

// Dimensions go to `shape`, which has room for eight; gives the rank.
int32_t program_output(Program* program, int32_t index, const void** data, int8_t* dtype, int32_t* shape) {
  const auto& tensor = program->outputs[index].toTensor();
  *data = tensor.const_data_ptr();
  *dtype = static_cast<int8_t>(tensor.scalar_type());
  for (auto size : tensor.sizes()) *shape++ = size;
  return static_cast<int32_t>(tensor.dim());
}
}
