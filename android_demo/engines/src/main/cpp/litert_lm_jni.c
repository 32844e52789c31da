/* LiteRT-LM's own engine for LiteRTLMNative.kt: Google's loop on the same file, to hold ours against.
 *
 * The packages hold no header: these declarations follow the C API of github.com/google-ai-edge/LiteRT-LM. */
#include "shim.h"

typedef struct Settings Settings;
typedef struct Engine Engine;
typedef struct SamplerParams SamplerParams;
typedef struct SessionConfig SessionConfig;
typedef struct Session Session;
typedef struct InputData InputData;
typedef struct StreamChunk StreamChunk;
typedef struct BenchmarkInfo BenchmarkInfo;

enum { TEXT = 0, TOP_P = 2, ERROR = 4 };

void litert_lm_set_min_log_level(int);
const char *litert_lm_get_last_error_message(void);

Settings *litert_lm_engine_settings_create(const char *file, const char *backend, const char *vision,
                                           const char *audio);
void litert_lm_engine_settings_set_num_threads(Settings *, int);
void litert_lm_engine_settings_set_cache_dir(Settings *, const char *);
void litert_lm_engine_settings_set_enable_speculative_decoding(Settings *, bool);
void litert_lm_engine_settings_enable_benchmark(Settings *);
void litert_lm_engine_settings_delete(Settings *);
Engine *litert_lm_engine_create(Settings *);
void litert_lm_engine_delete(Engine *);

SamplerParams *litert_lm_sampler_params_create(int type);
void litert_lm_sampler_params_set_top_k(SamplerParams *, int);
void litert_lm_sampler_params_set_temperature(SamplerParams *, float);
void litert_lm_sampler_params_delete(SamplerParams *);
SessionConfig *litert_lm_session_config_create(void);
void litert_lm_session_config_set_max_output_tokens(SessionConfig *, int);
void litert_lm_session_config_set_apply_prompt_template(SessionConfig *, bool);
void litert_lm_session_config_set_sampler_params(SessionConfig *, SamplerParams *);
void litert_lm_session_config_delete(SessionConfig *);
Session *litert_lm_engine_create_session(Engine *, SessionConfig *);
void litert_lm_session_delete(Session *);

InputData *litert_lm_input_data_create(int type, const void *data, size_t size);
void litert_lm_input_data_delete(InputData *);
int litert_lm_session_run_prefill(Session *, InputData **, size_t count);
int litert_lm_session_run_decode_async(Session *, void (*callback)(void *data, StreamChunk *), void *data);
void litert_lm_session_cancel_process(Session *);
const char *litert_lm_stream_chunk_get_text(StreamChunk *);
const char *litert_lm_stream_chunk_get_error(StreamChunk *);
bool litert_lm_stream_chunk_is_final(StreamChunk *);

BenchmarkInfo *litert_lm_session_get_benchmark_info(Session *);
int litert_lm_benchmark_info_get_num_decode_turns(BenchmarkInfo *);
int litert_lm_benchmark_info_get_decode_token_count_at(BenchmarkInfo *, int turn);
double litert_lm_benchmark_info_get_decode_tokens_per_sec_at(BenchmarkInfo *, int turn);
void litert_lm_benchmark_info_delete(BenchmarkInfo *);

static JavaVM *machine;

JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM *vm, void *reserved) {
    machine = vm;
    return JNI_VERSION_1_6;
}

static void throw_last(JNIEnv *env, const char *what) {
    const char *reason = litert_lm_get_last_error_message();
    throw_failure(env, reason && *reason ? reason : what);
}

NATIVE(jlong, LiteRTLM, engine)(JNIEnv *env, jobject self, jstring file, jint threads, jboolean speculate,
                                jstring cache) {
    litert_lm_set_min_log_level(ERROR);
    const char *path = (*env)->GetStringUTFChars(env, file, NULL);
    const char *folder = (*env)->GetStringUTFChars(env, cache, NULL);
    Engine *engine = NULL;
    Settings *settings = litert_lm_engine_settings_create(path, "cpu", NULL, NULL);
    if (settings) {
        if (threads) litert_lm_engine_settings_set_num_threads(settings, threads);
        litert_lm_engine_settings_set_cache_dir(settings, folder);
        litert_lm_engine_settings_set_enable_speculative_decoding(settings, speculate);
        litert_lm_engine_settings_enable_benchmark(settings);
        engine = litert_lm_engine_create(settings);
        litert_lm_engine_settings_delete(settings);
    }
    (*env)->ReleaseStringUTFChars(env, file, path);
    (*env)->ReleaseStringUTFChars(env, cache, folder);
    if (!engine) throw_last(env, "no engine");
    return (jlong)engine;
}

NATIVE(void, LiteRTLM, closeEngine)(JNIEnv *env, jobject self, jlong engine) {
    litert_lm_engine_delete((Engine *)engine);
}

