/* What the C shims share. Android's are built freestanding, so nothing here or there may need libc. */
#pragma once

#include <jni.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC diagnostic ignored "-Wunused-parameter" /* of what JNI passes to all, few use all */

/* Handles cross to Kotlin as jlong, and arrays of them are used in place. */
_Static_assert(sizeof(jlong) == sizeof(void *), "the shims are written for 64 bits");

/* NATIVE(type, LiteRT, open)(JNIEnv *env, jobject self, ...) is what pocketdraft.engines.LiteRTNative.open calls. */
#define NATIVE(type, runtime, name) JNIEXPORT type JNICALL Java_pocketdraft_engines_##runtime##Native_##name

/* The exception that Kotlin turns into a PocketdraftError. */
static inline void throw_failure(JNIEnv *env, const char *message) {
    (*env)->ThrowNew(env, (*env)->FindClass(env, "java/lang/RuntimeException"), message);
}
