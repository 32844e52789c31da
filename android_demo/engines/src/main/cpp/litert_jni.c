/* LiteRT's C API for LiteRTNative.kt, out of LiteRT-LM's library, which has all of it and comes for every platform.
 *
 * The packages hold no headers: these declarations follow litert/c/ of github.com/google-ai-edge/LiteRT. */
#include "shim.h"

typedef int Status;
typedef struct Environment Environment;
typedef struct Model Model;
typedef struct CompiledModel CompiledModel;
typedef struct Signature Signature;
typedef struct Tensor Tensor;
typedef struct TensorBuffer TensorBuffer;
typedef struct Requirements Requirements;
typedef struct Options Options;
typedef struct OpaqueOptions OpaqueOptions;
typedef struct CPUOptions CPUOptions;

/* LiteRtRankedTensorType: an element type, and a layout that starts with the rank. */
typedef struct {
    int element;
    unsigned int rank : 7;
    unsigned int has_strides : 1;
    int32_t dimensions[8];
    uint32_t strides[8];
} TensorType;
_Static_assert(sizeof(TensorType) == 72, "not LiteRT's layout");

enum { OK = 0, CPU = 1, SEVERITY_ERROR = 3 };

const char *LiteRtGetStatusString(Status);
void *LiteRtGetDefaultLogger(void);
Status LiteRtSetMinLoggerSeverity(void *logger, int severity);

Status LiteRtCreateEnvironment(int count, const void *options, Environment **);
void LiteRtDestroyEnvironment(Environment *);

Status LiteRtCreateModelFromBuffer(Environment *, const void *data, size_t size, Model **);
Status LiteRtGetNumModelSignatures(Model *, size_t *);
Status LiteRtGetModelSignature(Model *, size_t index, Signature **);
Status LiteRtGetSignatureKey(Signature *, const char **);
Status LiteRtGetNumSignatureInputs(Signature *, size_t *);
Status LiteRtGetNumSignatureOutputs(Signature *, size_t *);
Status LiteRtGetSignatureInputName(Signature *, size_t index, const char **);
Status LiteRtGetSignatureOutputName(Signature *, size_t index, const char **);
Status LiteRtGetSignatureInputTensorByIndex(Signature *, size_t index, Tensor **);
Status LiteRtGetSignatureOutputTensorByIndex(Signature *, size_t index, Tensor **);
Status LiteRtGetRankedTensorType(Tensor *, TensorType *);
void LiteRtDestroyModel(Model *);

Status LrtCreateCpuOptions(CPUOptions **);
Status LrtSetCpuOptionsNumThread(CPUOptions *, int);
Status LrtSetCpuOptionsXnnPackWeightCachePath(CPUOptions *, const char *);
Status LrtGetOpaqueCpuOptionsData(const CPUOptions *, const char **name, void **payload, void (**free)(void *));
void LrtDestroyCpuOptions(CPUOptions *);
Status LiteRtCreateOpaqueOptions(const char *name, void *payload, void (*free)(void *), OpaqueOptions **);
Status LiteRtCreateOptions(Options **);
Status LiteRtSetOptionsHardwareAccelerators(Options *, int accelerators);
Status LiteRtAddOpaqueOptions(Options *, OpaqueOptions *);
void LiteRtDestroyOptions(Options *);

Status LiteRtCreateCompiledModel(Environment *, Model *, Options *, CompiledModel **);
Status LiteRtGetCompiledModelInputBufferRequirements(CompiledModel *, size_t signature, size_t index, Requirements **);
Status LiteRtGetCompiledModelOutputBufferRequirements(CompiledModel *, size_t signature, size_t index, Requirements **);
Status LiteRtRunCompiledModel(CompiledModel *, size_t signature, size_t inputs, TensorBuffer **input_buffers,
                              size_t outputs, TensorBuffer **output_buffers);
void LiteRtDestroyCompiledModel(CompiledModel *);

Status LiteRtCreateManagedTensorBufferFromRequirements(Environment *, const TensorType *, Requirements *,
                                                       TensorBuffer **);
Status LiteRtGetTensorBufferHostMemory(TensorBuffer *, void **);
Status LiteRtGetTensorBufferPackedSize(TensorBuffer *, size_t *);
Status LiteRtClearTensorBuffer(TensorBuffer *);
void LiteRtDestroyTensorBuffer(TensorBuffer *);

