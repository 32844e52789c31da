// Placeholder: ExecuTorch for the app, all methods of a program over one set of memory arenas.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <jni.h>

#include <string>

using executorch::extension::Module;

// Must be here: without it, Android finds and calls the one of libexecutorch_jni.so, which wants fbjni.
extern "C" JNIEXPORT jint JNI_OnLoad(JavaVM*, void*) { return JNI_VERSION_1_6; }

extern "C" JNIEXPORT jlong JNICALL Java_pocketdraft_engines_ExecuTorchNative_open(JNIEnv* env, jclass, jstring path) {
    const char* text = env->GetStringUTFChars(path, nullptr);
    auto* module = new Module(std::string(text), Module::LoadMode::Mmap, nullptr, nullptr, nullptr, true);
    env->ReleaseStringUTFChars(path, text);
    if (module->load() == executorch::runtime::Error::Ok) return reinterpret_cast<jlong>(module);
    delete module;
    return 0;
}

extern "C" JNIEXPORT void JNICALL Java_pocketdraft_engines_ExecuTorchNative_close(JNIEnv*, jclass, jlong module) {
    delete reinterpret_cast<Module*>(module);
}
