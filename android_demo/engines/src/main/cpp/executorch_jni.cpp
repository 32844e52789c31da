// ExecuTorch's C++ runtime for ExecuTorchNative.kt. Its own Java class gives every method a memory arena of its own, so
// that K/V which one method writes no other sees; `Module` can share one arena, but only if C++ asks for it.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <jni.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

// In a header that ExecuTorch's Python package leaves out.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::extension::Module;
using executorch::runtime::Error;
using executorch::runtime::EValue;

#define NATIVE(type, name) extern "C" JNIEXPORT type JNICALL Java_pocketdraft_engines_ExecuTorchNative_##name

namespace {

std::string text(JNIEnv* env, jstring string) {
  const char* characters = env->GetStringUTFChars(string, nullptr);
  std::string copy(characters);
  env->ReleaseStringUTFChars(string, characters);
  return copy;
}

// The exception that Kotlin turns into a PocketdraftError.
void fail(JNIEnv* env, const std::string& message) {
  env->ThrowNew(env->FindClass("java/lang/RuntimeException"), message.c_str());
}

bool passed(JNIEnv* env, Error error, const std::string& method) {
  if (error != Error::Ok) {
    fail(env, method + " gives " + executorch::runtime::to_string(error));
  }
  return error == Error::Ok;
}

std::vector<jint> ints(JNIEnv* env, jintArray array) {
  std::vector<jint> copy(env->GetArrayLength(array));
  env->GetIntArrayRegion(array, 0, static_cast<jsize>(copy.size()), copy.data());
  return copy;
}

}  // namespace

// Must be here: without it, Android finds and calls the one of libexecutorch_jni.so, which wants fbjni.
extern "C" JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM*, void*) { return JNI_VERSION_1_6; }

// One number for the whole process.
NATIVE(void, threads)(JNIEnv*, jobject, jint count) {
  executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(static_cast<uint32_t>(count));
}

NATIVE(jlong, program)(JNIEnv* env, jobject, jstring path) {
  const auto file = text(env, path);
  auto* module = new Module(file, Module::LoadMode::Mmap, nullptr, nullptr, nullptr, /*share_memory_arenas=*/true);
  if (passed(env, module->load(), "the program")) return reinterpret_cast<jlong>(module);
  delete module;
  return 0;
}

NATIVE(void, closeProgram)(JNIEnv*, jobject, jlong program) { delete reinterpret_cast<Module*>(program); }

NATIVE(void, load)(JNIEnv* env, jobject, jlong program, jstring method) {
  const auto name = text(env, method);
  passed(env, reinterpret_cast<Module*>(program)->load_method(name), name);
}

// Inputs are direct buffers; `shapes` holds their dimensions one after the other, `ranks` how many each has. The first
// outputs are copied to the direct buffers `outputs`: their memory is the next method's, too.
NATIVE(void, run)(JNIEnv* env, jobject, jlong program, jstring method, jobjectArray inputs, jintArray types,
                  jintArray ranks, jintArray shapes, jobjectArray outputs) {
  const auto name = text(env, method);
  const auto type = ints(env, types), rank = ints(env, ranks), shape = ints(env, shapes);
  std::vector<executorch::extension::TensorPtr> tensors;
  std::vector<EValue> given;
  auto size = shape.begin();
  for (jsize i = 0; i < env->GetArrayLength(inputs); ++i) {
    jobject buffer = env->GetObjectArrayElement(inputs, i);
    void* data = env->GetDirectBufferAddress(buffer);
    env->DeleteLocalRef(buffer);
    std::vector<SizesType> sizes(size, size + rank[i]);
    size += rank[i];
    tensors.push_back(executorch::extension::from_blob(data, std::move(sizes), static_cast<ScalarType>(type[i])));
    given.emplace_back(tensors.back());
  }
  auto made = reinterpret_cast<Module*>(program)->execute(name, given);
  if (!passed(env, made.error(), name)) return;
  const auto wanted = static_cast<size_t>(env->GetArrayLength(outputs));
  for (size_t i = 0; i < wanted; ++i) {
    jobject buffer = env->GetObjectArrayElement(outputs, static_cast<jsize>(i));
    const auto room = static_cast<size_t>(env->GetDirectBufferCapacity(buffer));
    void* into = env->GetDirectBufferAddress(buffer);
    env->DeleteLocalRef(buffer);
    if (i >= made->size() || !(*made)[i].isTensor() || (*made)[i].toTensor().nbytes() != room) {
      return fail(env, name + " gives no " + std::to_string(room) + " bytes as output " + std::to_string(i));
    }
    std::memcpy(into, (*made)[i].toTensor().const_data_ptr(), room);
  }
}