/* Whether all went well; else throws, and what follows must be skipped. */
static bool passed(JNIEnv *env, Status status) {
    if (status != OK) throw_failure(env, LiteRtGetStatusString(status));
    return status == OK;
}

NATIVE(jlong, LiteRT, environment)(JNIEnv *env, jobject self) {
    LiteRtSetMinLoggerSeverity(LiteRtGetDefaultLogger(), SEVERITY_ERROR);
    Environment *environment = NULL;
    passed(env, LiteRtCreateEnvironment(0, NULL, &environment));
    return (jlong)environment;
}

NATIVE(void, LiteRT, closeEnvironment)(JNIEnv *env, jobject self, jlong environment) {
    LiteRtDestroyEnvironment((Environment *)environment);
}

NATIVE(jlong, LiteRT, model)(JNIEnv *env, jobject self, jlong environment, jobject data) {
    void *start = (*env)->GetDirectBufferAddress(env, data);
    size_t size = (size_t)(*env)->GetDirectBufferCapacity(env, data);
    Model *model = NULL;
    passed(env, LiteRtCreateModelFromBuffer((Environment *)environment, start, size, &model));
    return (jlong)model;
}

NATIVE(void, LiteRT, closeModel)(JNIEnv *env, jobject self, jlong model) {
    LiteRtDestroyModel((Model *)model);
}

NATIVE(jobjectArray, LiteRT, signatures)(JNIEnv *env, jobject self, jlong model) {
    size_t count = 0;
    if (!passed(env, LiteRtGetNumModelSignatures((Model *)model, &count))) return NULL;
    jobjectArray names = (*env)->NewObjectArray(env, (jsize)count, (*env)->FindClass(env, "java/lang/String"), NULL);
    for (size_t i = 0; names && i < count; i++) {
        Signature *signature = NULL;
        const char *name = NULL;
        if (!passed(env, LiteRtGetModelSignature((Model *)model, i, &signature))) return NULL;
        if (!passed(env, LiteRtGetSignatureKey(signature, &name))) return NULL;
        (*env)->SetObjectArrayElement(env, names, (jsize)i, (*env)->NewStringUTF(env, name));
    }
    return names;
}

/* Names of a signature's inputs or outputs in the order in which a run takes their buffers. */
NATIVE(jobjectArray, LiteRT, tensors)(JNIEnv *env, jobject self, jlong model, jint index, jboolean outputs) {
    Signature *signature = NULL;
    size_t count = 0;
    if (!passed(env, LiteRtGetModelSignature((Model *)model, (size_t)index, &signature))) return NULL;
    if (!passed(env, (outputs ? LiteRtGetNumSignatureOutputs : LiteRtGetNumSignatureInputs)(signature, &count))) {
        return NULL;
    }
    jobjectArray names = (*env)->NewObjectArray(env, (jsize)count, (*env)->FindClass(env, "java/lang/String"), NULL);
    for (size_t i = 0; names && i < count; i++) {
        const char *name = NULL;
        Status status = (outputs ? LiteRtGetSignatureOutputName : LiteRtGetSignatureInputName)(signature, i, &name);
        if (!passed(env, status)) return NULL;
        (*env)->SetObjectArrayElement(env, names, (jsize)i, (*env)->NewStringUTF(env, name));
    }
    return names;
}

/* Options for the CPU: XNNPACK with so many threads (0: its own choice), its packed weights in the file `cache`. */
static Options *cpu_options(JNIEnv *env, jint threads, const char *cache) {
    CPUOptions *cpu = NULL;
    Options *options = NULL;
    OpaqueOptions *opaque = NULL;
    const char *name = NULL;
    void *payload = NULL;
    void (*free_payload)(void *) = NULL;
    Status status = LrtCreateCpuOptions(&cpu);
    if (status == OK) status = LrtSetCpuOptionsNumThread(cpu, threads);
    if (status == OK) status = LrtSetCpuOptionsXnnPackWeightCachePath(cpu, cache);
    if (status == OK) status = LrtGetOpaqueCpuOptionsData(cpu, &name, &payload, &free_payload);
    if (status == OK) status = LiteRtCreateOpaqueOptions(name, payload, free_payload, &opaque);
    if (status == OK) status = LiteRtCreateOptions(&options);
    if (status == OK) status = LiteRtSetOptionsHardwareAccelerators(options, CPU);
    if (status == OK) status = LiteRtAddOpaqueOptions(options, opaque);
    if (cpu) LrtDestroyCpuOptions(cpu);
    passed(env, status);
    return options;
}

