package pocketdraft.app

import android.app.ActivityManager
import android.content.Context
import android.os.Build
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import java.io.File
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import pocketdraft.core.Backend
import pocketdraft.core.DeviceInfo
import pocketdraft.core.MANIFEST_NAME
import pocketdraft.core.Manifest
import pocketdraft.core.Profile

/** What the app asks Android for: folders, memory, names. */
class Phone(private val context: Context) {
    /** Where bundles may lie: `pocketdraft push` writes the first, the file picker's copies go to the second. */
    private val places = listOf(File("/data/local/tmp/pocketdraft"), File(context.filesDir, "bundles"))
    val copies get() = places.last()
    val conversations get() = File(context.filesDir, "conversations").apply { mkdirs() }

    val cache: File get() = context.cacheDir

    /** Readable over adb, by `pocketdraft phone-bench`. */
    val results: File get() = File(context.getExternalFilesDir(null) ?: context.filesDir, "results").apply { mkdirs() }

    fun bundles(): List<File> =
        places.flatMap { it.listFiles().orEmpty().toList() }.filter { File(it, MANIFEST_NAME).isFile }.sortedBy { it.name }

    fun asset(name: String): String = context.assets.open(name).use { it.readBytes().decodeToString() }

    /** The standard set, a prompt a line. */
    fun prompts(): Sequence<String> = listOf("prompts.jsonl", "prompts_more.jsonl").asSequence().flatMap { asset(it).lineSequence() }

    fun text(id: Int, vararg values: Any): String = context.getString(id, *values)

    /** Bytes that can be used before Android ends other apps. */
    fun freeMemory(): Long = memory().availMem

    private fun device(): DeviceInfo {
        val soc = if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.S) "${Build.SOC_MANUFACTURER} ${Build.SOC_MODEL}" else Build.HARDWARE
        val cores = Runtime.getRuntime().availableProcessors()
        return DeviceInfo("${Build.MANUFACTURER} ${Build.MODEL}", soc, "Android ${Build.VERSION.RELEASE}", cores, memory().totalMem)
    }

    /** What is packed, as the build wrote it: name, version and licence. */
    fun runtimes(): List<JsonObject> = JsonParser.parseString(asset("runtimes.json")).asJsonArray.map { it.asJsonObject }

    fun profile(manifest: Manifest, threads: Int): Profile {
        val runtime = mapOf(Backend.LITERT to "litert-lm", Backend.ONNX to "onnxruntime", Backend.EXECUTORCH to "executorch")
        val version = runtimes().find { it["name"].asString == runtime[manifest.backend] }?.get("version")?.asString ?: ""
        val own = context.packageManager.getPackageInfo(context.packageName, 0).versionName
        val today = SimpleDateFormat("yyyy-MM-dd", Locale.ROOT).format(Date())
        return Profile(manifest, device(), version, threads, today, "pocketdraft demo $own")
    }

    private fun memory() = ActivityManager.MemoryInfo().also {
        (context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager).getMemoryInfo(it)
    }
}