/* Greedy; the prompt as it is, without a template. */
NATIVE(jlong, LiteRTLM, session)(JNIEnv *env, jobject self, jlong engine, jint budget) {
    SamplerParams *sampler = litert_lm_sampler_params_create(TOP_P);
    litert_lm_sampler_params_set_top_k(sampler, 1);
    litert_lm_sampler_params_set_temperature(sampler, 0.0f);
    SessionConfig *config = litert_lm_session_config_create();
    litert_lm_session_config_set_max_output_tokens(config, budget);
    litert_lm_session_config_set_apply_prompt_template(config, false);
    litert_lm_session_config_set_sampler_params(config, sampler);
    Session *session = litert_lm_engine_create_session((Engine *)engine, config);
    litert_lm_session_config_delete(config);
    litert_lm_sampler_params_delete(sampler);
    if (!session) throw_last(env, "no session");
    return (jlong)session;
}

NATIVE(void, LiteRTLM, closeSession)(JNIEnv *env, jobject self, jlong session) {
    litert_lm_session_delete((Session *)session);
}

NATIVE(void, LiteRTLM, prefill)(JNIEnv *env, jobject self, jlong session, jbyteArray utf8) {
    jbyte *text = (*env)->GetByteArrayElements(env, utf8, NULL);
    if (!text) return;
    InputData *input = litert_lm_input_data_create(TEXT, text, (size_t)(*env)->GetArrayLength(env, utf8));
    (*env)->ReleaseByteArrayElements(env, utf8, text, JNI_ABORT);
    int status = litert_lm_session_run_prefill((Session *)session, &input, 1);
    litert_lm_input_data_delete(input);
    if (status) throw_last(env, "the prompt cannot be run");
}

/* Text as bytes: a chunk may end within a character, and Java's own encoding is another one. */
static jbyteArray bytes(JNIEnv *env, const char *text) {
    if (!text) return NULL;
    jsize length = 0;
    while (text[length]) length++;
    jbyteArray array = (*env)->NewByteArray(env, length);
    if (array) (*env)->SetByteArrayRegion(env, array, 0, length, (const jbyte *)text);
    return array;
}

/* Called on a thread of LiteRT-LM's own. `listener` is a global reference to a LiteRTLMListener. */
static void on_chunk(void *listener, StreamChunk *chunk) {
    JNIEnv *env = NULL;
    bool known = (*machine)->GetEnv(machine, (void **)&env, JNI_VERSION_1_6) == JNI_OK;
    /* The JDK's header and Android's differ in the type of this argument. */
    if (!known && (*machine)->AttachCurrentThread(machine, (void *)&env, NULL) != JNI_OK) return;
    if ((*env)->PushLocalFrame(env, 8) == 0) {
        jclass type = (*env)->GetObjectClass(env, (jobject)listener);
        jmethodID method = (*env)->GetMethodID(env, type, "onChunk", "([B[BZ)V");
        jbyteArray text = bytes(env, litert_lm_stream_chunk_get_text(chunk));
        jbyteArray error = bytes(env, litert_lm_stream_chunk_get_error(chunk));
        jboolean last = litert_lm_stream_chunk_is_final(chunk);
        (*env)->CallVoidMethod(env, (jobject)listener, method, text, error, last);
        (*env)->ExceptionClear(env);
        (*env)->PopLocalFrame(env, NULL);
    }
    if (!known) (*machine)->DetachCurrentThread(machine);
}

/* Starts decoding. The result is to be given to `release` once the listener has seen the last chunk. */
NATIVE(jlong, LiteRTLM, decode)(JNIEnv *env, jobject self, jlong session, jobject listener) {
    jobject reference = (*env)->NewGlobalRef(env, listener);
    if (litert_lm_session_run_decode_async((Session *)session, on_chunk, reference) == 0) return (jlong)reference;
    (*env)->DeleteGlobalRef(env, reference);
    throw_last(env, "decoding cannot start");
    return 0;
}

NATIVE(void, LiteRTLM, release)(JNIEnv *env, jobject self, jlong listener) {
    (*env)->DeleteGlobalRef(env, (jobject)listener);
}

NATIVE(void, LiteRTLM, cancel)(JNIEnv *env, jobject self, jlong session) {
    litert_lm_session_cancel_process((Session *)session);
}

/* Decoded tokens and tokens a second of a session's only turn; empty if there was none. */
NATIVE(jdoubleArray, LiteRTLM, benchmark)(JNIEnv *env, jobject self, jlong session) {
    jdouble figures[2];
    jsize count = 0;
    BenchmarkInfo *info = litert_lm_session_get_benchmark_info((Session *)session);
    if (info && litert_lm_benchmark_info_get_num_decode_turns(info) > 0) {
        figures[count++] = litert_lm_benchmark_info_get_decode_token_count_at(info, 0);
        figures[count++] = litert_lm_benchmark_info_get_decode_tokens_per_sec_at(info, 0);
    }
    if (info) litert_lm_benchmark_info_delete(info);
    jdoubleArray array = (*env)->NewDoubleArray(env, count);
    if (array) (*env)->SetDoubleArrayRegion(env, array, 0, count, figures);
    return array;
}
