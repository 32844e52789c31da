/* jni.h asks for this header and uses nothing of it; without an NDK there is none. */
