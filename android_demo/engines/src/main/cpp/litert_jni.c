/* Placeholder: LiteRT-LM for the app. Freestanding: no C library's headers. */
#include <jni.h>

extern void litert_lm_set_min_log_level(int level);

JNIEXPORT jint JNI_OnLoad(JavaVM *vm, void *reserved) {
    (void)vm;
    (void)reserved;
    litert_lm_set_min_log_level(2);
    return JNI_VERSION_1_6;
}