NATIVE(jlong, LiteRT, compile)(JNIEnv *env, jobject self, jlong environment, jlong model, jint threads, jstring cache) {
    const char *path = (*env)->GetStringUTFChars(env, cache, NULL);
    Options *options = cpu_options(env, threads, path);
    (*env)->ReleaseStringUTFChars(env, cache, path);
    CompiledModel *compiled = NULL;
    if (!(*env)->ExceptionCheck(env)) {
        passed(env, LiteRtCreateCompiledModel((Environment *)environment, (Model *)model, options, &compiled));
    }
    if (options) LiteRtDestroyOptions(options);
    return (jlong)compiled;
}

NATIVE(void, LiteRT, closeCompiled)(JNIEnv *env, jobject self, jlong compiled) {
    LiteRtDestroyCompiledModel((CompiledModel *)compiled);
}

/* A zeroed buffer that fits input or output `index` of a signature. */
NATIVE(jlong, LiteRT, buffer)(JNIEnv *env, jobject self, jlong environment, jlong model, jlong compiled,
                              jint signature_index, jint index, jboolean output) {
    CompiledModel *runner = (CompiledModel *)compiled;
    size_t at = (size_t)signature_index, tensor_at = (size_t)index;
    Signature *signature = NULL;
    Tensor *tensor = NULL;
    TensorType type;
    Requirements *requirements = NULL;
    TensorBuffer *buffer = NULL;
    Status status = LiteRtGetModelSignature((Model *)model, at, &signature);
    if (status == OK && output) status = LiteRtGetSignatureOutputTensorByIndex(signature, tensor_at, &tensor);
    if (status == OK && !output) status = LiteRtGetSignatureInputTensorByIndex(signature, tensor_at, &tensor);
    if (status == OK) status = LiteRtGetRankedTensorType(tensor, &type);
    if (status == OK && output) {
        status = LiteRtGetCompiledModelOutputBufferRequirements(runner, at, tensor_at, &requirements);
    }
    if (status == OK && !output) {
        status = LiteRtGetCompiledModelInputBufferRequirements(runner, at, tensor_at, &requirements);
    }
    if (status == OK) {
        status = LiteRtCreateManagedTensorBufferFromRequirements((Environment *)environment, &type, requirements,
                                                                 &buffer);
    }
    if (status == OK) status = LiteRtClearTensorBuffer(buffer);
    passed(env, status);
    return (jlong)buffer;
}

/* The buffer's own memory. */
NATIVE(jobject, LiteRT, memory)(JNIEnv *env, jobject self, jlong buffer) {
    void *start = NULL;
    size_t size = 0;
    if (!passed(env, LiteRtGetTensorBufferHostMemory((TensorBuffer *)buffer, &start))) return NULL;
    if (!passed(env, LiteRtGetTensorBufferPackedSize((TensorBuffer *)buffer, &size))) return NULL;
    return (*env)->NewDirectByteBuffer(env, start, (jlong)size);
}

NATIVE(void, LiteRT, clear)(JNIEnv *env, jobject self, jlong buffer) {
    passed(env, LiteRtClearTensorBuffer((TensorBuffer *)buffer));
}

NATIVE(void, LiteRT, closeBuffer)(JNIEnv *env, jobject self, jlong buffer) {
    LiteRtDestroyTensorBuffer((TensorBuffer *)buffer);
}

NATIVE(void, LiteRT, run)(JNIEnv *env, jobject self, jlong compiled, jint signature, jlongArray inputs,
                          jlongArray outputs) {
    jlong *in = (*env)->GetLongArrayElements(env, inputs, NULL);
    jlong *out = (*env)->GetLongArrayElements(env, outputs, NULL);
    if (in && out) {
        size_t in_count = (size_t)(*env)->GetArrayLength(env, inputs);
        size_t out_count = (size_t)(*env)->GetArrayLength(env, outputs);
        Status status = LiteRtRunCompiledModel((CompiledModel *)compiled, (size_t)signature, in_count,
                                               (TensorBuffer **)in, out_count, (TensorBuffer **)out);
        passed(env, status);
    }
    if (in) (*env)->ReleaseLongArrayElements(env, inputs, in, JNI_ABORT);
    if (out) (*env)->ReleaseLongArrayElements(env, outputs, out, JNI_ABORT);
}
