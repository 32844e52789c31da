/* ONNX Runtime's C API for ONNXNative.kt. Its own Java classes do the same, but their native half is published for
 * Android only: with these few functions the code that runs on a phone is the code that is tested on a desk. */
#include "shim.h"

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtValue OrtValue;
typedef struct OrtAllocator OrtAllocator;

/* The API is a table of functions that only ever grows at its end: here are those that we call, and the gaps. */
typedef struct {
    void *from_0[2];
    const char *(*GetErrorMessage)(const OrtStatus *);
    OrtStatus *(*CreateEnv)(int severity, const char *name, OrtEnv **);
    void *from_4[3];
    OrtStatus *(*CreateSession)(const OrtEnv *, const char *path, const OrtSessionOptions *, OrtSession **);
    void *from_8[1];
    OrtStatus *(*Run)(OrtSession *, const void *options, const char *const *input_names, const OrtValue *const *inputs,
                      size_t input_count, const char *const *output_names, size_t output_count, OrtValue **outputs);
    OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **);
    void *from_11[13];
    OrtStatus *(*SetIntraOpNumThreads)(OrtSessionOptions *, int);
    void *from_25[23];
    OrtStatus *(*CreateTensorAsOrtValue)(OrtAllocator *, const int64_t *shape, size_t rank, int type, OrtValue **);
    void *from_49[2];
    OrtStatus *(*GetTensorMutableData)(OrtValue *, void **);
    void *from_52[26];
    OrtStatus *(*GetAllocatorWithDefaultOptions)(OrtAllocator **);
    void *from_79[13];
    void (*ReleaseEnv)(OrtEnv *);
    void (*ReleaseStatus)(OrtStatus *);
    void *from_94[1];
    void (*ReleaseSession)(OrtSession *);
    void (*ReleaseValue)(OrtValue *);
    void *from_97[3];
    void (*ReleaseSessionOptions)(OrtSessionOptions *);
} OrtApi;
_Static_assert(offsetof(OrtApi, ReleaseSessionOptions) == 100 * sizeof(void *), "a gap is wrong");

typedef struct {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;
const OrtApiBase *OrtGetApiBase(void);

enum { API_VERSION = 16, SEVERITY_ERROR = 3 };

static const OrtApi *ort(void) { return OrtGetApiBase()->GetApi(API_VERSION); }

/* Whether all went well; else throws, and what follows must be skipped. */
static bool passed(JNIEnv *env, OrtStatus *status) {
    if (!status) return true;
    throw_failure(env, ort()->GetErrorMessage(status));
    ort()->ReleaseStatus(status);
    return false;
}

NATIVE(jlong, ONNX, environment)(JNIEnv *env, jobject self) {
    OrtEnv *environment = NULL;
    passed(env, ort()->CreateEnv(SEVERITY_ERROR, "pocketdraft", &environment));
    return (jlong)environment;
}

NATIVE(void, ONNX, closeEnvironment)(JNIEnv *env, jobject self, jlong environment) {
    ort()->ReleaseEnv((OrtEnv *)environment);
}

NATIVE(jlong, ONNX, session)(JNIEnv *env, jobject self, jlong environment, jstring path, jint threads) {
    OrtSessionOptions *options = NULL;
    OrtSession *session = NULL;
    if (!passed(env, ort()->CreateSessionOptions(&options))) return 0;
    if (passed(env, ort()->SetIntraOpNumThreads(options, threads))) {
        const char *characters = (*env)->GetStringUTFChars(env, path, NULL);
        passed(env, ort()->CreateSession((OrtEnv *)environment, characters, options, &session));
        (*env)->ReleaseStringUTFChars(env, path, characters);
    }
    ort()->ReleaseSessionOptions(options);
    return (jlong)session;
}

NATIVE(void, ONNX, closeSession)(JNIEnv *env, jobject self, jlong session) {
    ort()->ReleaseSession((OrtSession *)session);
}

/* A tensor in ONNX Runtime's own memory, not yet zeroed. */
NATIVE(jlong, ONNX, value)(JNIEnv *env, jobject self, jlongArray shape, jint type) {
    OrtAllocator *allocator = NULL;
    OrtValue *value = NULL;
    if (!passed(env, ort()->GetAllocatorWithDefaultOptions(&allocator))) return 0;
    jlong *sizes = (*env)->GetLongArrayElements(env, shape, NULL);
    if (!sizes) return 0;
    size_t rank = (size_t)(*env)->GetArrayLength(env, shape);
    passed(env, ort()->CreateTensorAsOrtValue(allocator, (const int64_t *)sizes, rank, type, &value));
    (*env)->ReleaseLongArrayElements(env, shape, sizes, JNI_ABORT);
    return (jlong)value;
}

/* The tensor's own memory, of which the caller knows the size. */
NATIVE(jobject, ONNX, memory)(JNIEnv *env, jobject self, jlong value, jlong size) {
    void *start = NULL;
    if (!passed(env, ort()->GetTensorMutableData((OrtValue *)value, &start))) return NULL;
    return (*env)->NewDirectByteBuffer(env, start, size);
}

NATIVE(void, ONNX, closeValue)(JNIEnv *env, jobject self, jlong value) { ort()->ReleaseValue((OrtValue *)value); }

NATIVE(jlong, ONNX, address)(JNIEnv *env, jobject self, jobject buffer) {
    return (jlong)(*env)->GetDirectBufferAddress(env, buffer);
}

/* Names are addresses of C strings, values those of OrtValues; a value may be input and output. */
NATIVE(void, ONNX, run)(JNIEnv *env, jobject self, jlong session, jlongArray input_names, jlongArray inputs,
                        jlongArray output_names, jlongArray outputs) {
    jlong *in_names = (*env)->GetLongArrayElements(env, input_names, NULL);
    jlong *in = (*env)->GetLongArrayElements(env, inputs, NULL);
    jlong *out_names = (*env)->GetLongArrayElements(env, output_names, NULL);
    jlong *out = (*env)->GetLongArrayElements(env, outputs, NULL);
    if (in_names && in && out_names && out) {
        size_t in_count = (size_t)(*env)->GetArrayLength(env, inputs);
        size_t out_count = (size_t)(*env)->GetArrayLength(env, outputs);
        OrtStatus *status = ort()->Run((OrtSession *)session, NULL, (const char *const *)in_names,
                                       (const OrtValue *const *)in, in_count, (const char *const *)out_names,
                                       out_count, (OrtValue **)out);
        passed(env, status);
    }
    if (in_names) (*env)->ReleaseLongArrayElements(env, input_names, in_names, JNI_ABORT);
    if (in) (*env)->ReleaseLongArrayElements(env, inputs, in, JNI_ABORT);
    if (out_names) (*env)->ReleaseLongArrayElements(env, output_names, out_names, JNI_ABORT);
    if (out) (*env)->ReleaseLongArrayElements(env, outputs, out, JNI_ABORT);
}
